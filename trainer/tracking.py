"""A run's record. `metrics.jsonl` is the truth; W&B and the console are views of it.

The driver owns it: one process, one writer, one object per step.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase, digits
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from samplers.seam import Component
from samplers.types import Group
from trainer import journal
from trainer.console import Console
from trainer.journal import Journal, atomic
from trainer.wandb_sink import Sink

if TYPE_CHECKING:
    from trainer.config import Recipe

METRICS, FAULTS, WANDB_ID = "metrics.jsonl", "faults.jsonl", "wandb-id.txt"
ROLLOUTS, EVAL = "rollouts", "eval"
HURRY_S = 0.5
"""What W&B gets to finish where somebody leaves at once."""
Decode = Callable[[Sequence[Sequence[int]]], list[str]]


class TrackingConfig(Component):
    """What is written about a run besides metrics.jsonl."""

    wandb: Literal["off", "offline", "online"] = "off"
    """Send metrics to Weights & Biases too. offline: into the run folder, for `wandb sync`; a run
    that goes on makes this record anew. online: steps that W&B lacks at its end, because it or the
    run was killed before they were sent, are sent when the run goes on; of a step that it has and
    that is trained again after a crash it keeps the first values, metrics.jsonl the last."""
    project: str = "laconic"
    """W&B project."""
    samples: int = Field(default=4, ge=0)
    """Rollouts written to rollouts/step-N.jsonl at each step, to be read by people."""
    wandb_patience: float = Field(default=20.0, gt=0)
    """Seconds W&B may take to start and, at the end, to finish. No step ever waits for it."""


class Tracker:
    """Writes the record of a run to its folder. A context manager; else call `close`.

    Nothing that cannot be written stops the run: metrics and faults wait in memory until they can
    be, samples and evaluations are left out, and each kind of trouble is told once.

    Args:
        recipe: the run, for W&B and for progress.
        first_step: the run goes on after this step: what was logged beyond it is dropped, since it
            will be made again. None keeps all that is there.
        console: where progress is shown; by default standard output.
        wandb_id: of a checkpoint, for a folder that has lost its own.
    """

    def __init__(
        self,
        folder: Path,
        config: TrackingConfig,
        recipe: Recipe | None = None,
        *,
        first_step: int | None = None,
        console: Console | None = None,
        wandb_id: str | None = None,
    ) -> None:
        self.folder, self.config = folder, config
        folder.mkdir(parents=True, exist_ok=True)
        total = sum(stage.steps for stage in recipe.stages) if recipe else 0
        self.console = console or Console(total, folder.name)
        self._failed: set[str] = set()
        self._metrics = Journal(folder / METRICS, "steps", self.say)
        self._faults = Journal(folder / FAULTS, "faults", self.say)
        self._process = os.getpid()
        self._newest: dict[str, Any] = {}
        self._back(first_step)
        if first_step is not None and self.last < first_step:
            self.say(
                f"{METRICS} lacks steps {self.last + 1} to {first_step}: they are trained, but "
                "their figures are lost, unless you stop now and restore the file from a copy"
            )
        self.wandb_id = None if config.wandb == "off" else self._id(wandb_id)
        """Of the run at W&B, which a later process goes on with; None without W&B."""
        self._wandb = self._sink(self.wandb_id, recipe) if self.wandb_id else None

    def _id(self, given: str | None) -> str:
        path = self.folder / WANDB_ID
        with contextlib.suppress(OSError):
            given = path.read_text().strip() or given
        made = given or "".join(secrets.choice(ascii_lowercase + digits) for _ in range(8))
        with self.best_effort(WANDB_ID):
            path.write_text(made + "\n")
        return made

    def _sink(self, run: str, recipe: Recipe | None) -> Sink | None:
        config = self.config
        known: dict[str, Any] = {"id": run, "name": self.folder.name, "project": config.project}
        if recipe is not None:
            known |= {"group": recipe.name, "config": recipe.model_dump(mode="json")}
        given = (METRICS, config.wandb_patience, self.say)
        with self.best_effort("W&B's process"):
            return Sink(self.folder, config.wandb, known, *given)
        return None

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one step. Of a step that is already there, only what is new is added."""
        if step < self.last:
            return
        known = self._newest if step == self.last else {"step": step}
        metrics = {name: value for name, value in metrics.items() if name not in known}
        if metrics or step > self.last:
            self._newest = known | metrics
            self._write(step, metrics)

    def _write(self, step: int, metrics: Mapping[str, Any]) -> None:
        assert os.getpid() == self._process, "the tracker belongs to the driver process"
        record = {"step": step} | {name: plain(value) for name, value in metrics.items()}
        healed = self._metrics.append(record)
        self.console.step(record)
        if self._wandb:
            if healed:
                self._wandb.anew()
            self._wandb.log(record)

    def rewind(self, step: int) -> None:
        """Training goes back to `step`: what was logged beyond it will be made again."""
        self._back(step)
        if self._wandb:
            self._wandb.anew()

    def _back(self, step: int | None) -> None:
        if step is not None:
            for name in (ROLLOUTS, EVAL):
                _drop_beyond(self.folder / name, step)
        self._metrics.cut(sys.maxsize if step is None else step)
        steps = self.steps()
        self._newest = steps[-1] if steps else {"step": -1}
        self.console.rewind(max(self.last, 0))

    def settle(self) -> None:
        """Have the disk hold the steps so far, before a checkpoint of the last one does."""
        self._metrics.settle()

    def steps(self) -> list[dict[str, Any]]:
        """The steps of the run so far, whether they could be written or not."""
        return _merge([*journal.records(self.folder / METRICS), *self._metrics.waiting])

    def fault(self, step: int, record: Mapping[str, Any]) -> None:
        """Write down, and say, what failed in a step and was mended.

        Args:
            record: `what` (a line for people), and what else is known of it.
        """
        self._faults.append({"step": step} | {key: plain(value) for key, value in record.items()})
        self.say(f"step {step}: {record['what']}")

    @contextlib.contextmanager
    def best_effort(self, what: str) -> Iterator[None]:
        """For what a run can do without: the first failure of its kind is said, none raised."""
        try:
            yield
        except OSError as error:
            if what not in self._failed:
                self._failed.add(what)
                self.say(f"{what} cannot be written: {error.strerror}; the run goes on without it")

    def samples(self, step: int, groups: Sequence[Group], decode: Decode) -> None:
        """Write a few of the step's rollouts with their texts."""
        rows = sample_rows(groups, decode, self.config.samples)
        if rows:
            path = self.folder / ROLLOUTS / f"step-{step}.jsonl"
            text = "".join(json.dumps(row) + "\n" for row in rows)
            with self.best_effort(ROLLOUTS):
                path.parent.mkdir(exist_ok=True)
                atomic(path, text)

    def note(self, text: str) -> None:
        """What is going on right now, beside the progress bar."""
        self.console.note(text)

    def say(self, text: str) -> None:
        """A line that stays, above the progress."""
        self.console.say(text)

    def alarm(self, step: int, name: str, why: str) -> None:
        """Tell people, here and on W&B, that an alarm (trainer/alarms.py) is raised."""
        self.say(f"step {step}: ALARM {name}: {why}")
        if self._wandb:
            self._wandb.alert(f"{self.folder.name}: {name}", f"step {step}: {why}")

    @property
    def last(self) -> int:
        """The last step that was logged; -1 before any."""
        step: int = self._newest["step"]
        return step

    @property
    def newest(self) -> Mapping[str, Any]:
        """The figures of the last step that was logged."""
        return self._newest

    def close(self, at_once: bool = False) -> None:
        """`at_once`: people wait for the process to end, and W&B gets half a second."""
        self._metrics.close()
        self._faults.close()
        if self._wandb:
            self._wandb.finish(HURRY_S if at_once else self.config.wandb_patience)
        self.console.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(at_once=kind is not None and issubclass(kind, KeyboardInterrupt))


