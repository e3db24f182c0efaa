"""The command line: exit codes, one line for the user's mistakes, and what the commands print."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from launch import cli, doctor, mistakes, values
from launch.cli import main
from samplers import seeds
from samplers.tasks import find

ROOT = Path(__file__).resolve().parent.parent
Captured = pytest.CaptureFixture[str]


def raising(error: BaseException) -> Any:
    def run(*_: Any, **__: Any) -> Any:
        raise error

    return run


def ours() -> Any:
    """A mistake told by our own code: in a frame of one of the four storeys."""
    from trainer.modelfolder import locate

    return locate("base/fnd")


def test_a_mistake_that_our_code_tells_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("launch.plan.plan", lambda *_: ours())
    assert main(["plan", "grpo/find"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("laconic: model.path: no folder 'base/fnd'; did you mean 'base/find'?")
    assert error.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("operands"), RuntimeError("x"), AssertionError()])
def test_defects_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Even a ValueError, when it comes out of a library (here: this test)."""
    monkeypatch.setattr("launch.plan.plan", raising(error))
    with pytest.raises(type(error)):
        main(["plan", "grpo/find"])


def test_a_defect_in_a_line_of_ours_is_none_that_we_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy is C: its errors have no frame of their own, and seem to come from our line."""
    wrong = np.zeros(2, np.uint64), np.zeros(3, np.uint64)
    monkeypatch.setattr("launch.plan.plan", lambda *_: seeds.uniforms(*wrong))
    with pytest.raises(ValueError, match="broadcast"):
        main(["plan", "grpo/find"])


def test_an_error_of_a_remote_task_is_told_by_who_raised_it() -> None:
    """Ray's text holds the far traceback; its last place decides."""

    def text(file: str, line: str) -> ValueError:
        place = f'ray::Actor.build()\n  File "{file}", line 7, in f\n    {line}\nValueError: x'
        return ValueError(place)

    render = str(ROOT / "samplers" / "render.py")
    assert mistakes.told_remotely(text(render, 'raise ValueError("x")'))
    assert not mistakes.told_remotely(text(render, "ids.reshape(3, 5)"))
    assert not mistakes.told_remotely(text("/usr/lib/numpy/core.py", 'raise ValueError("x")'))


def test_ctrl_c_is_130_and_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr("launch.plan.plan", raising(KeyboardInterrupt()))
    assert main(["plan", "grpo/find"]) == 130
    assert capsys.readouterr().err == "laconic: interrupted\n"


def test_our_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def warn(*_: Any) -> SimpleNamespace:
        warnings.warn("loss.cap has no effect", stacklevel=1)
        return SimpleNamespace(deficits=())

    monkeypatch.setattr("launch.plan.plan", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["plan", "grpo/find"]) == 0
    assert capsys.readouterr().err == "laconic: warning: loss.cap has no effect\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["trian", "grpo/find"],
        ["plan"],
        ["plan", "grpo/find", "--stesp=3"],
        ["train", "grpo/find", "--profile", "1"],  # the first step warms up
        ["train", "--profile", "grpo/find"],
        ["sweep", "grpo/find", "--seeds", "4-0"],
        ["sweep", "grpo/find", "--seeds", "0-1,1"],
        ["sweep", "grpo/find", "--jobs", "0"],
        ["generate", "base/find", "x", "--thinking-budget", "-1"],
        ["generate", "base/find", "x", "--temperature", "-0.5"],
        ["eval", "base/find", "--data", "find", "--budgets", "8,many"],
        ["eval", "base/find", "extra=1", "--data", "find"],
    ],
)
def test_wrong_usage_is_2(argv: list[str], capsys: Captured) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("laconic")
    assert error.count("\n") == 1, error
    assert ", a.b=c" not in error  # settings may be left out


@pytest.mark.parametrize(
    "argv",
    [
        ["sweep", "a", "b", "optim.lr=1", "--seeds", "0-2,5", "x.y=2"],
        ["sweep", "a", "--seeds", "0-2,5", "b", "optim.lr=1", "x.y=2"],
    ],
)
def test_settings_may_stand_anywhere(argv: list[str]) -> None:
    args = cli._parse(argv)
    assert args.arms == ["a", "b", "optim.lr=1", "x.y=2"]
    assert args.seeds == (0, 1, 2, 5)


def test_how_many_steps_are_profiled() -> None:
    for argv, steps in (([], 0), (["--profile"], 5), (["--profile", "3"], 3)):
        args = cli._parse(["train", "grpo/find", "steps=9", *argv])
        assert (args.profile, args.settings) == (steps, ["steps=9"])


def test_budgets_of_the_command_line() -> None:
    assert values.budgets("0,8,16,inf") == (0, 8, 16, None)
    assert values.budget("none") is None
    with pytest.raises(argparse.ArgumentTypeError, match=r"'8\.5'"):
        values.budgets("8.5")


def test_recipes_are_listed(capsys: Captured) -> None:
    assert main(["recipes"]) == 0
    assert {"grpo/find", "length/find", "warmup/find"} <= set(capsys.readouterr().out.split())


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m launch.cli plan grpo/find | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "# Resolved recipe\n"
    assert done.stderr == ""


