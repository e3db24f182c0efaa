"""Arguments of `laconic reward`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from launch import values
from launch.arguments.common import marker


def add(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", required=True, metavar="grade | audit | bench")
    about = {
        "grade": "Verdicts of a file's responses: a table, and with --out the rows with verdicts.",
        "audit": "Two verifiers over the same responses: likely false accepts and rejects.",
        "bench": "Speed of a verifier on this machine, in verdicts per second and core.",
    }
    for what, text in about.items():
        one = whats.add_parser(what, help=text, description=text, allow_abbrev=False)
        kind = "JSONL, JSON or Parquet of golds and responses, or a run's folder"
        optional: dict[str, Any] = {"nargs": "?"} if what == "bench" else {}
        one.add_argument("file", type=Path, metavar="FILE", help=kind, **optional)
        text = "exact, '{name: math, rounded: 0}', my_file:fn (default: the run's, or math)"
        one.add_argument("--verifier", metavar="SPEC", help=text)
        text = "'{response: output, answer: target}', answer is the gold (default: usual names)"
        one.add_argument("--columns", metavar="MAP", help=text)
        marker(one)
        text = "the prompt had opened the thought: without an end marker there is no answer"
        one.add_argument("--opened", action="store_true", help=text)
        one.add_argument(
            "--workers", type=values.count, metavar="N", help="processes (default: cores)"
        )
        text = "that one answer may take (default: 10, or the verifier's own)"
        one.add_argument("--deadline", type=values.seconds, metavar="SECONDS", help=text)
        one.add_argument("--json", action="store_true", help="print JSON")
        if what == "bench":
            text = "verdicts to time (default: 2000)"
            one.add_argument("--items", type=values.count, default=2000, metavar="N", help=text)
            text = "also with this share of answers that never end, as 0.01"
            one.add_argument(
                "--hang-share", type=values.share, default=0.0, metavar="SHARE", help=text
            )
            continue
        rows = "rows and verdicts" if what == "grade" else "rows on which they disagree"
        text = f"{rows} as JSONL, in this file"
        one.add_argument("--out", type=Path, metavar="FILE", help=text)
        if what == "audit":
            one.add_argument("--against", required=True, metavar="SPEC", help="the second verifier")
            text = "findings of each kind (default: 10)"
            one.add_argument("--show", type=values.count, default=10, metavar="N", help=text)
