"""Risk: a report that shows other numbers than the runs hold, or that cannot be opened."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rewards.verdict import Verdict
from samplers.types import Answer, Group, Job, Plan, Prompt, Rollout, Tokens
from trainer import report
from trainer.console import Console
from trainer.eval.budgets import EvalConfig, Item, evaluate
from trainer.metrics import summarise
from trainer.report import data, labels, plots, style, table
from trainer.tracking import Tracker, TrackingConfig

CAP, BUDGETS = 192, (0, 8, 16, 32, 64, 128)
LETTERS = "ABCDEF"


class Reasoner:
    """A caricature of the tiny reasoner: tries candidates in order, sloppily and at length.

    `skill`: P(it finds the hit); `waste`: tokens per candidate beyond the 11 that it needs.
    """

    def __init__(self, skill: float, waste: float) -> None:
        self.skill, self.waste = skill, waste

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
        return [self._one(job) for job in jobs]

    def _one(self, job: Job) -> Rollout:
        rng = np.random.default_rng(job.seed % 2**32)
        size, gold = int(job.prompt.meta["difficulty"]), job.prompt.answer
        need = 11 * (1 + LETTERS.index(gold))
        length = int(min(CAP, need + self.waste * size * rng.uniform(0.5, 2.0)))
        finds, closed = rng.random() < self.skill, length < CAP
        thought = _tokens(length + closed, "stop" if closed else "length")
        answers = []
        for cut in job.plan.cuts or (CAP,):
            known = finds and cut >= need
            text = gold if known else LETTERS[int(rng.integers(size))]
            own = closed and cut >= length
            tokens = _tokens(2) if own else _tokens(3, forced=1)
            answers.append((Answer(min(cut, len(thought)), tokens, text),))
        return Rollout(
            job.prompt.index, job.group, job.index, job.seed, job.plan, _tokens(9).ids_T,
            thought, closed, tuple(answers),
        )  # fmt: skip

    def grade(self, items: Sequence[Item]) -> list[Verdict]:
        return [grade(text, gold) for text, gold, _ in items]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        words = "A6+4=3-6=4.B3+4=0+3=3.rB3+4=0+3=3.C0-0=0+0=0!"
        return [(words * 9)[: len(i)] + "</think>" for i in ids]


def grade(text: str | None, gold: str) -> Verdict:
    if text is None:
        return Verdict(False, 0.0, "no_answer")
    return Verdict(text == gold, float(text == gold), "ok" if text == gold else "wrong", text)


def _tokens(count: int, finish: str = "stop", forced: int = 0) -> Tokens:
    logprobs = np.full(count, -0.1, dtype=np.float32)
    logprobs[:forced] = np.nan
    return Tokens(np.zeros(count, np.int32), logprobs, finish)  # type: ignore[arg-type]


def problem(index: int) -> Prompt:
    size = 2 + index % 5
    gold = LETTERS[(index * 7 // 5) % size]
    text = "".join(f"{c}{(index * 3 + i) % 7}+4-6" for i, c in enumerate(LETTERS[:size])) + "?"
    return Prompt(index, f"find-{index}", (), text, gold, "exact", {"difficulty": size})


def make_run(
    root: Path,
    name: str,
    seed: int,
    skill: float,
    waste: float,
    steps: int = 30,
    problems: int = 96,
) -> Path:
    """A run folder written by the real tracker and the real evaluation."""
    folder = root / f"{name.replace('/', '-')}-seed{seed}"
    folder.mkdir(parents=True)
    stages = [{"kind": "rl", "steps": steps, "optim": {"lr": 2e-3}}]
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"name": name, "seed": seed, "stages": stages}, sort_keys=False)
    )
    (folder / "environment.json").write_text(json.dumps({"torch": "2.x"}))
    config = EvalConfig(budgets=BUDGETS, samples=2)
    held_out, rng = [problem(1000 + i) for i in range(problems)], np.random.default_rng(seed)
    skill, waste = skill + rng.normal(0, 0.01), waste * rng.uniform(0.85, 1.15)
    quiet = Console(0, name, terminal=_silent())
    with Tracker(folder, TrackingConfig(), console=quiet) as tracker:
        for step in range(steps + 1):
            done = 1 - np.exp(-4.0 * step / steps)
            wobble = rng.normal(0, 0.012) if step else 0.0
            model = Reasoner(0.55 + (skill - 0.55) * done + wobble, 14 + (waste - 14) * done)
            figures: dict[str, float | int] = {}
            if step:
                groups = [_group(model, seed * 7919 + step * 97 + g) for g in range(16)]
                batch = {"entropy": 0.13 - 0.05 * done + rng.normal(0, 0.002), "loss": 0.01}
                figures = summarise(groups, batch)
                tracker.samples(step, groups, model.decode)
            if step in (0, steps // 2, steps):
                result = evaluate(model, held_out, config, Plan(CAP), step)
                result.save(folder / "eval")
                figures |= result.flat()
            tracker.log(step, figures)
    return folder


def _group(model: Reasoner, draw: int) -> Group:
    prompt = problem(draw)
    rollouts = model.rollout([Job(prompt, Plan(CAP), draw, i, draw * 64 + i) for i in range(8)])
    verdicts = tuple(((grade(r.final.text, prompt.answer),),) for r in rollouts)
    correct = np.array([[[v.score for v in c] for c in r] for r in verdicts])
    return Group(prompt, draw, tuple(rollouts), verdicts, {"correct": correct})


def _silent() -> object:
    from rich.console import Console as Terminal

    return Terminal(file=io.StringIO())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    arms = {"grpo/find": (0.95, 8.0), "length/find": (0.94, 1.0)}
    return [
        make_run(root, name, seed, *skill, steps=6, problems=40)
        for name, skill in arms.items()
        for seed in (0, 1, 2)
    ]


def summaries(runs: list[Path], name: str, step: int = 6) -> list[dict[str, dict[str, float]]]:
    found = [run for run in runs if run.name.startswith(name)]
    return [json.loads((r / "eval" / f"step-{step}.json").read_text())["metrics"] for r in found]


def test_table_is_the_mean_over_seeds_with_a_t_interval(runs: list[Path]) -> None:
    text = report.summary_table(runs).splitlines()
    assert text[0].split()[:3] == ["arm", "seeds", "accuracy"]
    begin = next(i for i, line in enumerate(text) if line.startswith("accuracy at budget"))
    assert text[begin].split()[3:] == ["base", "grpo/find", "length/find"]
    at = {line.split()[0]: line.split() for line in text[begin + 1 : begin + 1 + len(BUDGETS)]}
    assert list(at) == [str(b) for b in BUDGETS]
    forced = np.mean([m["accuracy@32"]["value"] for m in summaries(runs, "grpo")])
    assert at["32"][3] == f"{forced:.3f}"
    assert max(map(len, text)) <= 110
    values = [m["accuracy"]["value"] for m in summaries(runs, "grpo")]
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
    row = next(line for line in text if line.startswith("grpo/find"))
    assert row.split()[1] == "3"
    assert f"{np.mean(values):.3f} +-{half:.3f}" in row
    thinking = np.mean([m["think_tokens/mean"]["value"] for m in summaries(runs, "length")])
    assert f"{thinking:.1f} +-" in next(line for line in text if line.startswith("length/find"))


def test_arms_are_paired_by_seed(runs: list[Path]) -> None:
    by_metric = {c.metric: c for c in table.contrasts(data.arms(map(data.read_run, runs)))}
    after, before = (
        [m["think_tokens/mean"]["value"] for m in summaries(runs, name)] for name in ("len", "grpo")
    )
    contrast = by_metric["think_tokens/mean"]
    assert (contrast.later, contrast.earlier) == ("length/find", "grpo/find")
    assert contrast.units == "3 seeds"
    assert contrast.result.p_t == pytest.approx(stats.ttest_rel(after, before).pvalue)
    assert contrast.result.difference.value == pytest.approx(np.mean(after) - np.mean(before))
    assert contrast.result.p_flip == 0.25  # the least that three pairs can give


def test_one_seed_is_paired_by_problem(runs: list[Path]) -> None:
    pair = [runs[0], runs[3]]
    contrasts = {c.metric: c for c in table.contrasts(data.arms(map(data.read_run, pair)))}
    assert contrasts["accuracy"].units == "40 problems"
    for metric in ("accuracy", "think_tokens/mean", "anytime"):
        ours = contrasts[metric].result.difference.value
        a, b = (summaries([run], run.name)[0][metric]["value"] for run in pair)
        assert ours == pytest.approx(b - a)
    assert "over problems (one seed" in report.summary_table(pair)


def test_base_is_where_the_last_stage_began(tmp_path: Path) -> None:
    run = make_run(tmp_path, "grpo", 0, 0.9, 5.0, steps=6, problems=10)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["stages"] = [{"kind": "sft", "steps": 3}, {"kind": "rl", "steps": 3}]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    found = data.read_run(run)
    assert found.base is not None
    assert found.base.step == 3
    assert data.series(found, "accuracy")[0].tolist() == [3, 4, 5, 6]
    other = make_run(tmp_path, "other", 0, 0.9, 5.0, steps=4, problems=10)
    chosen = data.base_of(data.arms([found]), other / "eval")
    assert chosen is not None
    assert chosen.folder == other / "eval"


class Page(HTMLParser):
    """Checks nesting and collects what a browser would fetch or run."""

    VOID = frozenset({"meta", "br", "path", "use", "rect", "line"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href") and not str(value).startswith("#"):
                self.fetched.append(str(value))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_page_is_whole_and_fetches_nothing(runs: list[Path], tmp_path: Path) -> None:
    out = report.write(runs, tmp_path / "deep" / "report.html")
    text = out.read_text()
    page = Page(text)
    assert page.fetched == []
    assert "script" not in page.tags
    assert "@import" not in text
    assert "url(http" not in text
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 12  # six figures, wide and narrow
    references = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    assert references <= set(page.ids)
    assert "prefers-color-scheme:dark" in text
    assert not [c for c in style.SERIES if f"fill: {c}" in text or f"stroke: {c}" in text]
    plots_made = sorted(p.name for p in (out.parent / "plots").iterdir())
    assert len(plots_made) == 12
    assert all((out.parent / "plots" / name).stat().st_size > 2000 for name in plots_made)
    again = report.write(runs, tmp_path / "again.html")
    assert again.read_bytes() == out.read_bytes()


def test_page_shows_the_same_problem_of_base_and_arms(runs: list[Path], tmp_path: Path) -> None:
    text = report.write(runs, tmp_path / "report.html").read_text()
    read = text[text.index("The same problems") : text.index("Rollouts of the last")]
    rows = data.read_run(runs[0]).evaluations[0].shown
    assert len(rows) == 6
    assert read.count("<article>") == 6
    assert read.count("<div class=card>") == 6 * 3
    assert all(f"{row['think_tokens']} tokens" in read for row in rows)


def test_what_a_model_writes_is_not_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x>"
    run = make_run(tmp_path, f"a{evil}".replace("/", "|"), 0, 0.9, 5.0, steps=2, problems=8)
    for path in [*run.glob("eval/shown-*.jsonl"), *run.glob("rollouts/*.jsonl")]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [{**r, "thought": evil * 99, "prompt": evil, "text": evil} for r in rows]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = Page(report.write([run], tmp_path / "report.html").read_text())
    assert "script" not in page.tags
    assert "img" not in page.tags


def test_figures_draw_what_was_measured(runs: list[Path]) -> None:
    found = data.arms(map(data.read_run, runs))
    figure = plots.figures(found, data.base_of(found, None))[0]
    canvas = style._draw(figure, narrow=False)
    drawn = [line.get_ydata().tolist() for line in canvas.axes[0].lines]
    mean = [
        np.mean([m[f"accuracy@{b}"]["value"] for m in summaries(runs, "length")]) for b in BUDGETS
    ]
    assert any(y == pytest.approx(mean) for y in drawn if len(y) == len(mean))
    two = data.Arm("two", [run for run in found[0].runs if run.seed < 2])
    curve = plots.curves([two], None)[0].at("accuracy")
    ends = sorted(m["accuracy"]["value"] for m in summaries(runs, "grpo")[:2])
    assert [curve.low, curve.high] == pytest.approx(ends)
    assert plots.octaves([0, 8, 16, 64]).tolist() == [2, 3, 4, 6]


def test_a_run_without_evaluation_still_makes_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, "grpo", 0, 0.9, 5.0, steps=3, problems=8)
    shutil.rmtree(run / "eval")
    text = report.write([run], tmp_path / "report.html").read_text()
    assert Page(text).tags.count("svg") == 2  # training curves
    assert "Summary" not in text
    assert report.summary_table([run]).startswith("arm")


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run folders"):
        report.write([], tmp_path / "report.html")
    with pytest.raises(ValueError, match=r"is not a run folder \(no config\.yaml\)"):
        report.write([tmp_path], tmp_path / "report.html")
    run = make_run(tmp_path, "grpo", 0, 0.9, 5.0, steps=1, problems=4)
    with pytest.raises(ValueError, match="holds no evaluation"):
        report.write([run], tmp_path / "report.html", base=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"are both seed 0 of 'grpo'; leave one out"):
        report.summary_table([run, run])
    with pytest.raises(ValueError, match="is a folder; name the page"):
        report.write([run], tmp_path)
    with pytest.raises(ValueError, match=r"config\.yaml cannot be made: File exists"):
        report.write([run], run / "config.yaml" / "page.html")
    (run / "eval/step-1.json").write_text("{")
    with pytest.raises(ValueError, match=r"step-1\.json: broken JSON .*; remove it"):
        report.summary_table([run])
    (run / "config.yaml").write_text("{")
    with pytest.raises(ValueError, match=r"config\.yaml: broken YAML"):
        report.summary_table([run])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(deadline=None)
def test_labels_keep_apart_in_order_and_in_bounds(values: list[float]) -> None:
    places = labels.apart(values, 0.08, 0, 1)
    order = np.argsort(values, kind="stable")
    gaps = np.diff(np.array(places)[order])
    assert (gaps >= 0.08 - 1e-9).all()
    assert min(places) >= -1e-9
    assert max(places) <= 1 + 1e-9
    lonely = len(values) == 1 and 0.04 <= values[0] <= 0.96
    assert not lonely or places == values
