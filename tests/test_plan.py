"""`laconic plan`: what it prints is what would run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch.placement import place
from launch.plan import plan
from trainer.config import Stage, load, shipped

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
    monkeypatch.setattr("launch.plan.gpus", lambda: ["H100"])
    with pytest.raises(ValueError, match=r"learner.ranks=2 .* has 1; set learner.ranks=1 or less"):
        plan("grpo/find", settings)
    text = plan("grpo/find")
    assert line(text, "learner 1 x") == "learner 1 x (1 CPU, 0.5 GPU), placed PACK"
    assert line(text, "rollout 1 x") == "rollout 1 x (1 CPU, 0.5 GPU), placed SPREAD"


def _stage(*settings: str) -> Stage:
    return load("grpo/find", settings).stages[0]


@pytest.mark.parametrize("gpus", range(1, 7))
@pytest.mark.parametrize("workers", range(1, 6))
def test_processes_share_gpus_and_ranks_do_not_share_one(gpus: int, workers: int) -> None:
    """First fit places every bundle; two ranks never fit on one GPU where there are several."""
    for ranks in range(1, gpus + 1):
        placement = place(_stage(f"learner.ranks={ranks}", f"rollout.workers={workers}"), gpus)
        shares = [b["GPU"] for role in ("learner", "rollout") for b in placement.bundles[role]]
        assert len(shares) == ranks + workers
        assert ranks == 1 or shares[0] > 0.5
        assert gpus < ranks + workers or set(shares) == {1.0}
        free = [10_000] * gpus
        for share in shares:
            asked = round(share * 10_000)
            assert asked > 0
            assert asked == pytest.approx(share * 10_000, abs=1e-6), "Ray's resolution"
            free[next(i for i, left in enumerate(free) if left >= asked)] -= asked


def test_ray_places_what_shares_gpus() -> None:
    """Two logical GPUs, two ranks, three engines, in a Ray of its own."""
    code = "from tests.test_plan import place_on_two_gpus; place_on_two_gpus()"
    env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    learners, engines = json.loads(done.stdout.strip().splitlines()[-1])
    assert sorted(learners) == [[0], [1]]
    assert sorted(engines) in ([[0], [0], [1]], [[0], [1], [1]])


def place_on_two_gpus() -> None:
    """Print on which GPU Ray put every rank and every engine."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init(num_cpus=6, num_gpus=2, include_dashboard=False, log_to_driver=False)
    placement = place(_stage("learner.ranks=2", "rollout.workers=3"), 2)

    class Process:
        def gpus(self) -> list[int]:
            return [int(i) for i in ray.get_gpu_ids()]

    actors = []
    for role in ("learner", "rollout"):
        bundles = placement.bundles[role]
        group = placement_group(list(bundles), strategy=placement.strategies[role])
        assert group.wait(30), f"{role} was not placed"
        actors.append(
            [
                ray.remote(Process)
                .options(
                    num_cpus=1,
                    num_gpus=bundle["GPU"],
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, i),
                )
                .remote()
                for i, bundle in enumerate(bundles)
            ]
        )
    print(json.dumps([ray.get([a.gpus.remote() for a in some]) for some in actors]))


def test_a_supervised_stage_starts_engines_only_to_be_evaluated() -> None:
    for every, engines in ((0, 0), (10, 1)):
        stage = _stage("kind=sft", f"evaluation.every={every}")
        assert len(place(stage, 0).bundles["rollout"]) == engines
        assert len(place(stage, 0).bundles["grader"]) == engines


@pytest.mark.parametrize("target", ["quickstart", "from-scratch", "test", "test-slow"])
def test_tiny_models_hide_the_gpus(target: str) -> None:
    """The recipe of the target is replaced by one that prints what it was given."""
    root = Path(__file__).parents[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    asks = f"include Makefile\n{target}:\n\t@echo gpus=[$$CUDA_VISIBLE_DEVICES]\n"
    done = subprocess.run(
        ["make", "-s", "-f", "-", "-o", ".venv/.core", "-o", ".venv/.test", target],
        input=asks, cwd=root, capture_output=True, text=True,
        env={**env, "CUDA_VISIBLE_DEVICES": "0,1"},
    )  # fmt: skip
    assert "gpus=[]" in done.stdout, done.stderr


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
        summed = {0: 2, 1: 2 + 4}.get(zero, 4)  # bytes: in bfloat16; both; in float32
        sizes = [2 * mib / by[0], summed * mib / by[1], 12 * mib / by[2]]
        got = [_mib(text, part) for part in ("weights", "gradients", "optimiser")]
        assert got == pytest.approx(sizes, abs=0.05)


def test_warnings_are_part_of_the_plan() -> None:
    assert plan("grpo/find").endswith("# Warnings\nnone")
    crowded = plan("grpo/find", ["rollout.workers=999"])
    assert "rollout.workers" in crowded.split("# Warnings\n")[1]
    free = plan("grpo/find", ["deterministic=false"])
    assert "deterministic=false has no effect" in free.split("# Warnings\n")[1]


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
