"""A sweep loses nothing: finished cells stay, failed ones are told, children end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch import sweep as sweeping
from launch.cli import main
from launch.sweep import Bars, Cell, Ended, Lines, plan_cells, run
from trainer import runfolder
from trainer.config import load

ROOT = Path(__file__).resolve().parent.parent


class Scripted(Cell):
    """A cell whose process is a line of Python instead of a training run."""

    code: str = ""

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code]


def cells(tmp_path: Path, code: str, count: int) -> list[Cell]:
    """`count` cells that run `code` with SEED as their number."""
    out: list[Cell] = []
    for seed in range(count):
        recipe = load("grpo/find", [f"seed={seed}", f"output={tmp_path}"])
        kind = type("Scripted", (Scripted,), {"code": f"SEED = {seed}\n{code}"})
        out.append(kind("grpo/find", (), recipe))
    return out


def finish(cell: Cell, **changes: Any) -> None:
    """Leave the folder as a finished run leaves it."""
    folder = cell.recipe.folder
    folder.mkdir(parents=True)
    recipe = cell.recipe.model_copy(update=changes)
    (folder / runfolder.CONFIG).write_text(runfolder.resolved(recipe))
    (folder / runfolder.DONE).touch()


def test_never_more_at_once_than_jobs_and_every_cell_once(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, time\n"
        f"live = pathlib.Path({str(tmp_path)!r}, 'live'); live.mkdir(exist_ok=True)\n"
        "mine = live / str(SEED); mine.touch(); print('live', len(list(live.iterdir())))\n"
        "time.sleep(0.3); mine.unlink()\n"
        "assert os.environ['OMP_NUM_THREADS'] == '1'"
    )
    planned = cells(tmp_path, code, 5)
    ended = list(run(planned, 2, Lines(5)))
    assert sorted(end.cell.recipe.seed for end in ended) == [0, 1, 2, 3, 4]
    assert [end.code for end in ended] == [0] * 5
    most = [int(cell.log.read_text().split()[1]) for cell in planned]
    assert max(most) == 2


def test_a_failed_cell_is_told_with_the_end_of_its_log_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys\nfor i in range(50): print('line', i)\nsys.exit(3 if SEED == 1 else 0)"
    monkeypatch.setattr(sweeping, "plan_cells", lambda *_: cells(tmp_path, code, 3))
    summarised: list[Any] = []
    monkeypatch.setattr(sweeping, "summarise", lambda runs, out, _: summarised.extend([runs, out]))
    assert sweeping.sweep(["grpo/find"], [0, 1, 2], jobs=3) == 1
    out = capsys.readouterr().out
    assert "[3/3]" in out
    assert "grpo/find seed 1 FAILED in" in out
    assert "exit code 3" in out
    assert "line 49" in out
    assert "line 41" not in out
    runs, page = summarised
    assert [folder.name for folder in runs] == ["grpo-find-seed0", "grpo-find-seed2"]
    assert page == tmp_path / "report.html"


def test_finished_cells_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = cells(tmp_path, "print('ran')", 3)
    finish(planned[1])
    monkeypatch.setattr(sweeping, "plan_cells", lambda *_: planned)
    monkeypatch.setattr(sweeping, "summarise", lambda *_: None)
    assert sweeping.sweep(["grpo/find"], [0, 1, 2], jobs=1) == 0
    assert [cell.log.exists() for cell in planned] == [True, False, True]
    assert "[1/3] grpo/find seed 1 was finished before" in capsys.readouterr().out


def test_a_finished_run_with_another_configuration_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = plan_cells(["grpo/find"], [0, 1], [f"output={tmp_path}", "optim.lr=1e-3"])
    finish(planned[1])
    argv = ["sweep", "grpo/find", "--seeds", "0-1", "--output", str(tmp_path), "optim.lr=2e-3"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "optim.lr is 0.001 there, 0.002 here" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "logs").exists()


def test_arms_of_one_seed_stand_side_by_side() -> None:
    planned = plan_cells(["grpo/find", "length/find"], [3, 5], ["optim.lr=1e-3"])
    assert [cell.name for cell in planned] == [
        "grpo/find seed 3",
        "length/find seed 3",
        "grpo/find seed 5",
        "length/find seed 5",
    ]
    assert planned[2].command[-4:] == ["train", "grpo/find", "seed=5", "optim.lr=1e-3"]
    assert {cell.recipe.stages[-1].optim.lr for cell in planned} == {1e-3}


@pytest.mark.parametrize(
    ("arms", "settings", "said"),
    [
        (["grpo/find", "grpo/find"], [], "would both write to"),
        (["grpo/find"], ["name=x", "seed=3"], "--seeds 0-4"),
        ([], ["optim.lr=1"], "no recipe given"),
    ],
)
def test_sweeps_that_cannot_be_meant_are_refused(
    arms: list[str], settings: list[str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        plan_cells(arms, [0], settings)


def test_progress_of_a_running_cell_is_told_by_quarters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the lines of its metrics; the run itself writes them."""
    code = (
        "import pathlib, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r}, 'grpo-find-seed0'); folder.mkdir()\n"
        "for step in range(31):\n"
        "    with (folder / 'metrics.jsonl').open('a') as file: print('{}', file=file)\n"
        "    time.sleep(0.6 if step in (8, 23) else 0)"
    )
    list(run(cells(tmp_path, code, 1), 1, Lines(1)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "[0/1] grpo/find seed 0 started",
        "[0/1] grpo/find seed 0 at step 8 of 30",
        "[0/1] grpo/find seed 0 at step 23 of 30",
    ]
    assert lines[3].startswith("[1/1] grpo/find seed 0 done in")


def test_bars_on_a_terminal_show_what_runs_and_keep_what_ended(tmp_path: Path) -> None:
    first, second = cells(tmp_path, "", 2)
    bars = Bars(2)
    bars.started(first)
    bars.started(second)
    bars.at(first, 12)
    shown = {task.description: (task.completed, task.total) for task in bars.bars.tasks}
    assert shown == {"runs": (0, 2), first.name: (12, 30), second.name: (0, 30)}
    bars.ended(Ended(first, 0, 1.0))
    assert [(t.description, t.completed) for t in bars.bars.tasks] == [
        ("runs", 1),
        (second.name, 0),
    ]


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_children_and_grandchildren(tmp_path: Path, number: int) -> None:
    """Even a grandchild in a session of its own that ignores SIGINT, as Ray's may."""
    grandchild = (
        "import signal, time, os, pathlib, sys;"
        "signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()));"
        "time.sleep(600)"
    )
    child = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {grandchild!r}, "
        f"{str(tmp_path)!r} + f'/pid{{SEED}}'], start_new_session=True)\n"
        "time.sleep(600)"
    )
    script = (
        "import sys, pathlib; import launch.processes as p; import launch.sweep as s\n"
        "from tests.test_sweep import cells\n"
        "from launch.cli import main\n"
        f"s.plan_cells = lambda *_: cells(pathlib.Path({str(tmp_path)!r}), {child!r}, 2)\n"
        "real = p.interrupt_trees; s.interrupt_trees = lambda pids, **_: real(pids, grace=1.0)\n"
        "sys.exit(main(['sweep', 'grpo/find', '--seeds', '0-1', '--jobs', '2']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        pids = [tmp_path / "pid0", tmp_path / "pid1"]
        assert _until(lambda: all(p.exists() and p.read_text() for p in pids))
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.strip() == "laconic: interrupted"
    left = [int(p.read_text()) for p in pids]
    assert _until(lambda: not any(map(_alive, left)))


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_folder_has_one_owner_and_a_dead_one_counts_for_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hold = (
        "import sys, time; from pathlib import Path; from trainer.runfolder import claim\n"
        f"with claim(Path({str(folder)!r})): print('held', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", hold], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=f"in use by process {owner.pid}"),
            runfolder.claim(folder),
        ):
            pass
    finally:
        os.kill(owner.pid, signal.SIGKILL)
        owner.communicate()
    with runfolder.claim(folder):  # the dead one's name is still in the file
        in_use = pytest.raises(ValueError, match=str(os.getpid()))
        with in_use, runfolder.claim(folder):
            pass
    with runfolder.claim(folder):
        pass


@pytest.mark.slow
def test_one_cell_of_two_steps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A whole sweep as the recipes' READMEs print them, as small as it gets."""
    small = ["steps=2", "prompts_per_step=4", "rollouts_per_prompt=4", "rollout.max_tokens=96"]
    evaluation = "evaluation={every: 1, problems: 16, budgets: [8, 32], answer_tokens: 8}"
    argv = ["sweep", "grpo/find", *small, evaluation, "--seeds", "3", "--output", str(tmp_path)]
    assert main([*argv, "--reach", "0.01", "--at-tokens", "200"]) == 0
    out = capfd.readouterr().out
    assert "grpo/find seed 3 done in" in out
    heads = next(line for line in out.splitlines() if line.startswith("arm")).split()
    assert heads == ["arm", "seeds", "accuracy", "thinking", "tokens", "any-time", "area"]
    assert "generated tokens until the area is 0.01" in out
    assert "area at 200 generated tokens" in out
    assert "every run generated" in out
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "plots" / "area-generated.svg").is_file()
