"""Examples that a supervised stage's own model makes: sampled, graded, and kept where right.

A maker (`shortest_correct`, `budget_modes`, or a user's module) holds a Config, derived from the
one here, and says what is sampled and which rollouts are kept:

    make(config, draws, sampler) -> list[Rollout]

They become rows by their ids, never by their text: nothing is tokenised again. Every token of a
kept response is imitated, the forced ones too: the connective and the end marker of a cut thought
are what a budget mode has to learn. (In reinforcement learning forced tokens are never trained on.)

The examples of a stage are made once, when it begins, and stay in its run folder; a run that goes
on reads them. Shape suffixes: G rollouts of a group, T tokens.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rewards.verify import verify
from samplers import render, seam, seeds
from samplers.data import Dataset, PromptStream, digest
from samplers.render import Renderer
from samplers.run import forced, nothing
from samplers.seam import Component
from samplers.types import Answer, Group, Ids, Job, Plan, Prompt, Rollout
from trainer import golds
from trainer.supervised import EXAMPLE, SupervisedStream

if TYPE_CHECKING:
    from trainer.stage import StageRun

EXAMPLES, SUMMARY = "examples.jsonl", "summary.json"
AT_ONCE = 8192
"""Rollouts that are held in memory before those that are not kept are let go."""
_TRACES = 0x74726163  # keeps the random numbers of traces apart from those of training
Draw = tuple[int, Prompt]
"""(serial number, prompt) as a stream gives them."""


class Config(Component):
    """What every maker needs to know."""

    prompts: int = Field(256, ge=1)
    """Training prompts that are sampled from, each once."""
    samples: int = Field(8, ge=1)
    """Rollouts of each of them."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Rollouts of one prompt that are wanted."""

    draw: Draw
    plans: Sequence[Plan]
    heads: Sequence[Ids] = ()
    """A thought to go on from, per plan; none for those that begin afresh."""
    first: int = 0
    """Index in its group of the first one."""


class Sampler:
    """A stage's budget policy, engines and verifier, as makers see them; counts what is asked."""

    def __init__(self, run: StageRun, renderer: Renderer) -> None:
        self.run, self.renderer = run, renderer
        self.counts: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        """Rollouts by subgroup."""

    def plans(self, draw: Draw, n: int) -> list[Plan]:
        """`n` plans of the stage's budget policy, as at its first step; none in chunks."""
        serial, prompt = draw
        key = seeds.key(self.run.seed, _TRACES, serial)
        return [replace(plan, chunk=None) for plan in self.run.plans(prompt, n, 0, key)]

    def natural(self, draw: Draw) -> Plan:
        """How its prompt is asked when nobody sets a budget."""
        return self.run.sampling.natural(draw[1], 0)

    def sample(self, asks: Sequence[Ask]) -> list[Group]:
        """Verified groups, one per ask."""
        jobs = [self._job(ask, i) for ask in asks for i in range(len(ask.plans))]
        if not jobs:
            return []
        with self.run.clock.phase("generate"):
            made = iter(self.run.world.rollout(jobs))
        groups = [
            Group(ask.draw[1], ask.draw[0], tuple(next(made) for _ in ask.plans)) for ask in asks
        ]
        with self.run.clock.phase("verify"):
            groups = verify(groups, self.run.world.grade)
        for group in groups:
            self.counts["rollouts"] += len(group)
            self.counts["right"] += int(right(group).sum())
            self.counts["unknown"] += int((~group.known_GCA[:, -1, 0]).sum())
            self.counts["tokens"] += sum(r.sampled_tokens for r in group.rollouts)
            self.modes.update(r.plan.subgroup for r in group.rollouts)
        return groups

    def _job(self, ask: Ask, i: int) -> Job:
        (serial, prompt), plan, index = ask.draw, ask.plans[i], ask.first + i
        seed = seeds.key(self.run.seed, _TRACES, serial, index)
        resume = None
        if ask.heads and len(head := ask.heads[i]):
            none = Answer(len(head), nothing("length"), None)
            resume = Rollout(
                prompt.index, serial, index, seed, plan, np.zeros(0, np.int32),
                forced(head), closed=False, answers=((none,),), unfinished=True,
            )  # fmt: skip
        temperature = self.run.stage.rollout.temperature
        return Job(prompt, plan, serial, index, seed, temperature, resume)


def right(group: Group) -> NDArray[np.bool_]:
    """[G]: the final answer is right, and ended by itself."""
    whole_G = np.array([r.final.tokens.finish == "stop" for r in group.rollouts], dtype=bool)
    known_G, correct_G = group.known_GCA[:, -1, 0], group.correct_GCA[:, -1, 0]
    return whole_G & known_G & correct_G


def response(rollout: Rollout) -> Ids:
    """[T] ids of the thought, as far as the final answer saw it, and of that answer."""
    final = rollout.final
    return np.concatenate([rollout.thought.ids_T[: final.after], final.tokens.ids_T])


