"""Any budget policy with any algorithm, reward and loss: each pair runs, or is told why not.

One process, one engine, one learner; about half a second a pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import composition
from tests.reused import Reused
from trainer.config import Recipe

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def world() -> Iterator[Reused]:
    made = composition.outcome((("budget", "unlimited"), ("algorithm", "grpo")))
    assert isinstance(made, Recipe)
    reused = Reused(made.stages[0])
    yield reused
    reused.close()


def test_the_readme_prints_the_table() -> None:
    text = (ROOT / "README.md").read_text()
    assert composition.table() in text, f"README.md lacks this:\n{composition.table()}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair", composition.pairs(), ids=lambda pair: "-".join(name for _, name in pair)
)
def test_every_pair_runs_or_is_refused(
    pair: composition.Pair, world: Reused, tmp_path: Path
) -> None:
    made = composition.outcome(pair)
    if isinstance(made, str):
        assert "\n" not in made
        assert any(name in made for _, name in pair), "the reason names who gives it"
        return
    rows = world.run(made, tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    trained = [row for row in rows if "loss" in row]
    # a step may have nothing finished, or nothing to learn from: then the optimiser does not move
    assert all(row["steps"] == 0 for row in rows if row not in trained)
    assert all(math.isfinite(row[name]) for row in trained for name in ("loss", "grad_norm"))
