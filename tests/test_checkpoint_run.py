"""A real run on a disk that fills up: it goes on, says so, and nothing of its end is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.kept import RECIPE, Disk, disk
from trainer import checkpoint

SMALL = (
    *("prompts_per_step=4", "rollouts_per_prompt=4", "rollout.max_tokens=96", "evaluation=null"),
    *("tokens_per_micro_batch=512", "learner.ranks=2", "learner.zero=3", "tracking.wandb=offline"),
)
STEPS = 8
STATE = (
    *("stage", "first", "step", "weight_version", "stream", "allocation", "memory", "made"),
    *("carried", "shaping", "owed", "begun", "left_out", "wandb_id"),
)


@pytest.mark.slow
def test_a_run_on_a_disk_that_fills_up(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 32_000_000) as small:
        command = [
            *(sys.executable, "-m", "launch.cli", "train", "grpo/find", *SMALL),
            *(f"output={small.folder}", f"steps={STEPS}", "checkpoint={every: 1, keep: 1}"),
        ]
        out = tmp_path / "out.txt"
        with out.open("w") as stream:
            run = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            filled(small, run, out)
            assert run.wait(timeout=120) == 0, out.read_text()[-3000:]
        finally:
            run.kill()
        folder = small.folder / "grpo-find-seed0"
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
        (kept,) = checkpoint.complete(folder / "checkpoints")
        assert checkpoint.step_of(kept) == STEPS
        assert checkpoint.intact(folder / "checkpoints") == kept
        assert [path.name for path in kept.parent.iterdir()] == [kept.name], "nothing half-written"
        whole(folder, kept)


def filled(small: Disk, run: subprocess.Popen[bytes], out: Path) -> None:
    """No room from step 2 on, until the last checkpoint is asked for it."""
    root = small.folder / "grpo-find-seed0" / "checkpoints"
    until(lambda: bool(checkpoint.complete(root)), run, out)
    small.crowd(4_550_000, run.pid)  # seems enough, and is not: learners hear of it
    until(lambda: "it ends the stage, and is tried again" in out.read_text(), run, out)
    (last,) = checkpoint.complete(root)
    assert not checkpoint.damage(last), "the last good one stays"
    small.relieve()
    said = [line for line in out.read_text().splitlines() if "could not be written" in line]
    assert f"training goes on from memory, the last checkpoint is {step(last)}" in said[0]
    assert f"step {STEPS}: the checkpoint could not be written" in said[-1]
    until(lambda: f"step {STEPS}: the checkpoint is written" in out.read_text(), run, out)


def step(folder: Path) -> str:
    return f"step {checkpoint.step_of(folder)}"


def until(there: Callable[[], bool], run: subprocess.Popen[bytes], out: Path) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert run.poll() is None, out.read_text()[-3000:]
        assert time.monotonic() < deadline, out.read_text()[-3000:]
        time.sleep(0.05)


def whole(folder: Path, kept: Path) -> None:
    """All that the design names is in it, and nothing that would have to be unpickled."""
    files = [path for path in kept.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files if path.name != checkpoint.COMPLETE}
    assert kinds <= {".safetensors", ".json", ".jinja", ".yaml", ".npz", ".txt"}, kinds
    assert len(list((kept / "learner").glob("rank*.safetensors"))) == 2
    assert (kept / "learner" / "state.json").is_file()
    state = checkpoint.driver_state(kept)
    assert set(STATE) <= set(state)
    assert state["stream"]["fingerprint"], "position and fingerprint of the data"
    assert state["wandb_id"] == (folder / "wandb-id.txt").read_text().strip()
    assert (kept / RECIPE).read_text() == (folder / "config.yaml").read_text()
    assert yaml.safe_load((kept / RECIPE).read_text())["checkpoint"]["keep"] == 1
    told = checkpoint.manifest(kept)
    assert {"model.tokenizer", "torch", "code", "stages.0.dataset.train"} <= set(told["facts"])
    assert told["metrics"]["accuracy"] >= 0
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(kept / "model", use_safetensors=True)
    assert len(AutoTokenizer.from_pretrained(kept / "model")) <= model.config.vocab_size
