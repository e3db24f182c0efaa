"""Arguments of `laconic serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch import values
from launch.arguments.common import marker


def port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"'{text}': write a port, 1 to 65535")
    return int(text)


def add(one: argparse.ArgumentParser) -> None:
    one.usage = "laconic serve [options] MODEL [-- flags of the engine]"
    one.add_argument("model", help="a model folder (laconic export writes one) or a hub name")
    one.add_argument("--engine", choices=("vllm", "sglang"), default="vllm")
    one.add_argument("--host", default="127.0.0.1", help="0.0.0.0: all the world (default: here)")
    one.add_argument("--port", type=port, default=8000)
    one.add_argument("--name", help="what requests call the model (default: its folder's name)")
    text = "longest prompt plus response (default: the model's context)"
    one.add_argument("--max-model-len", type=values.count, metavar="TOKENS", help=text)
    text = "of weights and KV cache (default: as config.json says)"
    one.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help=text)
    text = "the engine's reasoning parser (default: by what the model folder says)"
    one.add_argument("--parser", metavar="NAME", help=text)
    marker(one)
    one.add_argument("--log", type=Path, metavar="FILE", help="the engine's output goes there")
    one.add_argument(
        "--print", dest="show", action="store_true", help="print the command and start nothing"
    )
