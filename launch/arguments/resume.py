"""Arguments of `laconic resume`."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.arguments.launch import address


def add(one: argparse.ArgumentParser) -> None:
    one.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run that stopped")
    text = "a.b=c: go on with another setting; what that means is said, or why it is refused"
    one.add_argument("settings", nargs="*", default=[], metavar="a.b=c", help=text)
    address(one)
