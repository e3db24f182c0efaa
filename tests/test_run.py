"""Whole runs through Ray and DeepSpeed: they learn, repeat bit for bit, resume, leave cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from trainer import runfolder
from trainer.metrics import MACHINE

SMALL = (
    "prompts_per_step=4",
    "rollouts_per_prompt=4",
    "rollout.max_tokens=96",
    "evaluation=null",
    "tokens_per_micro_batch=512",
)


def command(output: Path, *settings: str, recipe: str = "grpo/find") -> list[str]:
    return [
        sys.executable, "-m", "launch.cli", "train", recipe, f"output={output}", *SMALL, *settings,
    ]  # fmt: skip


def train(output: Path, *settings: str, recipe: str = "grpo/find") -> Path:
    done = subprocess.run(
        command(output, *settings, recipe=recipe), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.strip().splitlines()[-1])


def metrics(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(MACHINE)} for line in lines
    ]


def weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of the length recipe, never interrupted."""
    return train(tmp_path_factory.mktemp("reference"), "steps=4", recipe="length/find")


def test_a_step_says_what_it_should(reference: Path) -> None:
    steps = metrics(reference)
    assert [s["step"] for s in steps] == [1, 2, 3, 4]
    for step in steps:
        assert step["rollouts"] == 16
        assert step["engine_gap"] < 1e-4, "engine and learner compute the same logprobs"
        total = step["reward/correct"] + step["reward/arora_zanette"]
        assert step["reward/total"] == pytest.approx(total, abs=1e-5)
        assert 0 <= step["accuracy"] <= 1
        assert step["finish/stop"] + step["finish/length"] == pytest.approx(1, abs=1e-5)


def test_checkpoint_loads_in_transformers(reference: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = sorted((reference / "checkpoints").glob("step-*"))[-1] / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    saved = weights(reference)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), saved[name])
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "A1+1?"}], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.decode(ids) == "A1+1?<think>"


def test_killed_and_run_again_equals_never_killed(reference: Path, tmp_path: Path) -> None:
    """Nor do two runs of one recipe differ."""
    settings = ("steps=4", "checkpoint.every=1")
    run = subprocess.Popen(
        command(tmp_path, *settings, recipe="length/find"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    folder = tmp_path / "length-find-seed0"
    marker = folder / "checkpoints" / "step-000002" / "COMPLETE"
    _until(marker.exists, run)
    run.kill()  # Ray's own processes notice, and end by themselves
    run.wait()
    train(tmp_path, *settings, recipe="length/find")
    assert metrics(folder) == metrics(reference)
    for name, array in weights(reference).items():
        np.testing.assert_array_equal(array, weights(folder)[name])


def test_ranks_and_workers_change_nothing_but_rounding(reference: Path, tmp_path: Path) -> None:
    wide = train(
        tmp_path, "steps=2", "learner.ranks=2", "learner.zero=2", "rollout.workers=2",
        "grader.workers=2", recipe="length/find",
    )  # fmt: skip
    # the first step's rollouts come from the same weights; the second's from ones equal to 1e-6
    for one, two in zip(metrics(reference)[:1], metrics(wide)[:1], strict=True):
        for name in ("accuracy", "think_tokens/mean", "tokens/sampled", "reward/total"):
            assert one[name] == two[name]
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


def test_interrupt_leaves_no_process(tmp_path: Path) -> None:
    run = subprocess.Popen(
        command(tmp_path, "steps=500"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    log = tmp_path / "grpo-find-seed0" / "metrics.jsonl"
    _until(lambda: log.exists() and log.read_text().count("\n") >= 1, run)
    descendants = psutil.Process(run.pid).children(recursive=True)
    assert descendants
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130, error[-2000:]
    assert "Traceback" not in error
    _gone(descendants)
    with runfolder.claim(tmp_path / "grpo-find-seed0"):
        pass  # the folder is free again


TWO_STAGES = """
extends: grpo/find
steps: 2
stages:
  - kind: sft
    model: {path: base/fresh}
    loss: {name: ce}
    supervised: {pool: 64}
  - algorithm: raft  # trains on right answers alone, and there will be none
    rollout: {max_tokens: 4}
    guard: {truncated: 1.0}
"""


@pytest.mark.slow
def test_stages_follow_each_other_and_a_step_may_have_nothing_to_train_on(tmp_path: Path) -> None:
    recipe = tmp_path / "two.yaml"
    recipe.write_text(TWO_STAGES)
    small = [s for s in SMALL if not s.startswith("rollout.")]
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "train", str(recipe), f"output={tmp_path}", *small],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(done.stdout.strip().splitlines()[-1])
    taught, second, *practised = metrics(folder)
    assert [s["step"] for s in (taught, second, *practised)] == [1, 2, 3, 4]
    assert taught["loss"] > second["loss"] > 0
    for step in practised:
        assert step["accuracy"] == 0
        assert step["steps"] == 0, "no row, no optimiser step"
    last = {k: v.copy() for k, v in weights(folder).items()}
    from safetensors.numpy import load_file

    for name, array in load_file(folder / "start-1" / "model.safetensors").items():
        np.testing.assert_array_equal(array, last[name])


def test_what_cannot_be_placed_is_told(tmp_path: Path) -> None:
    from launch import fleet
    from launch.cluster import cluster
    from trainer.config import load

    stage = load("grpo/find", (f"output={tmp_path}", "learner.ranks=3")).stages[0]
    with cluster(cpus=2), pytest.raises(ValueError, match=r"ranks=3 .* 2 of 2\); .* Ray 1 more"):
        fleet.Fleet(stage, "unused")


def _until(condition, run: subprocess.Popen, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert run.poll() is None, "the run ended before"
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.05)


def _gone(processes: list[psutil.Process], seconds: float = 30) -> None:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive, [p.cmdline() for p in alive if p.is_running()]
