"""Risk: an evaluation that pays twice, mixes experiments, or reads its own samples wrongly."""

from __future__ import annotations

from pathlib import Path

from tests.evaluated import copied
from trainer.eval import samples
from trainer.eval.folder import open_folder
from trainer.eval.table import STATUSES, Table


def table(path: Path, asked: str = "") -> Table:
    return next(t for t in open_folder(path).tables() if t.asked == asked)


def test_tables_say_what_the_samples_say(tmp_path: Path) -> None:
    """Against a slow reading of both files, cell by cell."""
    path = copied("truncate", tmp_path)
    found = table(path)
    assert found.budgets == (0, 16, 48)
    assert found.present_MS.all()
    assert found.present_MS.shape == (12, 4)
    rows = list(samples.read(path / samples.SAMPLES))
    header, *judged = samples.read(path / samples.VERDICTS)
    assert header == {"graders": {"find": "exact/1"}}
    assert len(rows) == len(judged) == 48
    for row, verdict in zip(rows, judged, strict=True):
        m, s = found.ids_M.index(row["id"]), row["sample"]
        assert found.closed_MS[m, s] == row["closed"]
        for j, budget in enumerate((*found.budgets, "inf")):
            at = [i for i, cut in enumerate(row["cuts"]) if cut["budget"] == budget]
            own = not at
            assert own == (row["closed"] and budget != "inf" and budget >= row["think_tokens"])
            cut, (status, _) = (
                (row["cuts"][i], verdict["verdicts"][i]) for i in (at or [-1])
            ).__next__()
            assert STATUSES[found.status_MSJ[m, s, j]] == status
            assert found.correct_MSJ[m, s, j] == (status == "ok")
            assert found.think_MSJ[m, s, j] == cut["think"]
            assert found.answer_MSJ[m, s, j] == cut["tokens"]
            assert found.forced_MSJ[m, s, j] == (not own and budget != "inf")
