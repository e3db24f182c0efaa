"""Figures of arms: points and lines where they were measured, many arms told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.test_report_tokens import by_hand, three_arms
from trainer import report
from trainer.report import data, labels, plots, style


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return three_arms(tmp_path_factory.mktemp("runs"))


def drawn(figures: list[style.Figure], name: str) -> Any:
    figure = next(f for f in figures if f.name == name)
    return style._draw(figure, narrow=False).axes[0]


def test_the_line_of_an_arm_is_the_mean_of_its_seeds(runs: list[Path]) -> None:
    found = data.arms(map(data.read_run, runs))
    axes = drawn(plots.figures(found, None), "area-generated")
    line = next(x for x in axes.lines if len(x.get_xdata()) > 50)
    at, values = line.get_xdata(), line.get_ydata()
    each = [by_hand(run) for run in runs if run.name.startswith("grpo")]
    assert at[0] == 0
    assert at[-1] == min(spent[-1] for spent, _ in each)
    mean = np.mean([np.interp(at, spent, area) for spent, area in each], axis=0)
    np.testing.assert_allclose(values, mean)


def test_a_point_of_an_arm_has_its_intervals(runs: list[Path]) -> None:
    found = data.arms(map(data.read_run, runs))
    axes = drawn(plots.figures(found, None), "accuracy-thinking")
    points = [line.get_xydata().tolist() for line in axes.lines]
    arm = found[1]
    x, y = arm.estimate("think_tokens/mean"), arm.estimate("accuracy")
    assert [[pytest.approx(x.value), pytest.approx(y.value)]] in points
    bars = [path.vertices.tolist() for c in axes.collections for path in c.get_paths()]
    for wanted in (
        [[x.low, y.value], [x.high, y.value]],
        [[x.value, y.low], [x.value, y.high]],
    ):
        assert any(np.allclose(bar, wanted) for bar in bars)


def test_forty_arms_look_different() -> None:
    looks = {(style.colour(i), style.marker(i)) for i in range(40)}
    assert len(looks) == 40
    assert len({(style.colour(i), style.line(i)) for i in range(20)}) == 20


@pytest.mark.parametrize("seed", range(4))
def test_names_beside_points_do_not_cover_one_another(seed: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7.6, 5.4), layout="constrained")
    FigureCanvasAgg(canvas)
    axes, rng = canvas.add_subplot(), np.random.default_rng(seed)
    at = rng.normal(0, 1, (20, 2)) * [10, 0.02] + [40, 0.95]
    axes.plot(*at.T, "o")
    labels.beside(axes, [labels.Label(f"method_{i}/find", "black", *xy) for i, xy in enumerate(at)])
    canvas.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 20
    shared = [labels._shared(a.extents, b.extents) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert max(shared) < 0.1 * boxes[0].width * boxes[0].height


def test_many_arms_make_a_page(runs: list[Path], tmp_path: Path) -> None:
    for i in range(12):
        run = tmp_path / f"arm{i}"
        run.mkdir()
        source = runs[i % len(runs)]
        for path in ("eval", "metrics.jsonl", "rollouts"):
            (run / path).symlink_to(source / path)
        config = yaml.safe_load((source / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump({**config, "name": f"arm/{i}"}))
    out = report.write(sorted(tmp_path.glob("arm*")), tmp_path / "report.html")
    assert "<h1>12 arms</h1>" in out.read_text()
    for name in ("accuracy-thinking", "area-generated"):
        assert (tmp_path / f"plots/{name}.svg").stat().st_size > 2000
        assert (tmp_path / f"plots/{name}.png").stat().st_size > 2000


def test_points_at_equal_tokens_are_read_off_the_lines(runs: list[Path]) -> None:
    found = data.arms(map(data.read_run, runs))
    assert "accuracy-thinking-equal" not in [f.name for f in plots.figures(found, None)]
    at = int(min(by_hand(run)[0][-1] for run in runs)) // 2
    axes = drawn(plots.figures(found, None, at), "accuracy-thinking-equal")
    points = [line.get_xydata().tolist() for line in axes.lines]
    grpo = [run for run in runs if run.name.startswith("grpo")]
    x, y = (
        np.mean([np.interp(at, *by_hand(run, metric)) for run in grpo])
        for metric in ("think_tokens/mean", "accuracy")
    )
    assert [[pytest.approx(x), pytest.approx(y)]] in points
    beyond = next(f for f in plots.figures(found, None, 10**9) if f.name.endswith("-equal"))
    assert style._draw(beyond, narrow=False) is None, "no arm got there"
