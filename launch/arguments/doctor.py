"""Options of `laconic doctor`."""

from __future__ import annotations

import argparse


def add(command: argparse.ArgumentParser) -> None:
    text = "also what this recipe needs: disk for its checkpoints; its model, files and modules"
    command.add_argument("recipe", nargs="?", default="", help=text)
    command.add_argument("settings", nargs="*", default=[], metavar="a.b=c", help="of the recipe")
    text = "every node of this running Ray cluster; auto: the one that this machine is part of"
    command.add_argument("--address", metavar="ADDRESS", help=text)
    command.add_argument("--deep", action="store_true", help="also start Ray")
