"""`laconic reward`: figures on paper, mistakes in one line before any work, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.cli import main

ROOT = Path(__file__).resolve().parent.parent
BY_TEXT = "tests.graders:by_text"
Captured = pytest.CaptureFixture[str]

ROWS = [
    {"id": "a", "answer": "5", "responses": ["<think>6</think>5", "<think>5</think>6", "5"]},
    {"id": "b", "answer": "7", "responses": ["<think>7", "8", "8"]},
    {"id": "c", "answer": "", "responses": ["9"]},
]
"""exact: a: ok, wrong, ok; b: no_answer (never closed), wrong, wrong; c: gold_error."""


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return write(tmp_path / "dump.jsonl", ROWS)


def result(capsys: Captured, *argv: str | Path) -> Any:
    assert main(["reward", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def warned(capsys: Captured, *argv: str) -> str:
    """The one line of a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["reward", *argv]) == 0
    error = capsys.readouterr().err
    assert error.startswith("laconic: warning: ")
    assert error.count("\n") == 1
    return error


def test_figures_of_a_grading(dump: Path, capsys: Captured) -> None:
    got = result(capsys, "grade", dump, "--verifier", "exact")
    assert got["statuses"] == {"ok": 2, "wrong": 3, "no_answer": 1, "gold_error": 1}
    assert got["accuracy"]["value"] == pytest.approx((2 / 3 + 0) / 2)  # c is in no figure
    assert got["accuracy"]["n"] == 2
    assert (got["any"], got["majority"], got["samples"]) == (0.5, 0.5, 3)
    assert [row["row"] for row in got["unknown"]] == ["c#0"]
    assert got["unknown"][0]["detail"] == "the gold answer is empty"


def test_rows_go_on_with_their_verdicts(dump: Path, capsys: Captured, tmp_path: Path) -> None:
    """And what was written can be graded again, to the same figures."""
    out = tmp_path / "new" / "out.jsonl"
    first = result(capsys, "grade", dump, "--verifier", "exact", "--out", out)
    rows = lines(out)
    assert [(r["id"], r["sample"], r["verdict"]["status"]) for r in rows[:4]] == [
        ("a", 0, "ok"), ("a", 1, "wrong"), ("a", 2, "ok"), ("b", 0, "no_answer")
    ]  # fmt: skip
    assert rows[0]["responses"] == "<think>6</think>5"
    expected = {"correct": True, "score": 1.0, "status": "ok", "answer": "5", "detail": ""}
    assert {k: rows[0]["verdict"][k] for k in expected} == expected
    assert rows[0]["verdict"]["grader"].startswith("exact/")
    again = result(capsys, "grade", out, "--verifier", "exact")
    for figure in ("statuses", "accuracy", "any", "majority"):
        assert again[figure] == first[figure]


def test_the_table_says_what_was_taken_for_what(dump: Path, capsys: Captured) -> None:
    assert main(["reward", "grade", str(dump), "--verifier", "exact"]) == 0
    text = capsys.readouterr().out
    assert "3 rows, 7 responses; answer: answer, response: responses" in text
    assert ["ok", "2", "28.57%"] in [line.split() for line in text.splitlines()]
    assert "accuracy  0.333 [0.000, 1.000] over 2 of 3 problems" in text
    assert "any of 3: 0.500, majority: 0.500" in text
    assert "c#0 gold_error: the gold answer is empty" in text


def test_thinking_may_be_opened_by_the_prompt_or_absent(tmp_path: Path, capsys: Captured) -> None:
    responses = ["4</think>5", "5"]
    path = write(tmp_path / "r.jsonl", [{"answer": "5", "responses": responses}])

    def statuses(*options: str) -> Any:
        return result(capsys, "grade", path, "--verifier", "exact", *options)["statuses"]

    error = warned(capsys, "grade", str(path), "--verifier", "exact")
    assert "1 never close theirs" in error
    assert "--opened" in error
    assert statuses() == {"ok": 2}
    assert statuses("--opened") == {"ok": 1, "no_answer": 1}
    assert statuses("--no-thinking") == {"wrong": 1, "ok": 1}
    assert statuses("--markers", "(", ")") == {"wrong": 1, "ok": 1}


