"""Risk: an evaluation that is cut short or tampered with pays twice, or lies of what it holds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluated import KINDS, copied, evaluation, never, rows, said, table, task, worker
from tests.shaped import rollout
from trainer import runfolder
from trainer.eval import run, samples, suites
from trainer.eval.folder import open_folder, write
from trainer.eval.judging import judge
from trainer.eval.settings import EvalSettings

# What is there is not made again


def filled(path: Path, samples_: int = 4, **changed: Any) -> None:
    """The usual evaluation again, where no engine may be asked."""
    model, asks, usual = KINDS["truncate"]
    settings = EvalSettings(**{**usual, "samples": samples_, "answer_tokens": 8, **changed})
    about = {"model": model, "identity": {"model": model}}
    renderer = worker(model).renderer
    run.fill(never, renderer, [task(12)], settings, path, asks=asks, about=about)


def test_a_finished_folder_needs_no_engine(tmp_path: Path) -> None:
    path = copied("truncate", tmp_path)
    before = (path / samples.SAMPLES).read_bytes()
    filled(path)
    filled(path, 3)  # fewer are there too
    assert (path / samples.SAMPLES).read_bytes() == before


def test_a_torn_line_and_a_lost_sample_are_made_again(tmp_path: Path) -> None:
    path = copied("truncate", tmp_path)
    lines = (path / samples.SAMPLES).read_bytes().splitlines(keepends=True)
    all_said = sorted(map(said, rows(path)))
    for kept in (lines[:20], [*lines[:20], lines[20][:50]], [lines[0][:7]], []):
        (path / samples.SAMPLES).write_bytes(b"".join(kept))
        evaluation("truncate", path)
        again = (path / samples.SAMPLES).read_bytes().splitlines(keepends=True)
        ended = [line for line in kept if line.endswith(b"\n")]
        assert again[: len(ended)] == ended
        assert sorted(map(said, rows(path))) == all_said
        assert table(path).present_MS.all()


def test_more_samples_go_on_with_those_there(tmp_path: Path) -> None:
    path = copied("truncate", tmp_path)
    before = (path / samples.SAMPLES).read_bytes()
    judged = (path / samples.VERDICTS).read_bytes()
    evaluation("truncate", path, samples=6)
    assert (path / samples.SAMPLES).read_bytes().startswith(before)
    assert (path / samples.VERDICTS).read_bytes().startswith(judged)
    assert table(path).present_MS.shape == (12, 6)
    assert table(path).present_MS.all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"budgets": (0, 16)}, r"budgets is \[0, 16, 48, 'inf'\] there, \[0, 16, 'inf'\] here"),
        ({"max_tokens": 127}, "max_tokens is 128 there, 127 here"),
        ({"temperature": 0.6}, "temperature is 1.0 there, 0.6 here"),
    ],
)
def test_other_settings_are_refused(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = copied("truncate", tmp_path)
    with pytest.raises(ValueError, match=said):
        filled(path, **changed)


def test_other_problems_and_a_folder_in_use_are_refused(tmp_path: Path) -> None:
    path = copied("truncate", tmp_path)
    with pytest.raises(ValueError, match=r"tasks\.find is '12 problems .* there, '8 problems"):
        evaluation("truncate", path, problems=8)
    with runfolder.claim(path), pytest.raises(ValueError, match="is in use by process"):
        filled(path)
    (path / samples.SETTINGS).unlink()
    with pytest.raises(ValueError, match=r"holds samples and no eval\.json"):
        filled(path)
    with pytest.raises(ValueError, match=r"no evaluation \(no eval.json\)"):
        open_folder(path)
    for text in ('{"identity": {', "[]", "{}"):
        (path / samples.SETTINGS).write_text(text)
        with pytest.raises(ValueError, match=r"eval\.json: does not say .*; restore it"):
            filled(path)


# Files that anybody can read


def test_numbers_that_json_does_not_have_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        samples.line({"score": math.nan})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path / "x.json", [math.inf])
    assert not list(tmp_path.iterdir())
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "1+1?", "answer": "2", "x": NaN, "more": [{"y": -Infinity}]}\n')
    (row,) = suites.task(str(file), suites.Wanted()).rows()
    assert json.loads(samples.line(row))["meta"] == {
        "answer": "2", "x": None, "more": [{"y": None}],
    }  # fmt: skip


def test_a_token_without_any_probability_is_a_number() -> None:
    made = rollout(2, 1, closed=False)
    made.thought.logprobs_T[:] = -math.inf, -1
    made.final.tokens.logprobs_T[:] = -math.inf
    row = json.loads(samples.line(samples.row_of(("t", "p", 0, ""), made, ())))
    assert (row["thought_logprob"], row["cuts"][-1]["confidence"]) == (-5000, 0)


# Verdicts


def test_verdicts_of_another_grader_are_refused_until_judged_again(tmp_path: Path) -> None:
    path = copied("truncate", tmp_path)
    file = path / samples.VERDICTS
    right = file.read_text()
    file.write_text(right.replace("exact/1", "exact/0", 1).replace('["ok"', '["wrong"'))
    with pytest.raises(ValueError, match=rf"by exact/0, .* by exact/1; .* eval {path} --offline"):
        open_folder(path).tables()
    judge(open_folder(path))
    assert file.read_text() == right


def test_missing_and_torn_verdicts_are_made_up_for(tmp_path: Path) -> None:
    path = copied("truncate", tmp_path)
    file = path / samples.VERDICTS
    right = file.read_bytes()
    lines = right.splitlines(keepends=True)
    for kept in (lines[:10], [*lines[:10], lines[10][:9]], lines[:1], [lines[0][:5]], []):
        file.write_bytes(b"".join(kept))
        with pytest.raises(ValueError, match="have no verdict yet"):
            open_folder(path).tables()
        judge(open_folder(path))
        assert file.read_bytes() == right


@pytest.mark.parametrize("taken", [1, 30, 48])
@pytest.mark.parametrize("name", [samples.SAMPLES, samples.VERDICTS])
def test_lines_that_somebody_took_out_are_made_up_for(
    name: str, taken: int, tmp_path: Path
) -> None:
    """As the message about a broken line says; the samples stand in another order then."""
    path = copied("truncate", tmp_path)
    before = table(path)
    lines = (path / name).read_text().splitlines(keepends=True)
    assert len(lines) == 48 + (name == samples.VERDICTS)
    del lines[taken - (name == samples.SAMPLES)]
    (path / name).write_text("".join(lines))
    if taken < 48:
        with pytest.raises(ValueError, match=rf"is of other samples .*: laconic eval {path} --off"):
            open_folder(path).tables()
    judge(open_folder(path))
    there = [samples.key_of(row) for row in rows(path)]
    _, *judged = samples.read(path / samples.VERDICTS)
    assert [samples.key_of(row) for row in judged] == there
    evaluation("truncate", path)
    after = table(path)
    for field in ("status_MSJ", "think_MSJ", "present_MS"):
        np.testing.assert_array_equal(getattr(after, field), getattr(before, field))


def test_a_problem_that_somebody_took_out_is_written_again(tmp_path: Path) -> None:
    path = copied("truncate", tmp_path)
    before = table(path)
    first, rest = (path / samples.PROBLEMS).read_text().split("\n", 1)
    (path / samples.PROBLEMS).write_text(rest)
    name = json.loads(first)["id"]
    for act in (lambda: table(path), lambda: judge(open_folder(path), again=True)):
        with pytest.raises(ValueError, match=rf"problems.jsonl has no problem '{name}' of task"):
            act()
    evaluation("truncate", path)
    np.testing.assert_array_equal(table(path).status_MSJ, before.status_MSJ)
