"""Arguments of `laconic eval`."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch import values
from launch.arguments.common import model

MODES = ("truncate", "prompt", "effort", "both")


def add(one: argparse.ArgumentParser) -> None:
    text = (
        "cap of a whole response (default: max_new_tokens of generation_config.json, else what the "
        "context leaves, 32768 at most)"
    )
    model(one, text)
    _problems(one.add_argument_group("problems"))
    _budgets(one.add_argument_group("budgets"))
    _samples(one.add_argument_group("samples"))
    _engine(one.add_argument_group("engine"))
    _out(one.add_argument_group("what comes of it"))


def _problems(one: argparse._ArgumentGroup) -> None:
    text = "math500=FILE,aime24=FILE,find: suites with their files, and procedural tasks"
    one.add_argument("--tasks", type=values.tasks, default=(), metavar="TASK,...", help=text)
    text = "folder of suites that name no file (FOLDER/aime24.jsonl, .json, .parquet)"
    one.add_argument("--data-dir", type=Path, metavar="FOLDER", help=text)
    one.add_argument("--data", help="a dataset file of your own, or a task (find)")
    one.add_argument("--columns", help="of files: '{prompt: question, answer: target}'")
    text = "the first so many of each task (default: all of a suite, else 256)"
    one.add_argument("--problems", type=values.count, metavar="N", help=text)
    text = "of all tasks (default: each suite's own, else exact)"
    one.add_argument("--verifier", metavar="SPEC", help=text)
    text = "golds that their verifier rejects: refuse to start (default), drop or keep the problems"
    one.add_argument("--bad-golds", choices=("refuse", "drop", "keep"), default="refuse", help=text)


def _budgets(one: argparse._ArgumentGroup) -> None:
    text = "thinking tokens, as 0,8,16,inf; without a limit is always measured"
    one.add_argument("--budgets", type=values.budgets, default=(None,), metavar="N,...", help=text)
    text = (
        "truncate: one trace, told nothing, is cut at every budget (default); prompt: every budget "
        "is announced, and generated afresh; effort: every effort; both: truncate and prompt"
    )
    one.add_argument("--budget-mode", choices=MODES, default="truncate", help=text)
    text = "how a number is announced: '{suffix: \" Think for {budget} tokens.\"}'"
    one.add_argument("--ask", metavar="MAP", help=text)
    text = "low,high of those that the model knows, or how each is asked: '{low: {suffix: ...}}'"
    one.add_argument("--efforts", metavar="NAMES|MAP", help=text)
    text = "a live rule that ends thoughts, as consistency or '{name: confidence, threshold: 0.9}'"
    one.add_argument("--stopping", metavar="SPEC", help=text)


def _samples(one: argparse._ArgumentGroup) -> None:
    text = "of each problem and way of asking (default: a suite's own, else 1)"
    one.add_argument("--samples", type=values.count, metavar="N", help=text)
    text = "from 4 samples on until the standard error of every accuracy on these problems is X"
    one.add_argument("--precision", type=values.precision, metavar="X", help=text)
    text = "with --precision: at most so many of a problem (default: 256)"
    one.add_argument("--max-samples", type=values.count, default=256, metavar="N", help=text)
    one.add_argument("--save-thoughts", action="store_true", help="keep the text of every thought")


def _engine(one: argparse._ArgumentGroup) -> None:
    text = "torch (default), vllm, or '{name: vllm, slots: 512}'"
    one.add_argument("--engine", metavar="SPEC", default="torch", help=text)
    one.add_argument("--dtype", choices=("float32", "bfloat16"), help="(default: float32)")
    text = "sample from a server, as http://localhost:8000; MODEL is the folder that it serves"
    one.add_argument("--base-url", metavar="URL", help=text)
    one.add_argument("--served-name", metavar="NAME", help="of the model there (default: the only)")
    text = "chat: as users meet it (default); ids: token ids, nested budgets are paid for once"
    one.add_argument("--api", choices=("chat", "ids"), default="chat", help=text)


def _out(one: argparse._ArgumentGroup) -> None:
    text = "folder of samples, metrics and report; the same command goes on with it"
    one.add_argument("--out", type=Path, metavar="FOLDER", help=text)
    text = "MODEL is such a folder: grade, measure and draw again, without any model"
    one.add_argument("--offline", action="store_true", help=text)
    text = "an evaluation's folder, or a model to evaluate in the same way"
    one.add_argument("--baseline", metavar="FOLDER|MODEL", help=text)
    text = "majority,short-m,best-of-n,best-of-majority (default: with --out, all)"
    one.add_argument("--selection", type=values.tasks, metavar="NAME,...", help=text)
    text = "samples that a selection draws of, as 1,2,4 (default: powers of two)"
    one.add_argument("--k", type=values.counts, metavar="K,...", help=text)
    text = "rules to try on the saved cuts, as consistency,confidence (default: with --out, both)"
    one.add_argument("--stopping-offline", type=values.tasks, metavar="NAME,...", help=text)
    text = "weights of the budgets in any-time accuracy (default: log)"
    priors = ("equal", "uniform", "log", "linear", "final")
    one.add_argument("--prior", choices=priors, default="log", help=text)
    text = "leave report.html and its plots out"
    one.add_argument("--no-report", action="store_true", help=text)
    text = 'exit with 1 unless it holds, as "find/accuracy@16>=0.4"; may be repeated'
    one.add_argument("--require", action="append", default=[], metavar="TEXT", help=text)
