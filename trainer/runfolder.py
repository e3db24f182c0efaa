"""A run's folder: whose it is, whether it is finished, with which configuration, how it goes on."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import yaml

from trainer import changes, checkpoint
from trainer.changes import At, Change
from trainer.checkpoint import Keeper
from trainer.config import Recipe, resolve
from trainer.journal import atomic
from trainer.tracking import Tracker

CONFIG, DONE, LOCK, RESUMES = "config.yaml", "DONE", ".lock", "resumes.jsonl"
KEPT_CONFIG = "recipe.yaml"
"""The same in a checkpoint; a folder with config.yaml is a run's."""
_MAKES = {"kind", "model", "thinking", "data", "dataset", "verifier", "grader", "code", "budget"}
_MAKES |= {"rollout", "supervised"}
"""Of a stage: what the model that it begins with, and its own examples, are made by."""


class InUseError(ValueError):
    """Another process, `owner`, holds the folder."""

    def __init__(self, folder: Path, owner: str, other: str) -> None:
        super().__init__(
            f"{folder} is in use by {owner}; wait for it, stop it, or choose another {other}"
        )
        self.owner = owner


def resolved(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML: what config.yaml holds."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def stored(folder: Path, kept: Path | None = None) -> Recipe:
    """The recipe of the run in `folder`, with the defaults of fields that are newer than it.

    Args:
        kept: a checkpoint of the run, if it is to be the recipe that this was made with.

    Raises:
        ValueError: its config.yaml is broken, or of a version that knew other fields.
    """
    path = kept / KEPT_CONFIG if kept and (kept / KEPT_CONFIG).is_file() else folder / CONFIG
    with warnings.catch_warnings():  # said when the run began
        warnings.simplefilter("ignore")
        try:
            return resolve(yaml.safe_load(path.read_text())).within(folder)
        except (OSError, yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
            why = " ".join(str(error).split())
    version = changes.recorded(folder)[0].get("laconic", "of another version")
    raise ValueError(
        f"{path} is not a recipe that this version reads ({why}); mend what it names, or restore "
        f"the file (laconic {version} wrote it)"
    )


def keeper(recipe: Recipe, folder: Path, tracker: Tracker) -> Keeper:
    """What makes the checkpoints of the run, each with its recipe and the facts of its start."""
    return Keeper(
        folder / "checkpoints",
        recipe.checkpoint,
        tracker.say,
        about={"facts": dict(sorted(changes.recorded(folder)[0].items()))},
        texts={KEPT_CONFIG: resolved(recipe)},
        steps=tracker.steps,
        before=tracker.settle,
    )


def finished(recipe: Recipe) -> bool:
    """Whether this very run is already done.

    Raises:
        ValueError: as `same`.
    """
    same(recipe)
    return (recipe.folder / DONE).is_file()


def same(recipe: Recipe) -> None:
    """Refuse a folder with the results of another configuration; an attempt without any may go.

    Raises:
        ValueError: it holds a finished run, or checkpoints, of another configuration (apart from
            fields that move no number).
    """
    folder = recipe.folder
    newest = checkpoint.intact(folder / "checkpoints", "driver")  # all of it before it is loaded
    if not (folder / DONE).is_file() and newest is None:
        return
    choose = "choose another output=... or name=..., or remove the folder"
    try:
        before = stored(folder)
    except ValueError as error:
        raise ValueError(
            f"{folder} holds a run with another configuration: {error}; {choose}"
        ) from None
    at = At.of(checkpoint.driver_state(newest)) if newest else At(0, 0)
    found = [c for c in changes.compare(before, recipe, at, {}, {}) if c.verdict != "free"]
    if not found:
        return
    one = found[0]
    why = f"{one.field} is {one.old!r} there, {one.new!r} here"
    way = _resume(recipe, found) if newest else ""
    raise ValueError(f"{folder} holds a run with another configuration ({why}); {way}{choose}")


def _resume(recipe: Recipe, found: list[Change]) -> str:
    """The command that goes on with the changes, where one may and it can be written."""
    named = tuple(c.field.removesuffix("name") for c in found if c.field.endswith(".name"))
    words = {}
    for change in found:
        field, value = change.field, change.new
        if value == changes.LEFT_OUT and field.startswith(named):  # another has none of it
            continue
        if change.verdict == "refused" or value == changes.LEFT_OUT or "shaping" in field:
            return ""
        words[field] = f"{field}={json.dumps(value)}"
    command = shlex.join([str(recipe.folder), *words.values()])
    return f"to go on with the change: laconic resume {command}; or "


def settle(
    recipe: Recipe, newest: Path | None, state: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Make the folder that of `recipe`, which goes on from the checkpoint `newest` at `state`.

    What has changed since is said and noted in resumes.jsonl: in the recipe, in its data and
    model, in software and machine.

    Raises:
        ValueError: a change with which it would go on wrongly; then nothing is written.
    """
    folder, found, step = recipe.folder, list[Change](), 0
    now = changes.facts(recipe, state["stage"])
    if newest:
        step = state["first"] + state["step"]
        known = checkpoint.manifest(newest).get("facts") or changes.recorded(folder)[0]
        was = {**known, **changes.of_state(state)}
        are = {**changes.versions(), **now}
        found = changes.compare(_trained(folder, newest), recipe, At.of(state), was, are)
        changes.weigh(found, folder, recipe)
    if again := (folder / CONFIG).is_file():
        where = f"goes on from step {step}" if newest else "has no checkpoint yet, and begins anew"
        say(f"{folder} {where}")
        for line in changes.told(found):
            say(line)
        if not changes.same_bits(found, recipe):
            say(f"from step {step} on the run is no longer, bit for bit, that of one recipe")
    kept = changes.recorded(folder)[0]  # of stages that are over
    for index in _stale(recipe, state, found):
        now.pop(f"stages.{index}.examples", None)
        for made in (folder / f"start-{index}", folder / f"traces-{index}"):
            shutil.rmtree(made, ignore_errors=True)
    try:
        if again:
            _note(folder, step, newest, found)
        (folder / DONE).unlink(missing_ok=True)  # it may have been given more steps
        atomic(folder / CONFIG, resolved(recipe))
        changes.write(folder, {n: t for n, t in kept.items() if n.startswith("stages.")} | now)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written: {error.strerror}; nothing was started and nothing is "
            "lost: make room there and give the command again"
        ) from None


def _trained(folder: Path, newest: Path) -> Recipe:
    """The recipe that the checkpoint was made with: config.yaml may have been edited since. Of one
    that this version cannot read, config.yaml has been mended."""
    try:
        return stored(folder, newest)
    except ValueError:
        return stored(folder)


def _stale(recipe: Recipe, state: Mapping[str, Any], found: list[Change]) -> list[int]:
    """Later stages whose beginning was made of what is trained anew now, or otherwise than now."""
    at = state["stage"]
    anew = state["step"] < recipe.stages[at].steps
    parts = (change.field.split(".") for change in found)
    changed = {p[1] for p in parts if p[0] == "stages" and p[2:3] and p[2] in _MAKES}
    return [i for i in range(at + 1, len(recipe.stages)) if anew or str(i) in changed]


def _note(folder: Path, step: int, newest: Path | None, found: list[Change]) -> None:
    """One line in resumes.jsonl."""
    told: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    for change in found:
        told[change.fact][change.field] = [change.old, change.new]
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "checkpoint": newest.name if newest else None,
        "changes": told[False],
        "facts": told[True],
    }
    path = folder / RESUMES
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    atomic(path, before[: before.rfind("\n") + 1] + json.dumps(line) + "\n")  # not half a line


@contextmanager
def claim(folder: Path, other: str = "output=... or seed=...") -> Iterator[None]:
    """Hold the folder for this process. The system drops the lock of a process that dies.

    Args:
        other: what chooses another folder.

    Raises:
        InUseError: another process holds it.
        ValueError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+")
    except OSError as error:
        why = f"{folder} cannot be written: {error.strerror}"
        raise ValueError(f"{why}; choose another {other}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise InUseError(folder, lock.read().strip() or "another process", other) from None
        _owner(lock, f"process {os.getpid()} on {socket.gethostname()}\n")
        try:
            yield
        finally:
            _owner(lock, "")
            fcntl.flock(lock, fcntl.LOCK_UN)


def _owner(lock: IO[str], text: str) -> None:
    """Say who holds the folder, if there is room to: the lock itself needs none."""
    with suppress(OSError):
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), text.encode())