def test_a_runs_folder_brings_its_verifier(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "rollouts").mkdir()
    sample = {"id": "p", "gold": "A", "answer": "b", "text": "a", "thought": "A</think>"}
    write(tmp_path / "rollouts" / "step-1.jsonl", [sample, sample | {"text": None}])
    config = "stages:\n- verifier: {name: exact, ignore_case: true}\n"
    (tmp_path / "config.yaml").write_text(config)
    assert result(capsys, "grade", tmp_path)["statuses"] == {"ok": 1, "no_answer": 1}
    strict = result(capsys, "grade", tmp_path, "--verifier", "exact")
    assert strict["statuses"] == {"wrong": 1, "no_answer": 1}


def test_trouble_is_unknown_and_listed(tmp_path: Path, capsys: Captured) -> None:
    texts = ["5", "raise", "hang", "die", "6"]
    path = write(tmp_path / "r.jsonl", [{"answer": "5", "response": text} for text in texts])
    options = ["--verifier", BY_TEXT, "--deadline", "0.5", "--workers", "2"]
    got = result(capsys, "grade", path, *options)
    assert got["statuses"] == {"ok": 1, "wrong": 1, "error": 2, "timeout": 1}
    assert got["accuracy"]["value"] == 0.5
    assert [(u["row"], u["status"]) for u in got["unknown"]] == [
        ("r/2#0", "error"), ("r/3#0", "timeout"), ("r/4#0", "error")
    ]  # fmt: skip
    assert got["timing"]["killed"] == 1
    assert (got["timing"]["crashed"], got["timing"]["retried"]) == (3, 2)


