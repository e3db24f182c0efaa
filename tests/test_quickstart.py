"""The claims a newcomer meets first, measured again: the warm-up, and the two arms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.eval.folder import open_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def laconic(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def last_evaluation(folder: Path) -> dict[str, dict[str, float]]:
    newest = max((folder / "eval").glob("step-*.json"), key=lambda p: int(p.stem.split("-")[1]))
    metrics: dict[str, dict[str, float]] = json.loads(newest.read_text())["metrics"]
    return metrics


def test_the_warm_up_makes_a_sloppy_overthinking_reasoner(tmp_path: Path) -> None:
    """The shipped base is this run, made once; its accuracy is 0.684."""
    laconic("train", "warmup/find", f"output={tmp_path}")
    model = str(tmp_path / "warmup-find-seed0" / "model")
    laconic(
        "eval", model, "--data", "find", "--problems", "1024", "--max-tokens", "192",
        "--answer-tokens", "8", "--budgets", "8,inf", "--out", str(tmp_path / "eval"),
    )  # fmt: skip
    metrics = open_folder(tmp_path / "eval").metrics()
    assert 0.53 < metrics["find/accuracy@inf"].value < 0.78, "wrong now and then"
    assert metrics["find/think_tokens/mean"].value > 60, "28 tokens are enough"
    assert metrics["find/accuracy@8"].value < 0.4, "no better than guessing without thought"
    assert metrics["find/truncated"].value < 0.1


def test_two_arms_learn_and_the_length_reward_halves_the_thought(tmp_path: Path) -> None:
    laconic(
        "sweep",
        "grpo/find",
        "length/find",
        "--seeds",
        "1",
        "--jobs",
        "2",
        "--output",
        str(tmp_path),
    )
    grpo = last_evaluation(tmp_path / "grpo-find-seed1")
    length = last_evaluation(tmp_path / "length-find-seed1")
    for arm in (grpo, length):
        assert arm["accuracy"]["value"] > 0.9, "the base begins at 0.67"
    ratio = length["think_tokens/mean"]["value"] / grpo["think_tokens/mean"]["value"]
    assert ratio < 0.75, f"thinking tokens, length reward over none: {ratio:.2f}"
    assert length["anytime"]["value"] > grpo["anytime"]["value"]
    page = (tmp_path / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", ""), "self-contained"
