"""How a model is told of a budget: by the plan of what was asked, and as its own run told it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from samplers import render
from samplers.budget import Asks, Budget, asks_of, plan_of
from samplers.budgets.base import Asking
from samplers.inference import generate
from samplers.render import ThinkingConfig
from tests import here
from trainer.config import load
from trainer.export import trained
from trainer.export.folder import export
from trainer.modelfolder import fetch
from trainer.runfolder import CONFIG, resolved

ASKS = Asks(
    default=Asking(system="Think.", close="so</think>"),
    budget=Asking(suffix=";{budget}"),
    efforts={"low": Asking(suffix="<b2>")},
)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(), {"system": "Think.", "close": "so</think>"}),
        (Budget(-1), {"system": "Think.", "target": None, "think": None}),
        (Budget(64), {"suffix": ";64", "system": None, "think": 64, "target": 64}),
        (Budget(64, hard=False), {"suffix": ";64", "think": None, "target": 64}),
        (Budget(effort="low"), {"suffix": "<b2>", "system": None, "think": None}),
        (Budget(64, effort="low"), {"suffix": "<b2>", "think": 64, "target": 64}),
        (Budget(answer_tokens=9), {"answer": 9, "suffix": ""}),
    ],
)
def test_one_thing_is_told(budget: Budget, said: dict[str, object]) -> None:
    plan = plan_of(budget, ASKS, 100)
    assert plan.max_tokens == 100
    assert {name: getattr(plan, name) for name in said} == said


def test_a_number_that_nobody_hears_of_is_refused() -> None:
    with pytest.raises(ValueError, match="not announced beside effort 'low'"):
        plan_of(Budget(64, effort="low", hard=False), ASKS, 100)
    with pytest.raises(ValueError, match="would have no effect"):
        plan_of(Budget(64, hard=False), Asks(), 100)
    assert plan_of(Budget(64), Asks(), 100).suffix == "", "the engine enforces it"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"thinking_tokens": -2}, "thinking_tokens: -2; 0 or more, or -1"),
        ({"thinking_tokens": 1.5}, "thinking_tokens: 1.5; write a whole number"),
        ({"thinking_tokens": "16"}, "thinking_tokens: '16'; write a whole number"),
        ({"answer_tokens": 0}, "answer_tokens: 0; 1 or more"),
        ({"samples": 0}, "samples: 0; 1 or more"),
        ({"effort": "lo"}, "effort: 'lo' is none of none, minimal"),
    ],
)
def test_budgets_that_are_none(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Budget(**settings)


def test_what_an_export_refuses_is_not_asked(tmp_path: Path) -> None:
    """Its template raises on what it was not trained to read; a hard budget is the engine's."""
    hand = {"low": {"suffix": "<b2>"}, "high": {"suffix": "<b4>"}}
    modes = export("base/modes", tmp_path / "modes", thinking=ThinkingConfig(), efforts=hand)
    renderer = render.load(str(modes), ThinkingConfig())
    asks = asks_of(renderer)
    assert asks.budget is None
    assert set(asks.efforts) == {"none", "low", "high"}
    [made] = generate(str(modes), ["A1+1B2-2?"], Budget(8))
    assert made.usage.thinking == 8
    told = export(
        "base/told", tmp_path / "told", thinking=ThinkingConfig(), ask={"suffix": ";{budget}"}
    )
    asks = asks_of(render.load(str(told), ThinkingConfig()))
    assert asks.budget is not None
    assert set(asks.efforts) == {"none"}


def test_a_run_is_evaluated_as_its_training_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Modes, of which the first is the natural one; cut thoughts are closed with a word."""
    settings = (
        "steps=1", "prompts_per_step=4", "rollouts_per_prompt=6", "rollout.max_tokens=64",
        "evaluation={every: 1, problems: 6, samples: 2, budgets: [8, 24], shown: 0}",
        "budget.close='=</think>'", f"output={tmp_path}",
    )  # fmt: skip
    recipe = load("modes/find", settings)
    here.run(recipe)
    (recipe.folder / CONFIG).write_text(resolved(recipe))
    asks = trained.asks(fetch(str(recipe.folder)))
    assert asks is not None
    assert asks.default == Asking(suffix="<b4>", close="=</think>")
    assert {name: asking.suffix for name, asking in asks.efforts.items()} == {
        "high": "<b4>", "medium": "<b3>", "low": "<b2>"
    }  # fmt: skip
    capsys.readouterr()
    asked = ["--data", "find", "--problems", "6", "--samples", "2", "--budgets", "8,24,inf"]
    assert main(["eval", str(recipe.folder), *asked, "--max-tokens", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    kept = json.loads((recipe.folder / "eval" / "step-1.json").read_text())["metrics"]
    for name, ours in {"accuracy@8": "accuracy@8", "accuracy@24": "accuracy@24",
                       "accuracy": "accuracy@inf", "tokens@8": "tokens@8",
                       "think_tokens/mean": "think_tokens/mean"}.items():  # fmt: skip
        assert found[f"find/{ours}"]["value"] == pytest.approx(kept[name]["value"]), name


def test_a_model_of_no_run_tells_nothing() -> None:
    assert trained.asks(fetch("base/find")) is None
