"""Arguments of `laconic generate`."""

from __future__ import annotations

import argparse

from launch import values
from launch.arguments.common import model


def add(one: argparse.ArgumentParser) -> None:
    model(one)
    one.add_argument("prompt", help="one user message")
    one.add_argument(
        "--thinking-budget", type=values.budget, help="tokens, 0 for none of it, or none"
    )
    one.add_argument("--samples", type=values.count, default=1)
