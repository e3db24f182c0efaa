"""Arguments of `laconic launch`, and of `status`, `logs` and `stop`."""

from __future__ import annotations

import argparse
from pathlib import Path

PLACES = "local, ray, slurm, kuberay, or the import path of your own module"
JOBS = {
    "status": "How a launched job is.",
    "logs": "What a launched job has printed.",
    "stop": "End a launched job; it makes a checkpoint first.",
}


def add(one: argparse.ArgumentParser) -> None:
    one.add_argument("--on", required=True, metavar="PLACE", help=PLACES)
    text = "YAML that describes the place (see launch/README.md)"
    one.add_argument("--site", type=Path, metavar="FILE", help=text)
    text = "of the job (default: its run folder's name)"
    one.add_argument("--name", metavar="JOB", help=text)
    text = "check everything and show what would be submitted, but submit nothing"
    one.add_argument("--dry-run", action="store_true", help=text)
    text = "return when it is submitted; where a place follows its jobs, else that is so anyway"
    one.add_argument("--detach", action="store_true", help=text)


def job(one: argparse.ArgumentParser, what: str) -> None:
    one.add_argument("job", metavar="JOB", help="the name that it was launched by")
    one.add_argument("--on", default="ray", metavar="PLACE", help="where (default: ray)")
    one.add_argument("--site", type=Path, metavar="FILE", help="as when it was launched")
    if what == "logs":
        one.add_argument("--follow", action="store_true", help="until the job ends")


def address(one: argparse.ArgumentParser) -> None:
    text = (
        "join the Ray cluster at HOST:6379, which this machine is a node of; auto: the one that "
        "RAY_ADDRESS names, or that runs here (default: a Ray of its own)"
    )
    one.add_argument("--address", metavar="ADDRESS", help=text)
