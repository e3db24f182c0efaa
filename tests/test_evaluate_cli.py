"""Risk: a command that loses what was paid for, or passes a gate that it should not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from tests.evaluated import copied
from trainer.eval import samples
from trainer.eval.folder import open_folder
from trainer.modelfolder import WHOLE, fetch, fingerprint

Captured = pytest.CaptureFixture[str]
FEW = ["--data", "find", "--problems", "12", "--answer-tokens", "8", "--max-tokens", "128"]
TOLD = ["base/find", *FEW, "--budget-mode"]


def lines(path: Path) -> list[str]:
    return (path / samples.SAMPLES).read_text().splitlines()


@pytest.mark.parametrize("kills", [(20,), pytest.param((4, 60, 90), marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_without_paying_twice(kills: tuple[int, ...], tmp_path: Path) -> None:
    """kill -9 while samples come in; then the same command to its end."""
    out = tmp_path / "e"
    argv = ["eval", "base/find", "--data", "find", "--problems", "40", "--samples", "4"]
    argv += ["--budgets", "0,16", "--out", str(out), "--engine", "{name: torch, slots: 8}"]
    argv += ["--no-report"]
    command = [sys.executable, "-m", "launch.cli", *argv]
    whole: list[str] = []
    for least in kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while not (out / samples.SAMPLES).is_file() or len(lines(out)) < least:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        now = (out / samples.SAMPLES).read_text()
        kept = now[: now.rfind("\n") + 1].splitlines()
        assert len(kept) < 160, "killed too late to show anything"
        assert kept[: len(whole)] == whole, "what was there stays"
        whole = kept
    assert main(argv) == 0
    assert lines(out)[: len(whole)] == whole
    keys = [samples.key_of(json.loads(line)) for line in lines(out)]
    assert len(keys) == len(set(keys)) == 160
    (table,) = open_folder(out).tables()
    assert table.present_MS.all()


def test_offline_needs_no_model_and_gives_the_same(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "e"
    argv = ["eval", "base/find", *FEW, "--samples", "4", "--budgets", "0,16", "--out", str(out)]
    assert main([*argv, "--json", "--no-report"]) == 0
    first = json.loads(capsys.readouterr().out)
    verdicts = (out / samples.VERDICTS).read_text()
    assert not (out / "report.html").exists()
    for name in (samples.VERDICTS, "metrics.json", "summary.md"):
        (out / name).unlink()
    settings = json.loads((out / samples.SETTINGS).read_text())
    settings["model"] = "no/such-model"
    (out / samples.SETTINGS).write_text(json.dumps(settings))
    assert main(["eval", str(out), "--offline", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"] == first["metrics"]
    assert (out / samples.VERDICTS).read_text() == verdicts
    for name in ("metrics.json", "summary.md", "report.html", "environment.json"):
        assert (out / name).stat().st_size > 0
    assert list((out / "plots").glob("*.svg"))
    verifier = ["--verifier", "{name: exact, ignore_case: true}", "--no-report"]
    assert main(["eval", str(out), "--offline", *verifier]) == 0
    assert "ignore_case=true" in open_folder(out).settings["graders"]["find"]
    capsys.readouterr()
    kept = (out / samples.VERDICTS).read_text()
    assert main(["eval", str(out), "--offline", "--verifier", "numeric"]) == 2, "golds are letters"
    assert "--verifier: it rejects the gold of" in capsys.readouterr().err
    assert (out / samples.VERDICTS).read_text() == kept
    assert main(["eval", str(out), "--budgets", "8"]) == 2
    assert f"laconic eval {out} --offline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("find/accuracy@16>=0", 0, ""),
        ("find/accuracy@16>=1.01", 1, "required: find/accuracy@16>=1.01: "),
        ("adherence", 0, ""),
        ("find/acuracy@16>=0", 2, "did you mean 'find/accuracy@16'"),
        ("fnd/accuracy@16>=0", 2, "no task 'fnd' here; did you mean 'find'"),
        ("find/accuracy@16", 2, "write NAME>=NUMBER"),
    ],
)
def test_requirements_decide_the_exit_code(
    text: str, code: int, said: str, tmp_path: Path, capsys: Captured
) -> None:
    path = copied("truncate", tmp_path)
    assert main(["eval", str(path), "--offline", "--no-report", "--require", text]) == code
    assert said in capsys.readouterr().err


def test_a_baseline_may_be_a_model_or_a_folder(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "e"
    argv = ["eval", "base/told", *FEW, "--budgets", "16", "--samples", "2", "--out", str(out)]
    assert main([*argv, "--baseline", "base/find", "--json", "--no-report"]) == 0
    compared = json.loads(capsys.readouterr().out)["compared"]
    base = open_folder(out / "baseline")
    assert base.settings["model"] == "base/find"
    values = [f["find/accuracy@16"].value for f in (open_folder(out).metrics(), base.metrics())]
    difference = compared["differences"]["find/accuracy@16"]["value"]
    assert difference == pytest.approx(values[0] - values[1])
    assert main([*argv, "--baseline", str(out / "baseline"), "--no-report"]) == 0
    assert "B - A" in capsys.readouterr().out
    few = ["--data", "find", "--problems", "5", "--baseline", str(out / "baseline")]
    assert main(["eval", "base/told", *few]) == 2
    assert "is of other problems: task find has 12 problems" in capsys.readouterr().err


def test_several_tasks_of_one_command(tmp_path: Path, capsys: Captured) -> None:
    rows = [{"prompt": "A6+4-6B3+4+3?", "answer": "B"}, {"prompt": "A1+1B3+4?", "answer": "B"}]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["eval", "base/find", "--tasks", "find,{name: zeros}", "--data", str(file)]
    assert main([*argv, "--problems", "4", "--budgets", "8", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    each = [metrics[f"{task}/accuracy@8"]["value"] for task in ("find", "zeros", "mine")]
    assert metrics["all/accuracy@8"]["value"] == pytest.approx(sum(each) / 3)


def test_a_live_rule_is_kept_with_what_it_cost(tmp_path: Path) -> None:
    out = tmp_path / "e"
    rule = ["--stopping", "{name: consistency, every: 12}", "--out", str(out), "--no-report"]
    assert main(["eval", "base/find", *FEW, *rule]) == 0
    watched = [json.loads(line)["watch"] for line in lines(out)]
    assert any(watch["looks"] > 0 for watch in watched)
    assert open_folder(out).settings["stopping"]["name"] == "consistency"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["base/find"], "nothing to evaluate on"),
        (["base/find", "--tasks", "mth500"], "did you mean 'math500'"),
        (["base/find", "--tasks", "find,find"], "one is there twice"),
        (["base/fnd", *FEW], "did you mean 'base/find'"),
        (["base/find", *FEW, "--k", "4", "--samples", "2"], "4 samples cannot be drawn of the 2"),
        (["base/find", *FEW, "--selection", "majorty"], "did you mean 'majority'"),
        (
            ["base/find", *FEW, "--stopping-offline", "confidenc"],
            "--stopping-offline: no component named 'confidenc'",
        ),
        (
            ["base/find", *FEW, "--stopping", "{name: confidence, above: 0.9}"],
            "--stopping: above: unknown field; known here: every, t",
        ),
        (["base/find", *FEW, "--selection", "{name: short_m, k: 1}"], "--selection: k: unknown"),
        (
            ["base/find", *FEW, "--stopping", "ramp", "--budgets", "8"],
            "--stopping: ramp ends thoughts by itself",
        ),
        (
            ["base/find", *FEW, "--precision", "0.1", "--max-samples", "1"],
            "--max-samples: 1; a standard error needs 2",
        ),
        (["base/find", *FEW, "--stopping", "{name: self-evaluation, no: B}"], "as False; quote it"),
        (["base/find", *FEW, "--budgets", "8,8"], "--budgets: [8, 8] must be different"),
        (["base/find", *FEW, "--engine", "vlm"], "did you mean 'vllm'"),
        (["base/find", *FEW, "--engine", "{name: torch, slts: 2}"], "slts"),
        (
            ["base/find", *FEW, "--max-tokens", "4096"],
            "--max-tokens: 4096 is not below the model's",
        ),
        (["base/find", *FEW, "--budget-mode", "prompt", "--budgets", "8"], "cannot be told"),
        (["base/find", *FEW, "--efforts", "low", "--budget-mode", "effort"], "knows none; say how"),
        ([*TOLD, "effort", "--efforts", "{low: {sufix: x}}"], "--efforts low: sufix"),
        ([*TOLD, "prompt", "--budgets", "8", "--ask", "{suffix: x}"], "{budget}"),
        (["base/find", *FEW, "--baseline", "base/fnd"], "base/fnd"),
        (["/nowhere", "--offline"], "no folder"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], said: str, capsys: Captured) -> None:
    assert main(["eval", *argv]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1, error


@pytest.mark.parametrize("text", ["0", "0.5", "-1", "x"])
def test_a_precision_that_nothing_reaches_or_misses_is_refused(text: str, capsys: Captured) -> None:
    assert main(["eval", "base/find", *FEW, f"--precision={text}"]) == 2
    assert f"--precision: '{text}': write a standard error above 0" in capsys.readouterr().err


def test_names_of_papers_and_dashes_are_read(tmp_path: Path, capsys: Captured) -> None:
    path = copied("truncate", tmp_path)
    argv = ["eval", str(path), "--offline", "--no-report", "--json", "--k", "4"]
    argv += ["--selection", "short-3,maj@k,{name: short_m, m: 2}"]
    assert main([*argv, "--stopping-offline", "self-evaluation,confidence"]) == 0
    said = capsys.readouterr()
    assert "self_evaluation has no effect: saved samples do not tell" in said.err
    metrics = json.loads(said.out)["metrics"]
    assert {name.split("/")[1] for name in metrics if "@4/" in name} == {
        "short_m@4", "majority@4", "short_m(m=2)@4",
    }  # fmt: skip
    assert {name.split("/")[2] for name in metrics if "/stop/" in name} == {"confidence"}
    live = "{name: self-evaluation, every: 12, text: '', 'yes': A, 'no': B}"
    assert main(["eval", "base/find", *FEW, "--stopping", live]) == 0


def test_a_model_is_known_by_its_files_and_not_by_its_name(
    tmp_path: Path, capsys: Captured
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(fetch("base/find"), one)
    argv = ["--data", "find", "--problems", "2", "--no-report", "--out", str(tmp_path / "e")]
    assert main(["eval", str(one), *argv]) == 0
    before = lines(tmp_path / "e")
    one.rename(two)
    assert main(["eval", str(two), *argv]) == 0
    assert lines(tmp_path / "e") == before
    capsys.readouterr()
    assert main(["eval", "base/told", *argv]) == 2
    assert "was made with other settings (model_files is '" in capsys.readouterr().err


def test_weights_that_differ_in_the_middle_alone_are_others(tmp_path: Path) -> None:
    """Of one size, with the same header and ends, as fine-tunes of a few layers are."""
    file, size, tensor = tmp_path / "model.safetensors", 3 * WHOLE, 1 << 22
    marks = []
    for start in (None, tensor // 2, WHOLE + 12345, size - 2 * tensor):
        with file.open("wb") as stream:
            stream.truncate(size)
            if start is not None:
                stream.seek(start)
                stream.write(b"x" * tensor)
        marks.append(fingerprint(tmp_path))
    assert len(set(marks)) == len(marks)


def test_greedy_samples_are_warned_of(capsys: Captured) -> None:
    argv: list[Any] = ["eval", "base/find", "--data", "find", "--problems", "2"]
    assert main([*argv, "--temperature", "0", "--samples", "2"]) == 0
    assert "all samples of a problem are the same" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--efforts", "{low: {suffix: x}}"],
            "--efforts has no effect with --budget-mode truncate",
        ),
        (
            ["--stopping-offline", "confidence"],
            "--stopping-offline has no effect with no finite --budgets",
        ),
        (["--served-name", "m"], "--served-name has no effect with no --base-url"),
    ],
)
def test_what_has_no_effect_is_warned_of(more: list[str], said: str, capsys: Captured) -> None:
    assert main(["eval", "base/find", "--data", "find", "--problems", "1", *more]) == 0
    assert said in capsys.readouterr().err


def test_offline_warns_of_and_refuses_what_needs_samples(tmp_path: Path, capsys: Captured) -> None:
    path = copied("truncate", tmp_path)
    argv = ["eval", str(path), "--offline", "--no-report"]
    assert main([*argv, "--k", "8"]) == 2
    assert "8 samples cannot be drawn of the 4" in capsys.readouterr().err
    assert main([*argv, "--k", "4", "--data", "find"]) == 0
    assert "--data has no effect with --offline" in capsys.readouterr().err
    settings = json.loads((path / samples.SETTINGS).read_text())
    settings["samples"] = None  # as in a folder whose run was killed
    (path / samples.SETTINGS).write_text(json.dumps(settings))
    assert main([*argv, "--k", "4"]) == 0
    assert main([*argv, "--k", "8"]) == 2
    assert "8 samples cannot be drawn of the 4" in capsys.readouterr().err


def test_a_folder_without_samples_is_told(tmp_path: Path, capsys: Captured) -> None:
    path = copied("truncate", tmp_path)
    (path / samples.SAMPLES).unlink()
    assert main(["eval", str(path), "--offline"]) == 2
    assert "holds no samples; collect them first" in capsys.readouterr().err
