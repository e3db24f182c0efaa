"""Arguments of `laconic eval`."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch import values
from launch.arguments.common import model


def add(one: argparse.ArgumentParser) -> None:
    model(one)
    one.add_argument("--data", required=True, help="a dataset file, or a task (find)")
    one.add_argument("--columns", help="of the file: '{prompt: question, answer: target}'")
    one.add_argument("--budgets", type=values.budgets, default=(None,), help="0,8,16,inf")
    one.add_argument("--problems", type=values.count, default=256)
    one.add_argument("--samples", type=values.count, default=1, help="per problem and budget")
    one.add_argument("--verifier", default="exact")
    one.add_argument("--out", type=Path, help="folder for rows and figures")
