"""Arguments of `laconic compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch import values


def add(one: argparse.ArgumentParser) -> None:
    folder = "folder of an evaluation, or of a run, whose last evaluation is taken"
    one.add_argument("a", type=Path, metavar="A", help=f"the baseline: {folder}")
    one.add_argument("b", type=Path, metavar="B", help="what is compared with it, on equal terms")
    text = "accuracy that B may lose and still be as good, stated before one looks (default: 0.01)"
    one.add_argument(
        "--noninferiority-margin", type=values.share, default=0.01, metavar="0.01", help=text
    )
    text = (
        "exit with 1 unless B - A keeps this: 'math500/accuracy@1024.low>=-0.01', "
        "'math500/tokens_ratio@inf.high<1', or noninferiority; may be given several times"
    )
    one.add_argument("--require", action="append", default=[], metavar="NAME>=NUMBER", help=text)
    text = "also write this page, with plots beside it (of two folders of `laconic eval`)"
    one.add_argument("--out", type=Path, metavar="compare.html", help=text)
    one.add_argument("--json", action="store_true", help="print JSON")