def test_eval_prints_what_it_keeps(capsys: Captured, tmp_path: Path) -> None:
    """Figures on paper: accuracy at a budget from the samples and verdicts that are written."""
    argv = ["eval", "base/find", "--data", "find", "--problems", "24", "--answer-tokens", "4"]
    out = ["--out", str(tmp_path), "--json"]
    assert main([*argv, "--budgets", "16,0,inf", *out]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["budgets"] == [0, 16, "inf"]
    assert result["metrics"]["find/tokens@0"]["value"] <= 4
    saved = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    right = [row["verdicts"][-1][0] == "ok" for row in saved[1:]]
    assert result["metrics"]["find/accuracy@inf"]["value"] == pytest.approx(sum(right) / 24)
    assert {"eval.json", "summary.md", "report.html"} <= {p.name for p in tmp_path.iterdir()}


def test_eval_takes_a_file_and_a_verifier(capsys: Captured, tmp_path: Path) -> None:
    prompts = [find.prompt(find.Config(), "test", i) for i in range(8)]
    rows = [{"sums": p.messages[0]["content"], "answer": p.answer.lower()} for p in prompts]
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["eval", "base/find", "--data", str(data), "--budgets", "8,inf", "--seed", "1"]
    argv += ["--columns", "{prompt: sums}"]
    assert main([*argv, "--json"]) == 0
    strict = json.loads(capsys.readouterr().out)
    assert [task["problems"] for task in strict["tasks"]] == [8]
    assert strict["metrics"]["problems/accuracy@inf"]["value"] == 0.0  # golds in lower case
    assert main([*argv, "--verifier", "{name: exact, ignore_case: true}"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "problems: cut at a budget"
    assert [line.split()[0] for line in table[2:4]] == ["8", "inf"]
    assert float(table[3].split()[1]) > 0
    assert main([*argv, "--verifier", "numeric"]) == 2  # to which these golds mean nothing
    assert "rejects the gold of 8 of 8" in capsys.readouterr().err
    assert main([*argv, "--verifier", "numeric", "--bad-golds", "keep"]) == 0
    assert "unknown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["generate", "base/fnd", "x"], "did you mean 'base/find'"),
        (["generate", "base/find", "x", "--markers", "<a>", "</a>"], "'<a>'"),
        (["generate", "base/find", "What is 2 + 2?"], "cannot represent 'What is 2 + 2?'"),
        (["eval", "base/find", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["eval", "base/find", "--data", "find", "--columns", "{prompt: q}"], "has no columns"),
        (
            ["eval", "base/find", "--data", "find", "--no-thinking", "--budgets", "8"],
            "thinking: none",
        ),
        (["eval", "base/find", "--data", "find", "--budgets", "500"], "500"),
        (["eval", "base/find", "--data", "find", "--verifier", "exat"], "did you mean 'exact'"),
        (["eval", "base/find", "--data", "find", "--verifier", "{name: exact"], "is no YAML"),
        (["eval", "base/find", "--data", "find", "--columns", "{prompt"], "no map of columns"),
        (["eval", "base/find", "--data", "find", "--budgets", "8,8"], "budgets: [8, 8]"),
        (["report", "nowhere"], "nowhere"),
        (
            ["eval", "base/find", "--data", "find", "--problems", "1", "--out", __file__],
            "cannot be written: File exists; choose another --out",
        ),
        (
            [
                "generate",
                "base/find",
                "1",
                "--samples",
                "2",
                "--selection",
                "{name: short_m, mm: 1}",
            ],
            "selection: mm: unknown field; did you mean 'm'",
        ),
        (
            ["generate", "base/find", "1", "--stopping", "{name: confidence, thresh: 1}"],
            "stopping: thresh: unknown field; did you mean 'threshold'",
        ),
        (
            ["generate", "base/find", "1", "--engine", "{name: torch, slotz: 1}"],
            "--engine: slotz: unknown field; did you mean 'slots'",
        ),
    ],
)
def test_mistakes_of_other_commands(argv: list[str], said: str, capsys: Captured) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1, error


def test_doctor_names_what_fails_and_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    needs = ["pydantic>=2.9", "numpy<1", "surely-not-there>=3", "datasets>=3; extra == 'hub'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: needs)
    assert main(["doctor"]) == 1
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["pydantic"].startswith("ok ")
    assert lines["numpy"].startswith("FAIL")
    assert lines["numpy"].endswith("(needs <1); pip install 'numpy<1'")
    assert "not installed (needs >=3)" in lines["surely-not-there"]
    assert "datasets" not in lines


def test_doctor_grades_by_level() -> None:
    grade = [doctor._level("x", n, 4, 2, "{:.0f}", "fix").status for n in (5, 4, 3, 2, 1)]
    assert grade == ["ok", "ok", "warn", "warn", "FAIL"]
    assert str(doctor._level("x", 3, 4, 2, "{:.0f} GiB", "buy more")).endswith(
        "3 GiB (needs >= 4); buy more"
    )


def test_doctor_counts_only_visible_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'H100, 80 GiB'\necho 'H100, 80 GiB'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert len(doctor.gpus()) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert len(doctor.gpus()) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor.gpus() == []
