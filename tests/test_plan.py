"""`laconic plan`: what it prints is what would run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from launch.plan import plan
from trainer.config import load, shipped

GRPO = ["rollout.max_tokens=150", "prompts_per_step=6", "rollouts_per_prompt=4"]


def line(text: str, start: str) -> str:
    """The one line of `text` that begins so."""
    lines = [" ".join(part.split()) for part in text.splitlines()]
    (found,) = [part for part in lines if part.startswith(start)]
    return found


@pytest.mark.parametrize("name", shipped())
def test_the_resolved_recipe_is_a_recipe_that_resolves_to_itself(name: str, tmp_path: Path) -> None:
    resolved = plan(name).split("# Stage 0")[0]
    file = tmp_path / "resolved.yaml"
    file.write_text(resolved)
    assert load(file) == load(name)


def test_sizes_of_a_step() -> None:
    text = plan("grpo/find", [*GRPO, "updates_per_batch=3", "epochs=2"])
    assert line(text, "rollouts ") == "rollouts 24 (4 per prompt)"
    assert line(text, "response tokens") == "response tokens at most 3,600 (150 per rollout)"
    assert line(text, "optimiser steps") == "optimiser steps 6"


def test_processes_and_logical_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["learner.ranks=2", "rollout.workers=3", "grader.workers=1"]
    text = plan("grpo/find", settings)
    assert line(text, "learner 2") == "learner 2 x (1 CPU), placed PACK"
    assert line(text, "rollout 3") == "rollout 3 x (1 CPU), placed SPREAD"
    assert "Ray's logical CPUs: 6;" in text
    monkeypatch.setattr("launch.plan.gpus", lambda: ["H100"] * 5)
    assert (
        line(plan("grpo/find", settings), "learner 2") == "learner 2 x (1 CPU, 1 GPU), placed PACK"
    )
    monkeypatch.setattr("launch.plan.gpus", lambda: ["H100"] * 4)
    with pytest.raises(ValueError, match="need 5 GPUs"):
        plan("grpo/find", settings)


def _mib(text: str, part: str) -> float:
    """A figure of the learner's line, in MiB."""
    found = re.search(rf"{part} ([\d.]+) (MiB|GiB)", line(text, "learner 1."))
    assert found
    return float(found[1]) * (1024 if found[2] == "GiB" else 1)


def test_memory_of_the_learner_follows_from_the_weights_on_disk() -> None:
    """299,520 parameters: fp32 weights and gradients 4 bytes each, two fp32 moments."""
    text = plan("grpo/find")
    assert "299,520 parameters, float32" in text
    mib = 299_520 / 2**20
    expected = {"weights": 4 * mib, "gradients": 4 * mib, "optimiser": 8 * mib}
    for part, size in expected.items():
        assert _mib(text, part) == pytest.approx(size, abs=0.05)


def test_zero_divides_what_it_partitions() -> None:
    each = ["model.dtype=bfloat16", "rollout.engine.dtype=bfloat16", "learner.ranks=4"]
    mib = 299_520 / 2**20
    divided = {0: (1, 1, 1), 1: (1, 1, 4), 2: (1, 4, 4), 3: (4, 4, 4)}
    for zero, by in divided.items():
        text = plan("grpo/find", [*each, f"learner.zero={zero}"])
        sizes = [2 * mib / by[0], 2 * mib / by[1], 12 * mib / by[2]]
        got = [_mib(text, part) for part in ("weights", "gradients", "optimiser")]
        assert got == pytest.approx(sizes, abs=0.05)


def test_warnings_are_part_of_the_plan() -> None:
    assert plan("grpo/find").endswith("# Warnings\nnone")
    crowded = plan("grpo/find", ["rollout.workers=999"])
    assert "rollout.workers" in crowded.split("# Warnings\n")[1]


def test_a_hub_model_that_is_not_here_is_planned_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.modelfolder._cached", lambda name, download: None)
    text = plan("grpo/find", ["model.path=some-org/some-model"])
    assert "memory: unknown until 'some-org/some-model' is here" in text
    assert "not on this machine yet" in text.split("# Warnings\n")[1]


def test_a_plan_starts_nothing_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert yaml.safe_load(plan("grpo/find").split("# Stage 0")[0])["name"] == "grpo/find"
    assert list(tmp_path.iterdir()) == []
