"""Risk: another run's folder is gone on with, or this very run's is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import disks
from trainer import runfolder
from trainer.config import Recipe, load, resolve, shipped
from trainer.tracking import Tracker


def recipe(output: Path, *settings: str) -> Recipe:
    return load("grpo/find", (f"output={output}", *settings))


def ran(made: Recipe, drop: tuple[str, ...] = ()) -> dict[str, Any]:
    """A finished run's folder; its configuration lacks the fields `drop` of a stage."""
    config = yaml.safe_load(runfolder.resolved(made))
    for path in drop:
        *above, last = path.split(".")
        tree = config["stages"][0]
        for key in above:
            tree = tree[key]
        del tree[last]
    made.folder.mkdir(parents=True, exist_ok=True)
    (made.folder / runfolder.CONFIG).write_text(yaml.safe_dump(config))
    (made.folder / runfolder.DONE).touch()
    return config


def test_a_resolved_recipe_resolves_to_itself() -> None:
    for name in shipped():
        for settings in ((), ("max_staleness=8", "deterministic=false")):
            text = runfolder.resolved(load(name, settings))
            assert runfolder.resolved(resolve(yaml.safe_load(text))) == text, (name, settings)


def test_the_same_run_is_known_and_another_one_refused(tmp_path: Path) -> None:
    ran(recipe(tmp_path))
    assert runfolder.finished(recipe(tmp_path))
    assert runfolder.finished(recipe(tmp_path, "checkpoint.every=3"))
    with pytest.raises(ValueError, match=r"optim\.lr is .* there, 0\.5 here"):
        runfolder.finished(recipe(tmp_path, "optim.lr=0.5"))


def test_a_run_from_before_a_field_was_there_is_the_same(tmp_path: Path) -> None:
    newer = ("max_staleness", "sync", "model.lora", "rollout.in_flight_updates", "loss.importance")
    ran(recipe(tmp_path), drop=newer)
    assert runfolder.finished(recipe(tmp_path))
    with pytest.raises(ValueError, match=r"sync\.bucket_mb is 64 there, 8 here"):
        runfolder.finished(recipe(tmp_path, "sync.bucket_mb=8"))


def test_a_configuration_that_no_version_reads_is_another_run(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    config = ran(made)
    for broken in (config | {"no_such_field": 1}, "text", None):
        (made.folder / runfolder.CONFIG).write_text(yaml.safe_dump(broken))
        with pytest.raises(ValueError, match="another configuration"):
            runfolder.finished(made)


def test_a_full_disk_is_told_before_anything_starts(tmp_path: Path) -> None:
    with disks.small(tmp_path) as (folder, fill):
        made = recipe(folder)
        with runfolder.claim(made.folder):
            fill(True)
            with pytest.raises(ValueError, match=r"cannot be written: .*; nothing was started"):
                runfolder.settle(made, None, {"stage": 0, "first": 0, "step": -1}, print)
        assert not (made.folder / runfolder.CONFIG).exists()
        with runfolder.claim(made.folder):  # its lock needs no room
            pass
        fill(False)


def test_the_disk_holds_a_step_before_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without power the checkpoint would go on from a step that metrics.jsonl lacks."""
    made, flushed, real = recipe(tmp_path), list[str](), os.fsync

    def fsync(number: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        real(number)

    made.folder.mkdir()
    with Tracker(made.folder, made.tracking) as tracker:
        tracker.log(1, {"x": 1})
        monkeypatch.setattr(os, "fsync", fsync)
        state = {"stage": 0, "step": 1}
        folder = runfolder.keeper(made, made.folder, tracker).save(
            1, lambda part: None, state, tracker.newest
        )
    assert folder is not None
    assert flushed[0] == "metrics.jsonl"
    assert "COMPLETE.partial" in flushed