def supply(run: StageRun, model: str) -> None:
    """Give a stage's stream the examples it asks for: made now, or read where they were made.

    To be called before anything else is done with the stage, when its engines hold the weights of
    `model`, the folder that it begins with.

    Raises:
        ValueError: not one rollout is to be kept.
    """
    spec = run.stage.supervised.traces
    if run.stage.kind != "sft" or spec is None:
        return
    folder = run.folder / f"traces-{run.index}"
    if not folder.is_dir():
        _make(run, spec, model, folder)
    run.tracker.log(run.at, json.loads((folder / SUMMARY).read_text()))
    assert isinstance(run.stream, SupervisedStream)
    run.stream.supply(read(folder))


def read(folder: Path) -> Dataset:
    """The examples of a folder that `supply` made: prompts that carry both texts as ids."""
    text = (folder / EXAMPLES).read_text(encoding="utf-8")
    found = []
    for index, row in enumerate(map(json.loads, text.splitlines())):
        ids = tuple(np.array(row[name], np.int32) for name in ("prompt_ids", "response_ids"))
        found.append(Prompt(index, row["id"], (), "", "", "", {EXAMPLE: ids}))
    return Dataset(found.__getitem__, len(found), digest(text))


def _make(run: StageRun, spec: str | dict[str, Any], model: str, folder: Path) -> None:
    """Sample, keep, write; the folder appears when it is complete."""
    module, config = seam.resolve("trainer.traces", spec)
    dataset = golds.load(run.stage, "train", run.seed)
    stream = PromptStream(dataset, run.seed, run.stage.data.shuffle)
    draws = [stream.next() for _ in range(min(config.prompts, dataset.size or config.prompts))]
    run.tracker.note("sampling examples")
    trust = run.stage.model.trust_remote_code
    sampler = Sampler(run, render.load(model, run.stage.markers, trust))
    kept: list[Rollout] = []
    size = max(1, AT_ONCE // config.samples)
    for first in range(0, len(draws), size):
        kept += module.make(config, draws[first : first + size], sampler)
    if not kept:
        raise ValueError(
            f"supervised.traces: none of {sampler.counts['rollouts']} rollouts of {len(draws)} "
            f"prompts is to be kept ({sampler.counts['right']} are right); raise samples, prompts "
            "or rollout.max_tokens, take easier data, or begin with a stage of demonstrations"
        )
    figures = summary(sampler, kept, len(draws))
    partial = folder.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / SUMMARY).write_text(json.dumps(figures, indent=1) + "\n")
    (partial / EXAMPLES).write_text(_lines(run, kept, dict(draws)), encoding="utf-8")
    partial.rename(folder)
    run.tracker.say(_told(figures))


def summary(sampler: Sampler, kept: Sequence[Rollout], prompts: int) -> dict[str, float]:
    """Figures of what was sampled and kept, in all and by mode (`Plan.subgroup`)."""
    lengths: dict[str, list[int]] = {mode: [] for mode in sampler.modes}
    for rollout in kept:
        lengths[rollout.plan.subgroup].append(len(response(rollout)))
    out: dict[str, float] = {"prompts": prompts, **sampler.counts, "kept": len(kept)}
    out["length"] = sum(map(sum, lengths.values())) / len(kept)
    for mode, counted in lengths.items():
        if mode and not counted:
            warnings.warn(
                f"supervised.traces: nothing of mode '{mode}' is kept of {sampler.modes[mode]} "
                "rollouts, so it is not taught; raise samples or its share of the thought",
                stacklevel=2,
            )
        if mode:
            out[f"kept/{mode}"] = len(counted)
            out[f"dropped/{mode}"] = sampler.modes[mode] - len(counted)
            out[f"length/{mode}"] = float(np.mean(counted)) if counted else 0.0
    return {f"traces/{name}": value for name, value in out.items()}


def _told(figures: Mapping[str, float]) -> str:
    """One line for people."""

    def of(name: str) -> float:
        return figures[f"traces/{name}"]

    line = (
        f"examples: {of('kept'):,.0f} of {of('length'):,.0f} tokens each, kept of "
        f"{of('rollouts'):,.0f} rollouts ({of('right'):,.0f} right) of {of('prompts'):,.0f} prompts"
    )
    modes = [name.removeprefix("traces/kept/") for name in figures if "/kept/" in name]
    parts = (
        f"{mode} {of(f'kept/{mode}'):,.0f} of {of(f'length/{mode}'):,.0f} tokens" for mode in modes
    )
    return "; ".join([line, *parts])


def _lines(run: StageRun, kept: Sequence[Rollout], prompts: Mapping[int, Prompt]) -> str:
    """One line of JSON per example: texts to be read, ids to be trained on."""
    ids = [(r.prompt_ids_T.tolist(), response(r).tolist()) for r in kept]
    texts = run.world.decode([row for pair in ids for row in pair])
    rows = (
        {
            "id": prompts[rollout.group].id,
            "mode": rollout.plan.subgroup,
            "prompt": texts[2 * i],
            "response": texts[2 * i + 1],
            "prompt_ids": ids[i][0],
            "response_ids": ids[i][1],
        }
        for i, rollout in enumerate(kept)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)