def test_one_reason_is_told_once(tmp_path: Path, capsys: Captured) -> None:
    rows = [{"answer": "5", "response": "raise"}] * 30 + [{"answer": "", "response": "5"}]
    path = write(tmp_path / "r.jsonl", rows)
    assert main(["reward", "grade", str(path), "--verifier", BY_TEXT, "--workers", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = lines[lines.index("unknown (30), in no figure above:") + 1 :]
    assert told == ["  r/1#0 error: RuntimeError: no judge today  (and 29 more)"]


def test_a_runs_samples_lack_the_columns_that_some_verifiers_read(
    tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "rollouts").mkdir()
    write(tmp_path / "rollouts" / "step-1.jsonl", [{"id": "p", "gold": "B", "text": "B"}])
    error = warned(capsys, "grade", str(tmp_path), "--verifier", "choice")
    assert "keep no columns of its data, and choice may read some" in error


def test_odd_values_are_written_as_json_and_shown_as_text(tmp_path: Path, capsys: Captured) -> None:
    row = {"answer": "\x1b[31mA\ud800", "response": "\x1b[31ma\ud800\n", "x": float("nan")}
    path, out = write(tmp_path / "r.jsonl", [row]), tmp_path / "out.jsonl"
    argv = ["reward", "audit", str(path), "--verifier", "exact", "--out", str(out)]
    assert main([*argv, "--against", "{name: exact, ignore_case: true}"]) == 0
    (written,) = lines(out)
    assert (written["response"], written["x"]) == (row["response"], None)
    text = capsys.readouterr().out
    assert "gold ?[31mA? <- ?[31ma?" in text
    assert "\x1b" not in text


def test_rows_that_name_a_verifier_are_heeded(tmp_path: Path, capsys: Captured) -> None:
    rows = [{"answer": "A", "response": "a", "verifier": name} for name in ("exact", "loose")]
    path = write(tmp_path / "r.jsonl", rows)
    spec = "{name: by_row, verifiers: [exact, {loose: {name: exact, ignore_case: true}}]}"
    assert result(capsys, "grade", path, "--verifier", spec)["statuses"] == {"wrong": 1, "ok": 1}
    error = warned(capsys, "grade", str(path), "--verifier", "exact")
    assert "row r/2 names verifier 'loose'" in error
    assert "by_row" in error


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no file": (["grade", "nowhere.jsonl"], "'nowhere.jsonl' does not exist"),
    "verifier": (["grade", "FILE", "--verifier", "exat"], "did you mean 'exact'"),
    "setting": (["grade", "FILE", "--verifier", "{name: exact, cse: 1}"], "verifier.cse: unknown"),
    "yaml": (["grade", "FILE", "--verifier", "{name: ["], "is no YAML"),
    "number": (["grade", "FILE", "--verifier", "5"], "names no verifier"),
    "second": (["audit", "FILE", "--against", "mth"], "did you mean 'math'"),
    "function": (["grade", "FILE", "--verifier", "os:nothing"], "cannot be imported"),
    "column": (["grade", "FILE", "--columns", "{response: respnses}"], "'responses'?"),
    "columns": (["grade", "FILE", "--columns", "{respons: x}"], "--columns.respons: unknown"),
    "no name": (["grade", "FILE", "--verifier", "{nme: x}"], "verifier: a component is a name"),
    "no map": (["grade", "FILE", "--columns", "x"], "no map of columns"),
    "out is in": (["grade", "FILE", "--out", "FILE"], "is the file that is graded"),
    "out": (["grade", "FILE", "--out", "FILE/x/y"], "cannot be written"),
    "golds only": (["grade", "GOLDS"], "no column of responses"),
    "broken": (["bench", "BROKEN"], "broken.jsonl:2: broken JSON"),
    "bench": (["bench", "--verifier", "tests.graders:by_text"], "give a FILE with responses"),
    "bench's golds": (["bench", "--verifier", "choice"], "knows no right answers"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_before_any_work(
    case: str, dump: Path, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: Any) -> Any:
        raise AssertionError("a pool was started")

    monkeypatch.setattr("launch.reward.VerifierPool", started)
    monkeypatch.setattr("launch.reward_bench.VerifierPool", started)
    golds = write(tmp_path / "golds.jsonl", [{"answer": "5"}])
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"answer": "5"}\n{"answer"\n')
    names = {"FILE": str(dump), "GOLDS": str(golds), "BROKEN": str(broken)}
    argv, said = MISTAKES[case]
    argv = [names.get(a, a.replace("FILE/", f"{dump}/")) for a in argv]
    before = dump.read_text()
    assert main(["reward", *argv]) == 2
    error = capsys.readouterr().err
    assert said in error, error
    assert error.count("\n") == 1, error
    assert dump.read_text() == before


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["grade"],
        ["audit", "x.jsonl"],
        ["grade", "x.jsonl", "--workers", "0"],
        ["grade", "x.jsonl", "--deadline", "0"],
        ["bench", "--hang-share", "2"],
        ["grade", "x.jsonl", "--hang-share", "0.1"],
        ["grade", "x.jsonl", "extra"],
    ],
)
def test_wrong_usage_is_2(argv: list[str], capsys: Captured) -> None:
    assert main(["reward", *argv]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("laconic")


def test_ctrl_c_keeps_what_was_graded(tmp_path: Path) -> None:
    """Rows are written in order as they are graded: those before the one that hangs are there."""
    texts = ["5", "6"] * 8 + ["hang"] + ["7"] * 3
    path = write(tmp_path / "r.jsonl", [{"answer": "5", "response": text} for text in texts])
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "launch.cli", "reward", "grade", str(path), "--out", str(out)]
    command += ["--verifier", BY_TEXT, "--deadline", "3600", "--workers", "1"]
    started = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(1200):
        if out.is_file() and len(out.read_text().splitlines()) >= 16:
            break
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)
    below = psutil.Process(started.pid).children(recursive=True)
    assert below
    started.send_signal(signal.SIGINT)
    told, error = started.communicate(timeout=60)
    assert started.returncode == 130, error
    assert error == "laconic: interrupted\n"
    assert "stopped after 16 of 20 responses" in told
    assert [row["verdict"]["status"] for row in lines(out)] == ["ok", "wrong"] * 8
    _, left = psutil.wait_procs(below, timeout=30)
    assert left == []


