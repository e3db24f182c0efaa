"""A disk that takes no more: the last checkpoint stays, people are told, training goes on."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launch.run import written
from tests.kept import Disk, disk, fill, state
from trainer import checkpoint
from trainer.checkpoint import CheckpointConfig, Keeper, keeper
from trainer.faults import Unmended
from trainer.together import disk_error

SIZE = 400_000
FULL = r"(No space left on device|File too large): .*"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Disk]:
    with disk(tmp_path / "disk", 4 * SIZE) as made:
        yield made


class Run:
    def __init__(self, root: Path, **config: Any) -> None:
        self.said: list[str] = []
        self.keeper = Keeper(root, CheckpointConfig(**config), self.said.append)

    def save(self, step: int, **how: Any) -> Path | None:
        return self.keeper.save(step, partial(fill, size=SIZE), state(step), {}, **how)


def whole(root: Path, *steps: int) -> None:
    """These are there, they are intact, and nothing is left of any other."""
    assert [checkpoint.step_of(folder) for folder in checkpoint.complete(root)] == [*steps]
    assert not any(checkpoint.damage(folder) for folder in checkpoint.complete(root))
    assert {path.name for path in root.iterdir()} == {f"step-{step:06d}" for step in steps}


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(small: Disk, told: Any) -> None:
    root = small.folder / "checkpoints"
    run = Run(root, keep=1)
    assert run.save(20, due=40)
    small.crowd(SIZE * 95 // 100)  # seems enough, and is not
    assert run.save(40, due=60) is None
    whole(root, 20)
    small.relieve()
    small.crowd(SIZE // 2)
    writes: list[Path] = []
    if small.mounted:  # clearly too little: not even tried
        assert run.keeper.save(60, writes.append, state(60), {}, due=80) is None
        assert not writes
        told(run.said.pop(), r"step 60: .*\d+ kB needed, \d+ kB free\); .* before step 80")
    small.relieve()
    assert run.save(80)
    whole(root, 80)
    told(
        run.said[0],
        rf"step 40: the checkpoint could not be written \({FULL}\); training goes on from memory, "
        r"the last checkpoint is step 20; .* before step 60",
    )
    told(run.said[1], "step 80: the checkpoint is written")
    assert len(run.said) == 2


@pytest.fixture
def told() -> Any:
    import re

    def check(text: str, pattern: str) -> None:
        assert re.fullmatch(pattern, text), text
        assert "\n" not in text

    return check


def test_the_run_may_be_told_to_stop(small: Disk) -> None:
    run = Run(small.folder / "checkpoints", on_error="stop")
    run.save(20)
    small.crowd(SIZE // 2)
    with pytest.raises(ValueError, match=rf"step 40: .*{FULL}; the last .* step 20; .* resume /"):
        run.save(40, due=60)
    small.relieve()
    whole(small.folder / "checkpoints", 20)
    assert not run.said


def test_the_last_one_is_tried_until_there_is_room(
    small: Disk, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    run, waits = Run(small.folder / "checkpoints", keep=1), []
    run.save(20)
    small.crowd(SIZE // 2)
    run.save(30, due=40)
    run.said.clear()

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            small.relieve()

    monkeypatch.setattr(keeper.time, "sleep", wait)
    assert run.save(40, last=True)
    assert waits == [keeper.PAUSE_S] * 3
    whole(small.folder / "checkpoints", 40)
    told(run.said[0], r"step 40: .*; it ends the stage, and is tried again for 600 s; .*step 20.*")
    told(run.said[1], "step 40: the checkpoint is written")
    assert len(run.said) == 2, "said once"


def test_patience_ends(small: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(small.folder / "checkpoints", patience=0.0)
    run.save(20)
    small.crowd(SIZE // 2)
    with pytest.raises(ValueError, match=r"in 0 s; the last checkpoint is step 20"):
        run.save(40, last=True)
    patient = Run(small.folder / "checkpoints", on_error="stop")
    assert patient.save(40, last=True, enough=lambda: True) is None, "the run is to end now"
    assert patient.said[0].endswith("the last checkpoint is step 20")
    small.relieve()
    whole(small.folder / "checkpoints", 20)


def test_a_read_only_disk(small: Disk) -> None:
    root = small.folder / "checkpoints"
    run = Run(root, keep=1)
    run.save(20)
    with small.read_only():
        assert run.save(40, due=60) is None
        assert checkpoint.intact(root) == root / "step-000020"
    assert "before step 60" in run.said[0]
    run.save(60)
    whole(root, 60)


def test_a_folder_that_was_taken_away(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    run = Run(tmp_path / "run" / "checkpoints")
    run.save(20)
    shutil.move(tmp_path / "run", tmp_path / "gone")
    assert run.save(40, due=60) is None
    assert "No such file or directory" in run.said[0]
    assert "there is none; make it writable before step 60" in run.said[0]
    shutil.move(tmp_path / "gone", tmp_path / "run")
    assert run.save(60)


def test_what_learners_raise_through_ray_is_understood(tmp_path: Path) -> None:
    class TaskError(Exception):
        def __init__(self, cause: Exception) -> None:
            self.cause = cause

    full = OSError(errno.ENOSPC, "rank 1: No space left on device", "/x/rank1")
    nested = RuntimeError("save")
    nested.__cause__ = full
    run = Run(tmp_path / "checkpoints")
    for error in (full, TaskError(full), nested, TaskError(nested)):
        assert run.keeper.save(1, raising(error), state(1), {}, due=2) is None
        assert "(rank 1: No space left on device: /x/rank1);" in run.said.pop()
    quota = disk_error(Exception("I/O error: Disk quota exceeded (os error 122)"), tmp_path)
    for error in (quota, TaskError(quota)):
        assert run.keeper.save(1, raising(error), state(1), {}, due=2) is None
        assert run.said.pop().endswith("there is none; free space before step 2")
    other = FileNotFoundError(errno.ENOENT, "gone", "/model/tokenizer.json")
    for mistake in (ValueError("a defect"), other, TaskError(other), OSError("no number")):
        with pytest.raises(type(mistake)):
            run.keeper.save(1, raising(mistake), state(1), {}, due=2)
        assert not list((tmp_path / "checkpoints").iterdir())
    assert not run.said


def raising(error: Exception) -> Any:
    def write(folder: Path) -> None:
        (folder / "half").write_text("of it")
        raise error

    return write


def test_an_old_one_that_cannot_be_removed_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, remove = Run(tmp_path / "checkpoints", keep=1), shutil.rmtree

    def refuse(path: Path, **how: Any) -> None:
        if Path(path).name == "step-000001":
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        remove(path, **how)

    run.save(1)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert run.save(2)
    assert run.save(3)
    root = tmp_path / "checkpoints"
    assert checkpoint.complete(root) == [root / "step-000003"], "unmarked, it does not count"
    (said,) = run.said
    assert "step 2: an older checkpoint could not be removed (Operation not permitted" in said
    monkeypatch.undo()
    run.save(4)
    whole(root, 4)


def test_no_room_for_what_a_stage_begins_with_ends_the_run_in_one_line(
    small: Disk, tmp_path: Path, told: Any
) -> None:
    (tmp_path / "model").mkdir()
    for name in ("a", "b"):
        (tmp_path / "model" / name).write_bytes(b"x" * SIZE)
    small.crowd(SIZE // 2)
    part = small.folder / "start-1.part"
    for make in (
        lambda: shutil.copytree(tmp_path / "model", part, dirs_exist_ok=True),
        lambda: (small.folder / "examples.jsonl").write_bytes(b"x" * SIZE),
    ):
        with pytest.raises(Unmended) as ended, written(small.folder):
            make()
        told(str(ended.value), r".*(No space left on device|File too large).*; .*")
    with pytest.raises(FileNotFoundError), written(small.folder):  # a mistake, not the disk's
        (tmp_path / "none").read_text()
