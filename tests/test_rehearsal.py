"""Mistakes that show only where budget, rewards, template and data meet: told before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer import preflight
from trainer.config import load

ROWS = [{"prompt": "A1+1+5B1+1+1?", "answer": "A", "wanted": 16}] * 3


def mistake(name: str, *settings: str) -> str:
    with pytest.raises(ValueError) as error:
        preflight.check_all(load(name, settings))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("recipe", "settings", "says"),
    [
        ("modes/find", ["budget.modes.high.template.effort=high"], "ignores the argument 'effort'"),
        ("modes/find", ["shaping=[{name: thinkdial, alpha: {high: 0}}]"], "no entry for mode"),
        ("modes/find", ["budget.modes.low.share=.inf"], "budget.modes.low.share"),
        ("curriculum/find", ["steps=10"], "ends at step 25 and the stage has steps=10"),
        ("hbpo/find", ["rollouts_per_prompt=2"], "4 subgroups of the rollouts of a prompt"),
        ("hbpo/find", ["budget.prefill=word"], "cannot write 'word'"),
        ("elastic/find", ["budget.system=hello"], "cannot write 'hello"),
        ("elastic/find", ["thinking=none"], "needs thinking markers"),
        ("brpo/find", ["algorithm=grpo"], "needs credit at cuts"),
        ("brpo/find", ["budget.prior=[0.5, .nan]"], "budget.prior"),
        ("brpo/find", ["budget.prior=[true, false]"], "is no prior"),
        ("brpo/find", ["budget.probe=gold"], "probe"),
        ("grpo/find", ["rollouts_per_prompt=1"], "a single one has advantage 0"),
        ("chunked/find", ["max_staleness=1"], "set max_staleness=2"),
        ("chunked/find", ["budget.of={name: chunked, chunk: 3}"], "is chunked already"),
        ("chunked/find", ["budget.of=[1]"], "is no policy"),
    ],
)
def test_what_does_not_go_together_is_one_line(recipe: str, settings: list[str], says: str) -> None:
    assert says in mistake(recipe, *settings)


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("{kind: custom, function: 'os.path:join', steps: 5}", "function=os.path:join failed at"),
        (
            "{kind: exponential, start: 128, factor: 0.99999999, interval: 1, end: 24}",
            "later than any stage",
        ),
    ],
)
def test_a_schedule_that_fails_or_never_ends(schedule: str, says: str) -> None:
    assert says in mistake("curriculum/find", f"budget.fields.think={schedule}")


@pytest.mark.parametrize(
    ("of", "field", "values", "says"),
    [
        (
            "{name: hierarchical, prefill: '', suffix: ';{budget}'}",
            "budgets",
            "[[0, [16, 32]], [1, [8, 16, 32]], [2, [16, 32]]]",
            "3 subgroups",
        ),
        (
            "{name: elastic, think: 16, answer: 4}",
            "suffix",
            "[[0, ''], [1, word], [2, '']]",
            "?word'",
        ),
        ("{name: anytime, think: 64, answer: 4}", "count", "[[0, 4], [2, 1]]", "credit at cuts"),
    ],
)
def test_a_curriculum_is_tried_at_every_setting(
    of: str, field: str, values: str, says: str
) -> None:
    """What is wrong only between its first and its last step is found as well."""
    budget = f"budget={{name: curriculum, of: {of}, fields: {{{field}: {values}}}}}"
    assert says in mistake("grpo/find", "rollouts_per_prompt=2", budget)


@pytest.mark.parametrize(
    ("last", "settings", "says"),
    [
        ({"wanted": None}, ["budget.think=meta:wanted"], "row needs a column 'wanted'"),
        ({"wanted": 5000}, ["budget.think=meta:wanted"], "think=5000"),
        (
            {"answer": "word"},
            ["budget={name: anytime, think: 64, samples: 2, probe: '{answer}'}", "algorithm=brpo"],
            "row rows/4",
        ),
    ],
)
def test_every_row_is_looked_at(
    tmp_path: Path, last: dict[str, object], settings: list[str], says: str
) -> None:
    rows = [*ROWS, ROWS[0] | last]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["data.task=null", f"data.path={path}", "evaluation.every=0"]
    assert says in mistake("elastic/find", *data, *settings)
