"""A learner is killed: the run goes back to its last checkpoint, and equals one undisturbed."""

from __future__ import annotations

import random
from pathlib import Path

import psutil
import pytest

from tests import killing
from tests.killing import Kill, Running

QUICK = ("steps=4", "evaluation={every: 2, problems: 8, budgets: [8, 24], answer_tokens: 4}")
KILLS = (  # before the first checkpoint and after it
    [
        Kill("learner", "step", 0, 0.1),
        Kill("learner", "step", 3, 0.0),
    ],
    [Kill("learner", "loading", 2, 0.01)],  # with the weights on their way
)


@pytest.mark.slow
def test_weights_and_all_the_rest_are_those_of_a_run_undisturbed(tmp_path: Path) -> None:
    whole = killing.undisturbed("plain", tmp_path / "whole", *QUICK)
    assert killing.faults(whole.folder) == []
    for i, kills in enumerate(KILLS):
        told = killing.disturbed("plain", tmp_path / str(i), kills, *QUICK)
        assert len(told.kills) == len(kills), told.output
        assert len(told.output) == 1, "nobody had to resume it"
        assert killing.differences(whole.folder, told.folder) == []
        lost = [fault for fault in killing.faults(told.folder) if fault["role"] == "learner"]
        assert len(lost) == len(kills)
        assert all("learners were started anew" in fault["what"] for fault in lost)


@pytest.mark.slow
def test_a_run_that_loses_learners_again_and_again_ends_with_a_line_and_can_go_on(
    tmp_path: Path,
) -> None:
    limits = ("checkpoint.every=1", "faults.restarts=1", "evaluation=null", "steps=3")
    limits += ("learner.ranks=1", "rollout.workers=1")
    words = killing.words("plain", tmp_path, *limits)
    run = Running(["train", *words], tmp_path / "run-seed0")
    pick = random.Random(0)
    assert run.kill(Kill("learner", "step", 2), pick)
    for _ in range(3):
        assert run.wait(lambda: run.of("learner"), 60) or run.process.poll() is not None
        _kill(run.of("learner"))
    assert run.end() == 1
    said = [line for line in run.text().splitlines() if line.startswith("laconic: ")]
    assert len(said) == 1, run.text()
    for part in ("learner rank", "faults.restarts=1", "out (dmesg", "laconic resume", "step-00000"):
        assert part in said[0]
    assert "Traceback" not in run.text()
    resumed = Running(["resume", str(run.folder)], run.folder)
    assert resumed.end() == 0, resumed.text()
    assert killing.steps(run.folder) == [1, 2, 3]


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
