"""What an allocator knows survives a resume at any step, another data order, a next stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samplers.types import Group
from tests.aging import Aging, Watched, recipe, watched
from trainer import checkpoint
from trainer.loop import train
from trainer.tracking import Tracker, TrackingConfig, read

ALLOCATIONS: dict[str, dict[str, Any]] = {
    "knapsack": {"estimate": "ema"},
    "dynamic": {"surplus": "keep"},
    "gvm": {"every": 3, "pilot": 2, "least": 1},
    "oversample": {"samples": 5},
    "reinforce_ada": {"rounds": 3, "per_round": 2},
}


def settings(allocation: str, **fields: Any) -> dict[str, Any]:
    return {
        "deterministic": True,
        "data": {"task": "find", "limit": 10},
        "steps": 8,
        "prompts_per_step": 4,
        "rollouts_per_prompt": 3,
        "max_staleness": int(allocation == "dynamic"),
        "allocation": {"name": allocation, **ALLOCATIONS[allocation]},
        "checkpoint": {"every": 1, "keep": 100},
        **fields,
    }


class Judged(Aging):
    """Verdicts that belong to the prompt and the answer, whoever is graded beside it."""

    def grade(self, items):
        made = super().grade(items)
        right = [sum(map(ord, f"{text}{gold}")) % 3 == 0 for text, gold, _ in items]
        return [type(v)(r, float(r), "ok") for v, r in zip(made, right, strict=True)]


def told(groups: list[Group]) -> list[Any]:
    """All that tells one step's groups from another's."""
    return [
        (
            g.key,
            g.prompt.id,
            [(r.index, r.seed, r.thought.ids_T.tolist()) for r in g.rollouts],
            g.correct_GCA.tolist(),
            None if g.kept_G is None else g.kept_G.tolist(),
            None if g.weights_G is None else g.weights_G.tolist(),
        )
        for g in groups
    ]


def figures(folder: Path) -> list[dict[str, Any]]:
    kept = ("allocation/", "rollouts", "tokens/", "gradient/")
    return [
        {k: v for k, v in row.items() if k == "step" or k.startswith(kept)} for row in read(folder)
    ]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_run_resumed_at_any_step_is_the_run_never_stopped(
    allocation: str, tmp_path: Path
) -> None:
    """Groups, selections and figures, over several epochs of a small pool."""
    made = recipe(tmp_path, **settings(allocation))
    with watched(made, Judged(made.stages[0], 0), tmp_path / "whole") as run:
        train(run)
    whole = [told(groups) for _, groups in run.trained]
    assert sum(map(len, whole)) > 8
    for saved in checkpoint.complete(tmp_path / "whole" / "checkpoints")[:-1]:
        state = checkpoint.driver_state(saved)
        folder = tmp_path / saved.name
        with watched(made, Judged(made.stages[0], 1), folder) as again:
            again.restore(saved, state)
            train(again)
        assert [told(groups) for _, groups in again.trained] == whole[state["step"] :]
        assert figures(folder) == figures(tmp_path / "whole")[state["step"] :]


def staged(tmp_path: Path, rows: list[str], **fields: Any) -> Any:
    """Two stages on files of these rows each."""
    stages = []
    for text in rows:
        path = tmp_path / f"{text}.jsonl"
        lines = [json.dumps({"problem": f"{text}{i}", "answer": str(i % 3)}) for i in range(10)]
        path.write_text("\n".join(lines))
        stages.append({"data": {"path": str(path)}})
    return recipe(tmp_path, **settings("knapsack", steps=4, stages=stages, **fields))


def in_turn(made: Any, folder: Path) -> tuple[list[Watched], list[str]]:
    """The stages one after the other, as launch.run does them, and what was said between."""
    runs, said, first, before = [], [], 0, None
    for index, stage in enumerate(made.stages):
        tracker = Tracker(folder, TrackingConfig(samples=0), None)
        tracker.say = said.append
        run = Watched(made, index, first, "unused", Judged(stage, 0), tracker, folder)
        with run:
            if before is not None:
                run.follow(before)
            if index + 1 < len(made.stages):
                train(run)
        runs.append(run)
        first, before = first + stage.steps, run.sampling
    return runs, [line for line in said if line.startswith("allocation")]


def test_a_next_stage_knows_the_prompts_in_another_order(tmp_path: Path) -> None:
    (one, two), said = in_turn(staged(tmp_path, ["q", "q"]), tmp_path / "run")
    orders = [[run.stream.next()[1].id for _ in range(10)] for run in (one, two)]
    assert orders[0] != orders[1], "reshuffled"
    known, found = (run.sampling.allocation.state_dict()["statistics"] for run in (one, two))
    assert (np.asarray(known["count"]) > 0).sum() == 10, "all were visited"
    for name in ("right", "count"):
        np.testing.assert_array_equal(known[name], found[name])
    assert len(said) == 1
    assert "the prompts are the same" in said[0]


def test_other_prompts_drop_what_was_known_and_say_so(tmp_path: Path) -> None:
    (one, two), said = in_turn(staged(tmp_path, ["q", "other"]), tmp_path / "run")
    assert np.asarray(two.sampling.allocation.state_dict()["statistics"]["count"]).size == 0
    prints = [run.stream.state_dict()["fingerprint"] for run in (one, two)]
    assert len(said) == 1
    assert all(text in said[0] for text in ("dropped", *prints))


def test_a_resume_on_other_prompts_is_refused(tmp_path: Path) -> None:
    made = recipe(tmp_path, **settings("knapsack", steps=2))
    with watched(made, Judged(made.stages[0], 0), tmp_path) as run:
        train(run)
    saved = checkpoint.newest(tmp_path / "checkpoints")
    other = recipe(tmp_path, **settings("knapsack", steps=3, data={"task": "find", "limit": 11}))
    with (
        watched(other, Judged(other.stages[0], 0), tmp_path / "other") as run,
        pytest.raises(ValueError, match="fingerprint"),
    ):
        run.restore(saved, checkpoint.driver_state(saved))


def test_arrays_of_the_state_lie_beside_its_words(tmp_path: Path) -> None:
    """Nested anywhere, and come back with their types."""
    state = {
        "a": {"b": np.arange(3, dtype=np.float32), "c": [1, 2]},
        "d": np.zeros((2, 0)),
        "e": {"f.g": np.array([True])},
        "h": "words",
    }
    checkpoint.save(tmp_path, 1, lambda folder: None, state, keep=1)
    back = checkpoint.driver_state(tmp_path / "step-000001")
    assert back["a"]["c"] == [1, 2]
    assert back["h"] == "words"
    for found, kept in ((back["a"]["b"], state["a"]["b"]), (back["d"], state["d"]),
                        (back["e"]["f.g"], state["e"]["f.g"])):  # fmt: skip
        assert found.dtype == kept.dtype
        np.testing.assert_array_equal(found, kept)


def test_a_state_that_cannot_be_written_is_told_at_the_first_step(tmp_path: Path) -> None:
    made = recipe(tmp_path, **settings("knapsack", checkpoint={"every": 0}))
    with watched(made, Judged(made.stages[0], 0), tmp_path) as run:
        run.sampling.allocation.state_dict = lambda: {"a": [np.zeros(2)]}
        with pytest.raises(ValueError, match=r"state of samplers\.allocation\.knapsack cannot"):
            train(run)
        assert run.step == 0
