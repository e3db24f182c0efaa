"""`laconic launch`, and `status`, `logs` and `stop` of what it launched.

Everything that can be known here is checked before the place is asked for anything.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import warnings
from typing import Any

from launch.places import base
from launch.places.base import Order
from launch.plan import plan
from trainer import preflight
from trainer.config import Recipe, load

LONGEST = 53
"""Characters of a job's name: Kubernetes has names of 63, and adds its own."""
NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def launch(args: argparse.Namespace) -> int:
    """Resolve, check, plan, and hand the order to the place; its exit code."""
    place, config = base.find(args.on), base.site(args.on, args.site)
    recipe = load(args.recipe, args.settings)
    name = chosen(args.name) if args.name else default(recipe)
    hardware = place.hardware(config)
    if hardware is None:
        preflight.check_all(recipe, thorough=False, here=False, files=False)
    else:
        made = plan(args.recipe, args.settings, hardware)
        for line in made.deficits:
            print(f"laconic: does not fit: {line}", file=sys.stderr)
        if made.deficits:
            return 1
        for text in () if hardware.here else made.warnings:  # here the run itself warns
            warnings.warn(text, stacklevel=2)
        wanted = [s for s in recipe.stages if s.rollout.engine.name == "vllm"]
        if wanted and not hardware.here and not hardware.cluster.total:
            text = f"rollout.engine=vllm on CPUs: --on {args.on} has no GPUs; does its site file "
            warnings.warn(text + "(--site) ask for some?", stacklevel=2)
    order = Order(
        args.recipe,
        tuple(args.settings),
        recipe,
        name,
        dry_run=args.dry_run,
        detach=args.detach,
        place=args.on,
        site=args.site,
    )
    code: int = place.launch(order, config)
    return code


def job(args: argparse.Namespace, what: str) -> int:
    """`what` ('status', 'logs', 'stop') of a job, as its place does it.

    Raises:
        ValueError: the place has no jobs.
    """
    place, config = base.find(args.on), base.site(args.on, args.site)
    if not hasattr(place, what):
        raise ValueError(f"--on {args.on} has no `{what}`: what is launched there runs right there")
    more: dict[str, Any] = {"follow": args.follow} if what == "logs" else {}
    code: int = getattr(place, what)(args.job, config, **more)
    return code


def chosen(name: str) -> str:
    """The name if a job can have it.

    Raises:
        ValueError: it cannot, with one that could.
    """
    if NAME.fullmatch(name) and len(name) <= LONGEST:
        return name
    raise ValueError(
        f"--name {name}: a job's name is at most {LONGEST} of a-z, 0-9 and -, none of them - at "
        f"either end; as {_sanitised(name)}"
    )


def default(recipe: Recipe) -> str:
    """A job's name after its run folder's."""
    return _sanitised(recipe.folder.name)


def _sanitised(text: str) -> str:
    """Names that are cut keep apart by a digest: seeds stand at their end."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "job"
    if len(name) > LONGEST:
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        name = f"{name[: LONGEST - 7].rstrip('-')}-{digest}"
    return name
