"""Any process of a run may be killed at any moment: what comes of it is the run never killed.

LACONIC_KILLS=30 adds random moments up to that number, LACONIC_KILLS_SEED draws others. What was
killed when, and what it cost, is printed (pytest -s).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import killing
from tests.killing import STEPS, Kill, Told

FIXED = (
    # one run: engines and reward workers do not take it back to a checkpoint, learners do
    [
        Kill("verifier", "step", 0, 0.05),
        Kill("engine", "loading", 2, 0.02),
        Kill("engine", "loaded", 3, 0.05),  # in the evaluation
        Kill("learner", "checkpoint", 4, 0.0),
        Kill("learner", "loading", 5, 0.02),
        Kill("grader", "step", 5, 0.02),
    ],
    [Kill("driver", "checkpoint", 4, 0.0), Kill("driver", "loaded", 6, 0.05)],
)
COUNT = int(os.environ.get("LACONIC_KILLS", "0"))
MORE = killing.drawn(killing.seed(), max(0, COUNT - sum(map(len, FIXED))))
CASES = [*(("plain", kills) for kills in FIXED), *MORE]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Undisturbed = Callable[[str], Path]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The run folder of a variant that nobody disturbs, made once."""

    @functools.cache
    def made(variant: str) -> Path:
        told = killing.undisturbed(variant, tmp_path_factory.mktemp(f"{variant}-undisturbed"))
        assert killing.steps(told.folder) == list(range(STEPS + 1))
        print(f"\n{variant}: {told.seconds:.1f} s undisturbed")
        return told.folder

    return made


def same(told: Told, reference: Path) -> None:
    faults = [f"{f['what']} ({f['seconds']:.1f} s)" for f in killing.faults(told.folder)]
    print(f"\n{told.seconds:.1f} s with", "; ".join(told.kills), "|", "; ".join(faults))
    assert killing.differences(reference, told.folder) == []


@pytest.mark.parametrize("number", range(len(CASES)))
def test_killed_equals_never_killed(number: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    variant, kills = CASES[number]
    told = killing.disturbed(variant, tmp_path, kills, seed=killing.seed() + number)
    if number < len(FIXED):  # random moments may be none of a run
        assert len(told.kills) == len(kills), told.output[-1][-2000:]
    same(told, undisturbed(variant))


def test_overlapped_run_trains_every_draw_once(tmp_path: Path) -> None:
    """Load decides here: no bits are promised, but nothing is lost and nothing is done twice."""
    kills = [Kill("engine", "step", 1, 0.1), Kill("driver", "loaded", 5, 0.02)]
    ahead = "deterministic=false", "max_staleness=1", "rollout.in_flight_updates=true"
    told = killing.disturbed("plain", tmp_path, kills, *ahead, "evaluation=null")
    assert len(told.kills) == len(kills), told.output[-1][-2000:]
    assert killing.steps(told.folder) == list(range(1, STEPS + 1))
    seen = killing.seen(told.folder)
    assert sorted(seen["draws"]) == list(range(2 * STEPS)), "each draw of the stream, once"
    assert len(set(seen["prompts"])) == 2 * STEPS
    trained = {
        row["group"] for step in range(1, STEPS + 1) for row in killing.rows(told.folder, step)
    }
    assert trained == set(seen["draws"])
    assert all(step["staleness/max"] <= 1 for step in killing.metrics(told.folder))
