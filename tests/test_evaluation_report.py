"""Risk: a page of evaluations that shows other numbers than the folders hold, mixes experiments in
a line, breaks on small or broken evaluations, or cannot be opened."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import cli
from samplers.types import Prompt
from tests import evaluated, tables
from tests.test_report import Page
from trainer.eval import metric, metrics
from trainer.eval.folder import Folder
from trainer.eval.problems import Task
from trainer.eval.table import Table
from trainer.report import evaluation, style
from trainer.report.evaluation import curves, difficulty, maps, models, pairs, pareto, table
from trainer.report.evaluation.digest import KINDS, digest, mean_columns
from trainer.report.evaluation.panels import RIGHT, WRONG, Sheet


def measured(folder: Folder) -> Path:
    """With metrics.json, as `laconic eval` leaves it."""
    found = metrics.measure(folder.tables())
    text = json.dumps({"metrics": metric.as_json(found)})
    (folder.path / "metrics.json").write_text(text)
    return folder.path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("evaluations")
    made = {kind: evaluated.copied(kind, root / kind) for kind in ("truncate", "both", "effort")}
    made["hotter"] = root / "hotter"
    evaluated.evaluation("truncate", made["hotter"], temperature=1.4, samples=2)
    return {name: measured(Folder(path, _settings(path))) for name, path in made.items()}


def _settings(path: Path) -> dict[str, Any]:
    return json.loads((path / "eval.json").read_text())


class Made:
    """A folder of tables made by hand."""

    def __init__(self, name: str, *found: Table) -> None:
        self.path, self.settings, self.found = Path(name), {"model": name}, list(found)

    def tables(self) -> list[Table]:
        return self.found

    def metrics(self) -> dict[str, metric.Metric]:
        return metrics.measure(self.found)

    def examples(self, task: str) -> list[Any]:
        return []


def sheet_of(*found: Made, baseline: bool = False) -> Sheet:
    made = models.made(found, baseline)
    return Sheet("t", tuple(made))


def drawn(figure: style.Figure) -> Any:
    canvas = style._draw(figure, narrow=False)
    assert canvas is not None
    return canvas


def plots(out: Path) -> set[str]:
    names = {p.stem for p in (out.parent / "plots").glob("*.svg")}
    assert names == {p.stem for p in (out.parent / "plots").glob("*.png")}
    return names


def whole(text: str) -> Page:
    """Parsed: every tag closed, nothing fetched or run, every reference there, no NaN drawn."""
    page = Page(text)
    assert [at for at in page.fetched if not at.startswith("data:image/png;base64,")] == []
    assert "script" not in page.tags
    assert "@import" not in text
    assert "url(http" not in text
    assert len(page.ids) == len(set(page.ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', text)) <= set(page.ids)
    assert not re.search(r"\bnan\b", text)
    return page


CUT = {
    "pareto", "accuracy-budget", "length-difficulty", "cost-difficulty", "think-answer", "ended",
    "selection", "map",
}  # fmt: skip
TOLD = {
    "requested-used", "ended-enforced", "think-answer-announced", "ended-announced",
    "map-announced",
}  # fmt: skip


def test_announced_budgets_make_every_figure_and_the_page_holds_metrics_json(
    real: dict[str, Path], tmp_path: Path
) -> None:
    out = evaluation.write([real["both"]], tmp_path / "report.html")
    assert plots(out) == CUT | TOLD
    text = out.read_text()
    assert whole(text).tags.count("svg") == 2 * len(CUT | TOLD)
    assert "prefers-color-scheme:dark" in text
    assert not [c for c in style.SERIES if f"fill: {c}" in text or f"stroke: {c}" in text]
    saved = json.loads((real["both"] / "metrics.json").read_text())["metrics"]
    rows = re.findall(r"<tr><th scope=row>(find/[^<]+)</th>(.*?)</tr>", text)
    every = {name: re.findall(r"<td>([^<]*)</td>", cells) for name, cells in rows}
    assert set(every) == set(saved)
    for name, cells in every.items():
        value = saved[name]["value"]
        if value is None:
            assert cells[0] == "-"
        else:
            assert float(cells[0]) == pytest.approx(float(value), rel=1e-5)
    summary = text[text.index("<h2>Summary") : text.index("<h2>Accuracy against tokens")]
    for name in ("find/accuracy@inf", "find/accuracy@32", "find/prompt/soft_accuracy@96"):
        assert f"<td>{saved[name]['value']:.3f}<small>" in summary
    half = (saved["find/accuracy@inf"]["high"] - saved["find/accuracy@inf"]["low"]) / 2
    fixed = 1.959964 * saved["find/accuracy@inf"]["se_fixed"]
    both = f"<small>&plusmn;{half:.3f}</small><small>set &plusmn;{fixed:.3f}</small>"
    assert f"{saved['find/accuracy@inf']['value']:.3f}{both}" in summary
    assert f"{saved['find/think_tokens@inf']['value']:,.1f}<small>" in summary


def test_efforts_make_every_figure(real: dict[str, Path], tmp_path: Path) -> None:
    out = evaluation.write([real["effort"]], tmp_path / "report.html")
    assert plots(out) == (CUT - {"think-answer", "ended", "map"}) | {
        "think-answer-effort", "ended-effort",
    }  # fmt: skip
    whole(out.read_text())


def test_no_line_holds_two_experiments(real: dict[str, Path]) -> None:
    found = models.read([real["both"]])
    shown = {f.name: f for f in curves.figures(Sheet("find", tuple(found)))}
    left, right = drawn(shown["accuracy-budget"]).axes
    names = {
        "accuracy@{}": left, "prompt/accuracy@{}": right, "prompt/soft_accuracy@{}": right,
    }  # fmt: skip
    lines = {a: [line.get_ydata().tolist() for line in a.lines] for a in (left, right)}
    for name, axes in names.items():
        values = [found[0].metrics["find/" + name.format(b)].value for b in (32, 96)]
        assert any(y == pytest.approx(values) for y in lines[axes] if len(y) == 2), name
    assert "announced" not in left.get_title()
    assert len([y for y in lines[left] if len(y) == 2]) == 2  # the curve, and its way to no limit
    used = drawn(shown["requested-used"]).axes[0]
    for one in Folder(real["both"], _settings(real["both"])).tables():
        if one.target is not None:
            middle = np.median(one.think_MSJ[..., -1][one.present_MS])
            marks = np.concatenate([line.get_ydata() for line in used.lines])
            assert np.isclose(marks, np.log2(middle)).any()


def test_what_people_wrote_is_text(tmp_path: Path) -> None:
    bad = '$\\no_math$</pre><script>alert("x")</script>'
    prompt = Prompt(0, f"<i>{bad}", (), "A1+2B3+4?", bad, "exact", {"difficulty": 2})
    asked = evaluated.EvalSettings(samples=1, max_tokens=40, answer_tokens=4, budgets=(8,))
    worker = evaluated.worker("base/find")
    task = Task(f"find{bad}"[:12], "find", (prompt,), "exact")
    folder = evaluated.evaluate(worker, [task], asked, tmp_path / "e", about={"model": bad})
    out = evaluation.write([measured(folder)], tmp_path / "report.html")
    whole(out.read_text())
    assert "&lt;script&gt;" in out.read_text()
    assert all("<" not in name for name in plots(out))


CASES: dict[str, list[Table]] = {
    "one problem": [tables.random(1, 4, (0, 8, 32))],
    "one sample": [tables.random(9, 1, (0, 8, 32))],
    "one of both": [tables.random(1, 1, (16,))],
    "no budgets": [tables.random(6, 3)],
    "no thinking at all": [tables.random(6, 2, (0,))],
    "no difficulty": [tables.random(6, 2, (4,), difficulty_M=np.full(6, -1))],
    "nothing right": [tables.made(np.full((5, 2), 30), np.full((5, 2), 99), (8, 16))],
    "all right": [tables.made(np.full((5, 2), 30), np.full((5, 2), 0), (8, 16))],
    "never closes": [tables.made(np.full((5, 2), 100), np.full((5, 2), 99), (8, 16))],
    "two tasks": [tables.random(5, 2, (4,), task="a-b"), tables.random(4, 2, task="a/b")],
    "all unknown": [
        tables.random(
            5,
            2,
            (8,),
            correct_MSJ=np.full((5, 2, 2), np.nan),
            status_MSJ=np.full((5, 2, 2), tables.TIMEOUT),
        )
    ],
    "nothing": [],
}


PAGES = ("one of both", "two tasks", "nothing")


@pytest.mark.parametrize("case", [case for case in CASES if case not in PAGES])
def test_small_and_broken_evaluations_are_drawn(case: str) -> None:
    found = models.made([Made("one", *CASES[case])])
    for task in models.tasks(found):
        shown = evaluation.figures(Sheet(task, tuple(found), "x-"))
        made = {f.name: style.inline(f, narrow=True) for f in shown}
        assert any(made.values())
        assert not [name for name, svg in made.items() if svg and re.search(r"\bnan\b", svg)]
        assert case != "no thinking at all" or "x-requested-used" not in made
    said = table.text(found, models.tasks(found))
    assert "nan" not in said
    assert ("set +-" in said) == ("these very problems" in said)


@pytest.mark.parametrize("case", PAGES)
def test_small_and_broken_evaluations_make_a_page(case: str, tmp_path: Path) -> None:
    found = models.made([Made("one", *CASES[case])])
    out = evaluation.write_models(found, tmp_path / "report.html")
    assert (whole(out.read_text()).tags.count("svg") > 0) == bool(CASES[case])
    if case == "one of both":
        again = evaluation.write_models(found, tmp_path / "again" / "report.html")
        assert again.read_bytes() == out.read_bytes()


@pytest.mark.slow
def test_a_large_evaluation_stays_small(tmp_path: Path) -> None:
    budgets = tuple(range(8, 72, 8))
    big = [Made(n, tables.random(1000, 8, budgets, seed=i)) for i, n in enumerate("ab")]
    out = evaluation.write_models(models.made(big, True), tmp_path / "report.html")
    assert out.stat().st_size < 2_000_000
    assert max(p.stat().st_size for p in (tmp_path / "plots").glob("*.svg")) < 400_000


@given(
    st.integers(1, 6), st.integers(1, 4), st.lists(st.integers(0, 90), max_size=4, unique=True),
    st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_a_digest_says_what_the_samples_say(m: int, s: int, budgets: list[int], seed: int) -> None:
    made = tables.random(m, s, tuple(sorted(budgets)), seed=seed)
    d = digest(made)
    assert d.kinds_JK.sum(axis=1) == pytest.approx(1)
    right = d.kinds_JK[:, KINDS.index("right")] + d.kinds_JK[:, KINDS.index("right, forced")]
    assert right == pytest.approx(made.correct_MSJ.mean(axis=(0, 1)))
    forced = d.kinds_JK[:, [KINDS.index(k) for k in ("right, forced", "wrong, forced")]].sum(axis=1)
    assert forced == pytest.approx(made.forced_MSJ.mean(axis=(0, 1)))
    assert mean_columns(d.think_MJ) == pytest.approx(made.think_MSJ.mean(axis=(0, 1)))
    capped = (made.finish_MS == 1).mean()
    assert d.kinds_JK[-1, KINDS.index("no room to answer")] == pytest.approx(capped)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_frontier_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    best = pareto.frontier([(float(t), float(a)) for t, a in points])
    beaten = {
        p for p in points for q in points
        if q != p and q[0] <= p[0] and q[1] >= p[1]
    }  # fmt: skip
    assert best == sorted(set(points) - beaten)


def test_gains_and_losses_are_counted_by_problem() -> None:
    a = tables.made(np.full((6, 2), 30), [[0, 0], [0, 0], [99, 99], [99, 99], [0, 99], [0, 99]])
    b = tables.made(np.full((6, 2), 20), [[0, 0], [0, 99], [0, 99], [99, 99], [99, 0], [0, 0]])
    other = tables.made(np.full((3, 2), 20), np.zeros((3, 2)), ids_M=("p2", "p0", "new"))
    found = models.made([Made("a", a), Made("b", b), Made("c", other)])
    first, second = pairs.pairs(found, "t")
    assert first.counts == (2, 3, 1)
    assert first.accuracy.difference.value == pytest.approx(np.mean([0, -0.5, 0.5, 0, 0, 0.5]))
    assert first.tokens.difference.value == pytest.approx(-10)
    assert second.counts == (1, 1, 0)  # p2 and p0 alone are in both


def bins_of(*rights: Sequence[float]) -> difficulty.Bins | None:
    """Bins of models with these pass rates of ten samples, the first the baseline."""
    found = []
    for i, rates in enumerate(rights):
        need = [[0] * round(10 * r) + [99] * (10 - round(10 * r)) for r in rates]
        none = np.full(len(rates), -1)
        one = tables.made(np.full((len(rates), 10), 30), need, difficulty_M=none)
        found.append(Made(f"m{i}", one))
    return difficulty.bins(sheet_of(*found, baseline=True))


def test_bins_are_the_data_s_or_the_baseline_s_never_the_model_s() -> None:
    one, other = bins_of([1, 0.7, 0], [0, 0, 0]), bins_of([1, 0.7, 0], [1, 1, 0.5])
    assert one is not None
    assert one == other
    assert one.names == ("solved > 0.9", "0.6 to 0.9", "< 0.05")
    assert dict(one.of) == {"p0": 0, "p1": 1, "p2": 2}
    alone = Made("m", tables.random(4, 2, difficulty_M=np.full(4, -1)))
    assert difficulty.bins(sheet_of(alone)) is None
    levels = Made("m", tables.random(40, 2, difficulty_M=np.arange(40)))
    told = difficulty.bins(sheet_of(levels))
    assert told is not None
    assert told.what == "difficulty"
    assert len(told.names) <= difficulty.MOST
    assert [told.of[f"p{i}"] for i in range(40)] == sorted(told.of[f"p{i}"] for i in range(40))


def test_the_map_tells_right_wrong_and_forced() -> None:
    from matplotlib.colors import to_rgb

    three = tables.made([[30], [30], [100]], [[0], [99], [99]], (8,))
    (series,) = models.made([Made("m", three)])[0].series("t", "cut")
    image = maps.picture(series, ["p0", "p1", "p2", "gone"])
    assert image[0, :2, :3] == pytest.approx(np.array([to_rgb(RIGHT), to_rgb(WRONG)]))
    assert image[0, :3, 3] == pytest.approx(maps.FAINT)
    assert image[1, :2, 3] == pytest.approx(1)
    assert image[1, 2, :3] == pytest.approx(np.array(to_rgb(style.MUTED)))
    assert image[:, 3, 3] == pytest.approx(0)
    many = tables.random(1600, 1, (8,))
    (series,) = models.made([Made("m", many)])[0].series("t", "cut")
    assert maps.picture(series, many.ids_M).shape == (2, maps.WIDTH, 4)


def test_other_problems_are_told() -> None:
    alike = {"max_tokens": 9, "identity": {"tasks": {"t": "9 problems a"}}}
    assert models.unlike(alike, alike) == []
    other = {"max_tokens": 8, "identity": {"tasks": {"t": "9 problems b", "u": "1 problem c"}}}
    cap, problems = models.unlike(alike, other)
    assert cap.startswith("max_tokens is 8 here and 9 ")
    assert "other problems (9 problems b) than the first model's (9 problems a)" in problems


def test_names_tell_models_apart() -> None:
    named = [m.name for m in models.made([Made("runs/a/model"), Made("/x/runs/b/model")])]
    assert named == ["a/model", "b/model"]
    assert [m.name for m in models.made([Made("Qwen/Qwen3-1.7B")])] == ["Qwen/Qwen3-1.7B"]
    same = models.made([Made("base/find"), Made("base/find")])
    assert len({m.name for m in same}) == 2


def test_report_takes_evaluation_folders(
    real: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r" / "report.html"
    folders = [str(real["truncate"]), str(real["hotter"])]
    asked = ["--against", "truncate", "--show", "think_tokens/sd"]
    assert cli.main(["report", *folders, *asked, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    saved = json.loads((real["hotter"] / "metrics.json").read_text())["metrics"]
    assert f"{saved['find/accuracy@inf']['value']:.3f}" in printed
    assert f"report: {out}" in printed
    text = out.read_text()
    assert whole(text).tags.count("svg") == 2 * 9
    assert plots(out) == CUT | {"gains"}
    assert "temperature is 1.4 here and 1.0 for the first model" in text
    assert ">think_tokens/sd</th>" in text
    assert f"<td>{saved['find/think_tokens/sd']['value']:,.1f}<small>" in text
    (tmp_path / "run").mkdir()
    for arguments, said in (
        ([folders[0], str(tmp_path / "run")], "is an evaluation and"),
        ([*folders, "--against", "nobody"], "--against: no folder 'nobody'"),
        ([*folders, "--reach", "0.7"], "--reach: 0.7 is of tokens"),
        ([*folders, "--show", "nothing"], "--show: no evaluation has 'nothing'"),
    ):
        assert cli.main(["report", *arguments, "--out", str(tmp_path / "x.html")]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "x.html").exists()
    (real["hotter"] / "metrics.json").rename(tmp_path / "gone")
    assert cli.main(["report", folders[1], "--out", str(tmp_path / "x.html")]) == 2
    assert "laconic eval" in capsys.readouterr().err
    (tmp_path / "gone").rename(real["hotter"] / "metrics.json")
