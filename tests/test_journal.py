"""Risk: a disk that is full, or cannot be written, stops a run or tears what it has recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import disks
from tests.screens import console, said
from trainer import journal, tracking
from trainer.journal import Journal
from trainer.tracking import Tracker, TrackingConfig

PLAIN = TrackingConfig()


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_full_disk_keeps_steps_in_memory_until_there_is_room(tmp_path: Path) -> None:
    screen, stream = console()
    with disks.small(tmp_path) as (folder, fill), Tracker(folder, PLAIN, console=screen) as tracker:
        whole = folder / "metrics.jsonl"
        tracker.log(0, {"x": 0})
        fill(True)
        for step in range(1, 60):  # more than what is left of a page
            tracker.log(step, {"x": "y" * 100})
        for line in whole.read_text().splitlines():
            json.loads(line)
        assert steps(whole)[-1] < 59
        assert tracker.steps()[-1]["step"] == 59
        fill(False)
        tracker.log(60, {"x": 60})
        assert steps(whole) == list(range(61))
    first, second = said(stream)
    assert first.startswith("metrics.jsonl cannot be written: ")
    assert first.endswith("; 1 steps are kept in memory until there is room")
    assert second == "metrics.jsonl is whole again"


def test_half_a_line_is_taken_back(tmp_path: Path) -> None:
    told: list[str] = []
    lines = Journal(tmp_path / "metrics.jsonl", "steps", told.append)
    lines.append({"step": 0})
    before = lines.path.read_bytes()
    disks.limit(len(before) + 7)
    try:
        for step in (1, 2):
            lines.append({"step": step, "x": "y" * 100})
            assert lines.path.read_bytes() == before
    finally:
        disks.limit(None)
    lines.append({"step": 3})
    lines.close()
    assert steps(lines.path) == [0, 1, 2, 3]
    assert [t.split(":")[0] for t in told] == [
        "metrics.jsonl cannot be written",
        "metrics.jsonl is whole again",
    ]


def test_what_is_lost_in_the_end_is_told(tmp_path: Path) -> None:
    screen, stream = console()
    with disks.small(tmp_path) as (folder, _):
        with Tracker(folder, PLAIN, console=screen) as tracker:
            tracker.log(4, {"x": 0})
            tracker._metrics.close()  # an open file would keep the disk from becoming read-only
            disks.read_only(folder, True)
            for step in (5, 6, 7):
                tracker.log(step, {"x": 0})
            tracker.samples(7, [], lambda ids: [])
        assert steps(folder / "metrics.jsonl") == [4]
        disks.read_only(folder, False)
    first, last = said(stream)
    assert "1 steps are kept in memory" in first
    assert last.startswith("metrics.jsonl lacks 3 steps (5-7): ")


def test_what_a_run_can_do_without_is_left_out_and_said_once(tmp_path: Path) -> None:
    screen, stream = console()
    with disks.small(tmp_path) as (folder, fill), Tracker(folder, PLAIN, console=screen) as tracker:
        (folder / "eval").mkdir()
        fill(True)
        for step in (1, 2):
            with tracker.best_effort("eval/ results"):
                journal.atomic(folder / "eval" / f"step-{step}.json", "x" * 9000)
            with tracker.best_effort("rollouts/ samples"):
                journal.atomic(folder / f"step-{step}.jsonl", "x" * 9000)
        assert not list((folder / "eval").iterdir())
        fill(False)
    assert [line.split(":")[0] for line in said(stream)] == [
        "eval/ results cannot be written",
        "rollouts/ samples cannot be written",
    ]


def test_small_files_are_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    journal.atomic(path, "old")
    disks.limit(2)
    try:
        journal.atomic(path, "old")  # nothing to write
        with pytest.raises(OSError, match="File too large"):
            journal.atomic(path, "new and longer")
    finally:
        disks.limit(None)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_rewind_drops_what_was_logged_beyond(tmp_path: Path) -> None:
    screen, _ = console()

    def log(tracker: Tracker, first: int) -> None:
        for step in range(first, 6):
            tracker.log(step, {"x": step / 7})
            for name in ("rollouts/step-{}.jsonl", "eval/step-{}.json", "eval/asked-{}.jsonl"):
                path = tmp_path / name.format(step)
                path.parent.mkdir(exist_ok=True)
                path.write_text("")
            tracker.log(step, {"eval/accuracy": 0.5})

    with Tracker(tmp_path, PLAIN, console=screen) as tracker:
        log(tracker, 0)
        before = (tmp_path / "metrics.jsonl").read_bytes()
        tracker.rewind(2)
        assert tracker.last == 2
        assert tracker.newest == {"step": 2, "x": 0.285714, "eval/accuracy": 0.5}
        assert [s["step"] for s in tracking.read(tmp_path)] == [0, 1, 2]
        left = {p.name for folder in ("rollouts", "eval") for p in (tmp_path / folder).iterdir()}
        assert left == {f"{n}-{i}.json{e}" for i in range(3) for n, e in
                        (("step", "l"), ("step", ""), ("asked", "l"))}  # fmt: skip
        log(tracker, 3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_rewind_on_a_full_disk(tmp_path: Path) -> None:
    screen, _ = console()
    with disks.small(tmp_path) as (folder, fill):
        with Tracker(folder, PLAIN, console=screen) as tracker:
            for step in range(3):
                tracker.log(step, {"x": "a" * 9000})
            fill(True)
            for step in range(3, 6):
                tracker.log(step, {"x": "a" * 9000})
            tracker.rewind(4)
            assert [s["step"] for s in tracker.steps()] == [0, 1, 2, 3, 4]
            tracker.rewind(1)
            assert [s["step"] for s in tracker.steps()] == [0, 1]
            fill(False)
            tracker.log(2, {"x": "b"})
        assert [s["x"][0] for s in tracking.read(folder)] == ["a", "a", "b"]


def test_faults_are_written_down_and_said(tmp_path: Path) -> None:
    screen, stream = console()
    with Tracker(tmp_path, PLAIN, console=screen) as tracker:
        tracker.fault(7, {"role": "rollout", "index": 0, "what": "engine 0 died", "seconds": 1.5})
        tracker.rewind(3)
    assert journal.records(tmp_path / "faults.jsonl") == [
        {"step": 7, "role": "rollout", "index": 0, "what": "engine 0 died", "seconds": 1.5}
    ]
    assert "step 7: engine 0 died" in stream.getvalue()
