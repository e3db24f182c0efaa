"""Arguments of `laconic export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.arguments.common import marker


def add(one: argparse.ArgumentParser) -> None:
    text = "a run, a checkpoint, a model folder or a hub name; without OUT: an export to check"
    one.add_argument("checkpoint", metavar="CHECKPOINT", help=text)
    one.add_argument("out", nargs="?", type=Path, metavar="OUT", help="the folder to write")
    text = "render, parse and load it in transformers and vLLM; exit code 1 where something fails"
    one.add_argument("--check", action="store_true", help=text)
    text = "LoRA: the merged weights (default), or these and the adapter in OUT/adapter"
    one.add_argument("--lora", choices=("merged", "beside"), default="merged", help=text)
    text = "how a number is told: '{suffix: \" Think for {budget} tokens.\"}' (default: the run's)"
    one.add_argument("--ask", metavar="TEXTS", help=text)
    text = (
        "'{low: {suffix: <b2>}, high: 512}': texts, a number, or a mode (default: the run's modes)"
    )
    one.add_argument("--efforts", metavar="MAP", help=text)
    text = "folder of an evaluation for the model card (default: the run's last one)"
    one.add_argument("--eval", dest="evaluation", type=Path, metavar="FOLDER", help=text)
    marker(one)