def read(folder: Path) -> list[dict[str, Any]]:
    """The steps of a run, in order.

    Raises:
        ValueError: a line is broken (file and line); one that a crash cut off is left out.
    """
    return _merge(journal.records(folder / METRICS))


def _merge(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    steps: dict[int, dict[str, Any]] = {}
    for record in records:
        steps.setdefault(record["step"], {}).update(record)
    return [steps[step] for step in sorted(steps)]


def _drop_beyond(folder: Path, step: int) -> None:
    """Files of later steps: they will be made again."""
    for path in folder.glob("*-*.json*"):
        number = path.stem.rpartition("-")[2]
        if number.isdigit() and int(number) > step:
            with contextlib.suppress(OSError):
                path.unlink()


def plain(value: Any) -> Any:
    """A JSON number: 6 significant digits, NaN and infinities as null."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def sample_rows(groups: Sequence[Group], decode: Decode, count: int) -> list[dict[str, Any]]:
    """Readable rollouts of the first groups: a right and a wrong one of each where there are."""
    picked: list[tuple[Group, int]] = []
    for group in groups:
        right_G = group.correct_GCA[:, -1, 0]
        firsts = {bool(right): i for i, right in reversed(list(enumerate(right_G)))}
        picked += [(group, i) for i in sorted(firsts.values())]
        if len(picked) >= count:
            break
    picked = picked[:count]
    thoughts = decode([group.rollouts[i].thought.ids_T.tolist() for group, i in picked])
    return [_sample(group, i, text) for (group, i), text in zip(picked, thoughts, strict=True)]


def _sample(group: Group, i: int, thought: str) -> dict[str, Any]:
    rollout, prompt, verdict = group.rollouts[i], group.prompt, group.verdicts[i][-1][0]
    return {
        "id": prompt.id,
        "group": group.serial,
        "rollout": i,
        "prompt": prompt.text or "\n".join(m["content"] for m in prompt.messages),
        "thought": thought,
        "text": rollout.final.text,
        "gold": prompt.answer,
        "answer": verdict.answer,
        "status": verdict.status,
        "grader": verdict.grader,
        **({"detail": verdict.detail} if verdict.detail else {}),
        "rewards": {name: plain(r[i, -1, 0]) for name, r in group.rewards.items()},
        "subgroup": rollout.plan.subgroup,
        "think_tokens": rollout.think_tokens,
        "answer_tokens": rollout.answer_tokens,
        "closed": rollout.closed,
        "finish": (rollout.final.tokens if len(rollout.final.tokens) else rollout.thought).finish,
        "version": rollout.oldest_version,
    }
