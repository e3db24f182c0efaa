"""A run's record. `metrics.jsonl` is the truth; W&B and the console are views of it.

The driver owns it: one process, one writer, one object per step.
"""

from __future__ import annotations

import json
import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from pydantic import Field

from samplers.seam import Component
from samplers.types import Group
from trainer.console import Console

if TYPE_CHECKING:
    from trainer.config import Recipe

METRICS = "metrics.jsonl"
WANDB_ID = "wandb-id.txt"
Decode = Callable[[Sequence[Sequence[int]]], list[str]]


class TrackingConfig(Component):
    """What is written about a run besides metrics.jsonl."""

    wandb: Literal["off", "offline", "online"] = "off"
    """Send metrics to Weights & Biases too. offline: into the run folder, for `wandb sync`."""
    project: str = "laconic"
    """W&B project."""
    samples: int = Field(default=4, ge=0)
    """Rollouts written to rollouts/step-N.jsonl at each step, to be read by people."""
    wandb_patience: float = Field(default=20.0, gt=0)
    """Seconds W&B may take to start and to finish before the run goes on without it."""


class Tracker:
    """Writes the record of a run to its folder. A context manager; else call `close`.

    Args:
        recipe: the run, for W&B and for progress.
        first_step: the run goes on after this step: what was logged beyond it is dropped, since it
            will be made again. None keeps all that is there.
        console: where progress is shown; by default standard output.
    """

    def __init__(
        self,
        folder: Path,
        config: TrackingConfig,
        recipe: Recipe | None = None,
        *,
        first_step: int | None = None,
        console: Console | None = None,
    ) -> None:
        self.folder, self.config = folder, config
        folder.mkdir(parents=True, exist_ok=True)
        self._newest = _trim(folder / METRICS, first_step)
        self.last: int = self._newest["step"]
        self._stream: IO[str] = (folder / METRICS).open("a", encoding="utf-8")
        self._process = os.getpid()
        total = sum(stage.steps for stage in recipe.stages) if recipe else 0
        self.console = console or Console(total, folder.name, done=max(self.last, 0))
        self._wandb = None if config.wandb == "off" else _Wandb(folder, config, recipe)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one step. Of a step that is already there, only what is new is added."""
        if step < self.last:
            return
        known = self._newest if step == self.last else {"step": step}
        metrics = {name: value for name, value in metrics.items() if name not in known}
        if metrics or step > self.last:
            self.last, self._newest = step, known | metrics
            self._write(step, metrics)

    def _write(self, step: int, metrics: Mapping[str, Any]) -> None:
        assert os.getpid() == self._process, "the tracker belongs to the driver process"
        record = {"step": step} | {name: plain(value) for name, value in metrics.items()}
        self._stream.write(json.dumps(record, allow_nan=False) + "\n")
        self._stream.flush()
        self.console.step(record)
        if self._wandb:
            self._wandb.log(step, record)

    def samples(self, step: int, groups: Sequence[Group], decode: Decode) -> None:
        """Write a few of the step's rollouts with their texts."""
        rows = sample_rows(groups, decode, self.config.samples)
        if rows:
            path = self.folder / "rollouts" / f"step-{step}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

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
    def newest(self) -> Mapping[str, Any]:
        """The figures of the last step that was logged."""
        return self._newest

    def close(self) -> None:
        self._stream.close()
        self.console.close()
        if self._wandb:
            self._wandb.finish()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(folder: Path) -> list[dict[str, Any]]:
    """The steps of a run, in order.

    Raises:
        ValueError: a line is broken (file and line); one that a crash cut off is left out.
    """
    return _merge(_records(folder / METRICS))


def _merge(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    steps: dict[int, dict[str, Any]] = {}
    for record in records:
        steps.setdefault(record["step"], {}).update(record)
    return [steps[step] for step in sorted(steps)]


def _records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(
                f"{path}:{number}: broken JSON; remove the line to go on without that step"
            ) from None
    return records


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


def _trim(path: Path, first_step: int | None) -> dict[str, Any]:
    """Drop what is beyond `first_step` and a line cut off by a crash; the last step left."""
    records = _records(path)
    kept = [r for r in records if first_step is None or r["step"] <= first_step]
    text = "".join(json.dumps(r) + "\n" for r in kept)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        beside = path.with_suffix(".partial")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    return _merge(kept)[-1] if kept else {"step": -1}


class _Wandb:
    """W&B as a sink that can only fail once: then it warns, and the run goes on without it."""

    def __init__(self, folder: Path, config: TrackingConfig, recipe: Recipe | None) -> None:
        self._folder, self._patience = folder, config.wandb_patience
        self._known: dict[str, Any] = {"project": config.project, "name": folder.name}
        if recipe is not None:
            self._known |= {"group": recipe.name, "config": recipe.model_dump(mode="json")}
        self._run: Any = None
        try:
            self._run = self._start(config.wandb)
        except Exception as error:
            if config.wandb != "online":
                self._give_up(error)
                return
            self._give_up(error, "metrics go to an offline run; send them with `wandb sync`")
            self._try(self._start_offline)

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        if self._run is not None:
            known = {k: v for k, v in record.items() if v is not None and k != "step"}
            self._try(lambda: self._run.log(known, step=step))

    def alert(self, title: str, text: str) -> None:
        if self._run is not None:
            self._try(lambda: self._run.alert(title=title, text=text, level="WARN"))

    def finish(self) -> None:
        """Wait for the upload at most `wandb_patience` seconds; the files stay for `wandb sync`."""
        if self._run is None:
            return
        run, self._run = self._run, None
        closing = threading.Thread(target=_quietly(run.finish), daemon=True)
        closing.start()
        closing.join(self._patience)
        if closing.is_alive():
            warnings.warn(
                f"W&B did not finish within {self._patience:g} s; the rest is in {run.dir}: send "
                "it with `wandb sync`",
                stacklevel=3,
            )

    def _start(self, mode: Any) -> Any:
        import wandb

        kept = self._folder / WANDB_ID
        known = kept.read_text().strip() if kept.is_file() else None
        patience = {"init_timeout": self._patience}
        if "finish_timeout" in getattr(wandb.Settings, "model_fields", {}):  # newer than 0.18
            patience["finish_timeout"] = self._patience
        run = wandb.init(
            **self._known,
            id=known,
            resume="allow" if known else None,
            dir=str(self._folder),
            mode=mode,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, **patience),
        )
        kept.write_text(run.id + "\n")
        return run

    def _start_offline(self) -> None:
        self._run = self._start("offline")

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            self._run = None
            self._give_up(error)

    @staticmethod
    def _give_up(error: Exception, then: str = "metrics.jsonl goes on without it") -> None:
        first = str(error).strip().splitlines()[:1] or [""]
        warnings.warn(f"W&B: {type(error).__name__}: {first[0]}; {then}", stacklevel=4)


def _quietly(action: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        try:
            action()
        except Exception as error:
            _Wandb._give_up(error)

    return run
