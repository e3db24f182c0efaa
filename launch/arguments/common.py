"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch import values


def model(parser: argparse.ArgumentParser, cap: str) -> None:
    """`cap` is what is said of --max-tokens."""
    parser.add_argument("model", help="a model folder, base/find, or a hub name")
    text = "0 is greedy (default of this and the next two: generation_config.json, else 1, 1, 0)"
    parser.add_argument("--temperature", type=values.temperature, metavar="T", help=text)
    text = "sample of the likeliest tokens that have this probability together; 1: of all"
    parser.add_argument("--top-p", type=values.top_p, metavar="P", help=text)
    text = "sample of so many of the likeliest tokens; 0: of all"
    parser.add_argument("--top-k", type=values.top_k, metavar="K", help=text)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=values.count, metavar="N", help=cap)
    parser.add_argument("--answer-tokens", type=values.count, help="cap of the answer")
    marker(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def marker(parser: argparse.ArgumentParser) -> None:
    markers = parser.add_mutually_exclusive_group()
    markers.add_argument(
        "--markers",
        nargs=2,
        metavar=("START", "END"),
        default=["<think>", "</think>"],
        help="of thoughts (default: <think> </think>)",
    )
    markers.add_argument("--no-thinking", action="store_true", help="all of a response is answer")


def report(parser: argparse.ArgumentParser) -> None:
    text = "compare all others with this arm (default: all pairs; of many arms, the first)"
    parser.add_argument("--against", metavar="ARM", help=text)
    text = "tell the generated tokens until the area under caps is this, as 0.7"
    parser.add_argument("--reach", type=values.area, metavar="AREA", help=text)
    text = "compare area, accuracy and thinking tokens after so many generated tokens"
    parser.add_argument("--at-tokens", type=values.count, metavar="N", help=text)
    text = "more metrics of evaluations, as think_tokens/sd,truncated"
    parser.add_argument("--show", type=values.metrics, default=(), metavar="METRIC,...", help=text)


def cluster(parser: argparse.ArgumentParser) -> None:
    text = "plan for a cluster of so many nodes (default: this machine as it is)"
    parser.add_argument("--nodes", type=values.count, metavar="N", help=text)
    parser.add_argument("--gpus-per-node", type=int, metavar="M", help="GPUs of a node; 0: none")
    parser.add_argument(
        "--gpu-memory", type=values.memory, metavar="80GB", help="memory of one GPU"
    )
    text = "a node of so many GPUs of this kind and memory; 2x8xH100-80GB: two; may be repeated"
    parser.add_argument(
        "--node", type=values.node, action="append", default=[], metavar="8xH100-80GB", help=text
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def cost(parser: argparse.ArgumentParser) -> None:
    text = "measured throughputs of your own, asked before those that ship"
    parser.add_argument("--throughputs", type=Path, metavar="FILE", help=text)
    text = "tokens of a response, for the cost (default: from a quarter of the cap to the cap)"
    parser.add_argument("--response-tokens", type=values.count, metavar="N", help=text)
