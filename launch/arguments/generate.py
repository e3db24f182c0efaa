"""Arguments of `laconic generate`."""

from __future__ import annotations

import argparse

from launch import values
from launch.arguments.common import model


def add(one: argparse.ArgumentParser) -> None:
    model(one, "cap of a whole response (default: what the context leaves, 32768 at most)")
    one.add_argument("prompt", nargs="+", metavar="PROMPT", help="user messages, one a prompt")
    _budget(one.add_argument_group("budget"))
    _told(one.add_argument_group("how a model is told, where its folder does not say"))
    _choice(one.add_argument_group("samples"))
    text = "torch (default), vllm, or '{name: vllm, slots: 512}'"
    one.add_argument("--engine", metavar="SPEC", default="torch", help=text)


def _budget(one: argparse._ArgumentGroup) -> None:
    text = "tokens, 0 for none of it, or none: the thought is closed there by force"
    one.add_argument("--thinking-budget", type=values.budget, metavar="N", help=text)
    text = "the budget is announced, and not enforced"
    one.add_argument("--soft", action="store_true", help=text)
    text = "none, minimal, low, medium, high, xhigh or max, as the model knows it"
    one.add_argument("--effort", metavar="NAME", help=text)
    text = "a rule that ends thoughts, as consistency or '{name: confidence, threshold: 0.9}'"
    one.add_argument("--stopping", metavar="SPEC", help=text)


def _told(one: argparse._ArgumentGroup) -> None:
    text = "how a number is announced: '{suffix: \" Think for {budget} tokens.\"}'"
    one.add_argument("--ask", metavar="MAP", help=text)
    text = "how efforts are asked for: '{low: {suffix: \" Be brief.\"}}'"
    one.add_argument("--efforts", metavar="MAP", help=text)


def _choice(one: argparse._ArgumentGroup) -> None:
    one.add_argument("--samples", type=values.count, metavar="K", default=1, help="of each prompt")
    text = "which is returned: majority, short-m, best-of-n, best-of-majority (default: all)"
    one.add_argument("--selection", metavar="SPEC", help=text)
    text = "of short-m: thoughts that are waited for; the others are ended (default: 3)"
    one.add_argument("--m", type=values.count, metavar="M", help=text)
