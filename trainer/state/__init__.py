"""What a learner needs to go on: saved by some number of ranks, read back by any other.

Saved are the float32 weights that training is the truth of, the optimiser's states, the moving
average of a reference, every rank's random state and the counters. Each rank writes what it alone
holds (`deepspeed.parts`) and reads the slices it needs from whatever files there are
(`fragments.sources`): ranks and ZeRO stages may differ, no rank ever has everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from samplers import seeds
from trainer import zero
from trainer.state.deepspeed import Part, parts, settle
from trainer.state.files import Plan, Saved, summarise, write
from trainer.state.fragments import Span, shares
from trainer.together import everywhere

if TYPE_CHECKING:
    from trainer.learner import Learner

AVERAGE = "average"
"""Key of the moving average of the reference."""
_ANEW = "or start a new run from the checkpoint's model folder"


def save(learner: Learner, folder: Path) -> None:
    """Collective.

    Raises:
        OSError: on all ranks, where writing failed on one.
    """

    def mine() -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        return write(folder, learner.rank, _held(learner), zero.rng_state())

    files = everywhere(mine)
    facts = {
        "zero": learner.config.zero,
        "dtype": learner.dtype,
        "optimiser": learner.optim.name,
        "adapter": learner.lora and learner.lora.scale,
        "updates": learner.updates,
        "bad_steps": learner.bad_steps,
        "parameters": _shapes(learner),
    }
    everywhere(lambda: summarise(folder, facts, files) if learner.rank == 0 else None)


def load(learner: Learner, folder: Path) -> None:
    """Collective. Ranks that were not there at saving begin their random numbers from the seed.

    Raises:
        ValueError: on all ranks, where a file is missing or damaged, or another model, optimiser
            or adapter was saved; then the learner is as it was.
    """
    found: list[tuple[Saved, Plan]] = []

    def look() -> None:
        held, saved = list(_held(learner)), Saved(folder)
        _check(learner, saved, held)
        found.append((saved, saved.plan(held)))

    everywhere(look)
    saved, plan = found[0]

    def take() -> None:
        saved.read(plan)
        random = saved.random(learner.rank)
        if random is None:
            torch.manual_seed(seeds.key(learner.seed, learner.rank))
        else:
            zero.set_rng_state(random)

    everywhere(take)
    settle(learner.engine)
    learner.updates, learner.bad_steps = saved.updates, saved.bad_steps
    if learner.moving:
        learner.reference.refresh()


def _held(learner: Learner) -> Iterator[Part]:
    """The engine's parts, and this rank's copy of the moving average."""
    yield from parts(learner.engine)
    if learner.moving:
        average = learner.reference.average
        own = shares({n: t.numel() for n, t in average.items()}, learner.config.ranks)[learner.rank]
        for name, tensor in average.items():
            whole = Span(0, tensor.numel())
            yield Part(name, AVERAGE, whole, tensor.view(-1), own.get(name, Span(0, 0)))


def _shapes(learner: Learner) -> dict[str, tuple[int, ...]]:
    """Of the trained parameters, whole."""
    trained = (item for item in learner.model.named_parameters() if item[1].requires_grad)
    return {name: zero.shape(parameter) for name, parameter in trained}


def _check(learner: Learner, saved: Saved, held: list[Part]) -> None:
    """Raise ValueError for the state of another model, adapter, reference or optimiser."""
    ours, where = _shapes(learner), saved.folder
    for name in [*ours, *saved.shapes]:
        here, there = ours.get(name), saved.shapes.get(name)
        if here != there:
            raise ValueError(
                f"{where} is of another model or adapter: {name} {_told(there)} there and "
                f"{_told(here)} here; set model.path and model.lora as they were, {_ANEW}"
            )
    scale, adapter = learner.lora and learner.lora.scale, saved.facts.get("adapter")
    if scale != adapter:
        raise ValueError(
            f"{where} is of another adapter: {next(iter(ours))} counts {adapter:g} times there and "
            f"{scale:g} times here; set model.lora.alpha as it was, {_ANEW}"
        )
    order = {name: i for i, name in enumerate(ours)}
    for part in sorted(held, key=lambda part: order[part.name]):
        keys = saved.keys[part.name]
        if part.key == AVERAGE and part.key not in keys:
            raise ValueError(
                f"loss.reference=ema: {where} was saved without an average ({part.name} has none); "
                f"set loss.reference as it was, {_ANEW}"
            )
        if part.key not in keys:
            raise ValueError(
                f"optim.name={learner.optim.name}: {where} was saved with "
                f"{saved.facts.get('optimiser')}: {part.name} has no {part.key} there; set "
                f"optim.name as it was, {_ANEW}"
            )


def _told(shape: tuple[int, ...] | None) -> str:
    return "is not trained" if shape is None else f"is {'x'.join(map(str, shape))}"
