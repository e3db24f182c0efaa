"""Risk: a run that was killed and moved does not go on as if it had never been."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from samplers import data
from tests.processes import until
from tests.test_run import metrics, weights
from trainer import checkpoint
from trainer.config import RECIPES

SETTINGS = ("prompts_per_step=4", "rollouts_per_prompt=4", "rollout.max_tokens=64", "steps=3",
            "tokens_per_micro_batch=512", "checkpoint.every=1", "evaluation=null")  # fmt: skip


def real(home: Path) -> Path:
    """The tiny reasoner and its task as files: they can be changed."""
    home.mkdir()
    shutil.copytree(RECIPES / "base" / "find", home / "model")
    task = data.load(data.DataConfig(task="find"))
    rows = [task[i] for i in range(64)]
    lines = [{"problem": p.messages[0]["content"], "answer": p.answer} for p in rows]
    (home / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (home / "mine.yaml").write_text(
        "extends: grpo/find\nmodel: {path: model}\ndata: {path: train.jsonl}\n"
    )
    return home


def laconic(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "launch.cli", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def begun(cwd: Path, *settings: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "train", "mine.yaml", *SETTINGS, *settings],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.slow
def test_killed_moved_and_resumed_from_elsewhere(tmp_path: Path) -> None:
    home = real(tmp_path / "home")
    first, reference = home / "runs/mine-seed0", home / "never/mine-seed0"
    with begun(home, "output=never") as never, begun(home) as killed:
        assert until(lambda: checkpoint.newest(first / "checkpoints") or killed.poll(), 100)
        killed.kill()
    assert never.returncode == 0
    folder, other = tmp_path / "renamed", tmp_path / "other"
    first.rename(folder)
    shutil.copytree(folder, other, symlinks=True)

    train = home / "train.jsonl"
    whole = train.read_text()
    train.write_text(whole.partition("\n")[2])
    done = laconic(tmp_path, "resume", "renamed")
    assert done.returncode == 2
    assert "dataset.train" in done.stderr
    train.write_text(whole)
    done = laconic(tmp_path, "resume", "renamed")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == str(folder)
    assert metrics(folder) == metrics(reference)
    kept = weights(folder)
    for name, array in weights(reference).items():
        np.testing.assert_array_equal(array, kept[name])

    done = laconic(tmp_path, "resume", str(other), "optim.lr=1e-5", "steps=4")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no longer, bit for bit" in done.stdout
    steps = metrics(other)
    assert [s["step"] for s in steps] == [1, 2, 3, 4]
    assert steps[-1]["lr"] == 1e-5
    newest = checkpoint.newest(other / "checkpoints")
    assert newest is not None
    facts = checkpoint.manifest(newest)["facts"]
    assert {"torch", "code", "model.tokenizer", "stages.0.dataset.train"} <= set(facts)
