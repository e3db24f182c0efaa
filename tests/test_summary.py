"""Risk: a table for people that loses a metric, or says it under another's head."""

from __future__ import annotations

import re
from dataclasses import replace

from tests import tables
from trainer.eval import metrics, summary
from trainer.eval.metric import Metric


def found() -> dict[str, Metric]:
    told = [replace(tables.random(6, 4, (b,), seed=b), mode="prompt", asked=str(b), target=b)
            for b in (20, 40)]  # fmt: skip
    efforts = [replace(tables.random(6, 4, seed=i), mode="effort", asked=name)
               for i, name in enumerate(("low", "medium", "high"))]  # fmt: skip
    other = replace(tables.random(5, 2, (20,)), task="u")
    return metrics.measure([tables.random(6, 4, (20, 40)), *told, *efforts, other])


def cell(block: summary.Block, row: str, head: str) -> str:
    at = block.cells[0].index(head)
    return next(cells[at] for cells in block.cells if cells[0] == row)


def test_every_metric_stands_in_one_table() -> None:
    """A number that occurs nowhere else is found exactly once for each metric."""
    made = {
        name: Metric(1000 + i + 0.5, 1.0, 2.0, 5, 10, None, None) for i, name in enumerate(found())
    }
    shown = "\n".join(" ".join(row) for block in summary.blocks(made) for row in block.cells)
    for i, name in enumerate(made):
        hits = len(re.findall(rf"(?<![\d.]){1000 + i}\.50*(?!\d)|{1000 + i:,}\.5(?!\d)", shown))
        if "/e3@" in name:
            continue  # three digits only
        assert hits == 1, (name, hits)


def test_cells_are_under_their_heads() -> None:
    some = found()
    blocks = {block.title: block for block in summary.blocks(some)}
    curve = blocks["t: cut at a budget"]
    assert cell(curve, "40", "accuracy") == f"{some['t/accuracy@40'].value:.3f}"
    assert cell(curve, "40", "tokens") == f"{some['t/tokens@40'].value:.1f}"
    assert cell(curve, "inf", "forced") == "0.000"
    assert cell(curve, "20", "pop") == f"{some['t/accuracy@20'].se_pop:.3f}"
    assert cell(curve, "20", "fixed") == f"{some['t/accuracy@20'].se_fixed:.3f}"
    told = blocks["t: told a budget, and cut there (soft: told alone)"]
    assert cell(told, "20", "soft tokens") == f"{some['t/prompt/soft_tokens@20'].value:.1f}"
    picked = blocks["t: chosen of k samples"]
    assert cell(picked, "short_m@4", "latency") == f"{some['t/short_m@4/latency'].value:.1f}"
    assert [block.title for block in summary.blocks(some)][-1] == "all: more"
    assert blocks["t: asked for an effort"].cells[1][0] == "low"


def test_both_forms_say_the_same() -> None:
    some = found()
    plain = summary.text(some, ["t: something is wrong"])
    marked = summary.markdown(some, ["t: something is wrong"])
    assert plain.endswith("finding: t: something is wrong")
    assert "## Findings\n\n- t: something is wrong" in marked
    assert summary.NOTE in plain
    assert summary.NOTE in marked
    numbers = re.findall(r"\d+\.\d+", plain)
    assert numbers == re.findall(r"\d+\.\d+", marked)
    for block in summary.blocks(some):
        table = summary.piped(block.cells).splitlines()
        assert len({line.count("|") for line in table}) == 1
        lines = summary.aligned(block.cells).splitlines()
        assert len(lines) == len(block.cells)
    assert summary.text({}) == summary.NOTE