def test_an_audit_finds_what_a_naive_grader_accepts(tmp_path: Path, capsys: Captured) -> None:
    """The last word is the gold, whatever stands before it: against the whole answer."""
    texts = ["5", "not 5", "never 5", "6", "not 5", "raise"]
    path = write(tmp_path / "r.jsonl", [{"answer": "5", "response": t} for t in texts])
    argv: list[str | Path] = [
        "audit",
        path,
        "--verifier",
        BY_TEXT,
        "--against",
        "exact",
        "--workers",
        "1",
    ]
    out = tmp_path / "out.jsonl"
    got = result(capsys, *argv, "--out", out)
    table = [["error", "wrong", 1], ["ok", "ok", 1], ["ok", "wrong", 3], ["wrong", "wrong", 1]]
    assert got["table"] == table
    assert (got["cases"], got["known"], got["agree"]) == (6, 5, 2)
    assert got["answers"] == {"false accept": 3, "false reject": 0, "unknown": 1}
    accepts = got["findings"]["false accept"]["shown"]
    assert [(f["written"], f["where"]) for f in accepts] == [
        ("not 5", ["r/2#0", "r/5#0"]), ("never 5", ["r/3#0"])
    ]  # fmt: skip
    kept = [(row["response"], row["audit"]["kind"]) for row in lines(out)]
    assert sorted(kept) == sorted(
        [("not 5", "false accept")] * 2 + [("never 5", "false accept"), ("raise", "unknown")]
    )
    turned: list[str | Path] = [
        "audit",
        path,
        "--verifier",
        "exact",
        "--against",
        BY_TEXT,
        "--workers",
        "1",
    ]
    rejects = result(capsys, *turned)["answers"]
    assert rejects == {"false accept": 0, "false reject": 3, "unknown": 1}
    assert main(["reward", *map(str, argv), "--show", "1"]) == 0
    text = capsys.readouterr().out
    assert "agree on 2 of 5 answers that both could judge (40.00%)" in text
    assert "likely false accepts (the first says right, the second wrong): 3, 2 different" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "... and 1 more: --show 2, or --out FILE" in text


def test_bench_of_golds_and_of_responses(tmp_path: Path, capsys: Captured, dump: Path) -> None:
    built_in = result(capsys, "bench", "--verifier", "exact", "--items", "100")
    assert built_in["at_once"]["share"] == 1.0
    assert sum(built_in["pool"]["statuses"].values()) == 100
    assert set(built_in["pool"]["statuses"]) == {"ok", "wrong"}
    assert result(capsys, "bench", dump, "--verifier", "exact", "--items", "9")["different"] == 5


def test_bench_counts_every_answer_that_hangs(tmp_path: Path, capsys: Captured) -> None:
    path = write(tmp_path / "g.jsonl", [{"answer": str(i)} for i in range(50)])
    argv: list[str | Path] = [
        "bench",
        path,
        "--verifier",
        "exact",
        "--items",
        "200",
        "--hang-share",
        "0.02",
    ]
    options = ["--deadline", "0.3", "--workers", "2"]
    sick = result(capsys, *argv, *options)["hanging"]
    assert sick["hanging"] == sick["statuses"].pop("timeout") == 4
    assert sum(sick["statuses"].values()) == 196
    assert main(["reward", *map(str, [*argv, *options])]) == 0
    text = capsys.readouterr().out
    assert "at once       100.0% of 50 different answers" in text
    assert "hanging       4 of 200 verdicts" in text


def test_a_closed_pipe_is_no_traceback(dump: Path) -> None:
    command = f"{sys.executable} -m launch.cli reward grade {dump} --verifier exact | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert done.stderr == ""
