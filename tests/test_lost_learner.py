"""A learner is killed: the run goes back to its last checkpoint, and equals one undisturbed."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import psutil
import pytest

from tests import killing
from tests.killing import Kill, Running

TWO_STAGES = (
    "learner.ranks=1",
    "rollout.workers=1",
    "stages.0.steps=1",
    "stages.0.model.path=base/find",
    "stages.0.supervised={batch_tokens: 512, pool: 16, "
    "traces: {name: shortest_correct, prompts: 32, samples: 4}}",
    "stages.0.evaluation=null",
    "stages.1.steps=3",
    "stages.1.evaluation={every: 2, problems: 8, budgets: [8, 24], answer_tokens: 4}",
)
KILLS = (
    Kill("learner", "step", 2, 0.0),  # before the second stage's first checkpoint
    Kill("learner", "loaded", 2, 0.02),  # during an evaluation
)


@pytest.mark.slow
def test_weights_and_all_the_rest_are_those_of_a_run_undisturbed(tmp_path: Path) -> None:
    whole = killing.undisturbed("stages", tmp_path / "whole", *TWO_STAGES)
    assert killing.faults(whole.folder) == []

    (tmp_path / "lost").mkdir()
    words = killing.words("stages", tmp_path / "lost", *TWO_STAGES)
    run, pick = Running(["train", *words], tmp_path / "lost" / "run-seed0"), random.Random(0)
    assert run.wait(lambda: "the chat template" in run.text())  # it makes its examples
    _kill(run.of("learner")[:1])
    for kill in KILLS:
        assert run.kill(kill, pick), run.text()
    assert run.end() == 0, run.text()
    found = killing.differences(whole.folder, run.folder)
    assert [line for line in found if ": steps [" not in line] == []
    assert killing.steps(run.folder) == killing.steps(whole.folder)  # a border of stages has two
    lost = [fault for fault in killing.faults(run.folder) if fault["role"] == "learner"]
    assert len(lost) == 1 + len(KILLS)
    assert all("learners were started anew" in fault["what"] for fault in lost)


@pytest.mark.slow
def test_a_run_that_is_to_end_while_learners_start_anew_ends(tmp_path: Path) -> None:
    words = killing.words("plain", tmp_path, "learner.ranks=1", "rollout.workers=1")
    run = Running(["train", *words], tmp_path / "run-seed0")
    assert run.wait(lambda: run.reached("step", 0))
    lost = run.of("learner")
    _kill(lost)
    assert run.wait(lambda: run.of("learner") not in ([], lost))
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 143, run.text()
    assert "there is no checkpoint yet" in run.text()
    assert "Traceback" not in run.text()


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
    assert "not mended" in killing.faults(run.folder)[-1]["what"]
    resumed = Running(["resume", str(run.folder)], run.folder)
    assert resumed.end() == 0, resumed.text()
    assert killing.steps(run.folder) == [1, 2, 3]


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
