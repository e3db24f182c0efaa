"""Training while engines generate: nothing too old, nothing lost or twice, nothing left behind."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samplers.types import Group
from tests.aging import Aging, recipe, watched
from tests.test_rows import nested
from trainer import checkpoint, staleness
from trainer.config import load
from trainer.loop import train
from trainer.losses import LossConfig, policy_loss
from trainer.rows import plain_row, tree_row


def ages(trained: list[tuple[int, list[Group]]]) -> np.ndarray:
    """Of every sampled token: versions from its making to its training."""
    out: list[int] = []
    for version, groups in trained:
        for rollout in (r for g in groups for r in g.rollouts):
            for run in (rollout.thought, *(a.tokens for a in rollout.made)):
                made_T = np.full(len(run), -1)
                for first, stamp in run.spans:
                    made_T[first:] = stamp
                out += (version - made_T[~run.forced_T]).tolist()
    return np.array(out)


ALLOCATIONS: list[Any] = [
    "uniform",
    "knapsack",
    "tests.rounds",
    {"name": "dynamic", "surplus": "keep"},
    {"name": "gvm", "every": 2, "pilot": 1},
    {"name": "oversample", "samples": 5},
    {"name": "reinforce_ada", "rounds": 3, "per_round": 2},
]


def draws(trained: list[tuple[int, list[Group]]]) -> list[int]:
    return [group.serial for _, groups in trained for group in groups]


@pytest.mark.parametrize("seed", range(40))
def test_no_token_is_older_than_promised(seed: int, tmp_path: Path) -> None:
    """Whatever waits for whom, in flight or not, in one round or several."""
    rng = random.Random(seed)
    allocation = rng.choice(ALLOCATIONS)
    waits = "dynamic" in str(allocation)
    bound = rng.choice([0, 1, 1, 2, 3]) + waits
    in_flight = bound > waits and rng.random() < 0.5
    made = recipe(
        tmp_path,
        data={"task": "find", "limit": 64},
        steps=rng.randint(4, 8),
        max_staleness=bound,
        rollout={"max_tokens": rng.choice([8, 40]), "in_flight_updates": in_flight},
        allocation=allocation,
        prompts_per_step=rng.randint(2, 5),
        budget=rng.choice(["unlimited", {"name": "fixed", "think": 5}]),
        evaluation={"every": rng.choice([0, 2]), "problems": 2, "budgets": ["inf"]},
    )
    (stage,) = made.stages
    world = Aging(stage, seed, engines=rng.randint(1, 3))
    with watched(made, world, tmp_path) as run:
        train(run)
    assert len(run.trained) == stage.steps
    assert [version for version, _ in run.trained] == list(range(stage.steps))
    old = ages(run.trained)
    assert old.min() >= 0
    assert old.max() <= bound
    if bound > waits:  # the producer really was ahead
        assert old.max() >= 1
    if bound and not in_flight:
        assert all(len({v for t in (r.thought,) for _, v in t.spans}) <= 1
                   for _, gs in run.trained for g in gs for r in g.rollouts)  # fmt: skip
    trained = sorted(draws(run.trained))
    if allocation in ("uniform", "knapsack", "tests.rounds"):
        assert trained == list(range(stage.steps * stage.prompts_per_step))
    assert len(set(trained)) == len(trained), "others choose among their draws"
    assert not [t for t in threading.enumerate() if t.name == "sampling"]


def test_in_flight_a_rollout_holds_tokens_of_several_versions(tmp_path: Path) -> None:
    settings = {"max_tokens": 60, "in_flight_updates": True}
    made = recipe(tmp_path, steps=12, max_staleness=2, rollout=settings, prompts_per_step=16)
    world = Aging(made.stages[0], 5, engines=1, learning=20)
    with watched(made, world, tmp_path) as run:
        train(run)
    runs = [r.thought for _, groups in run.trained for g in groups for r in g.rollouts]
    assert max(len({version for _, version in run.spans}) for run in runs) > 1
    assert ages(run.trained).max() <= 2


def test_a_token_that_is_too_old_stops_the_run(tmp_path: Path) -> None:
    made = recipe(tmp_path, max_staleness=1)
    world = Aging(made.stages[0], 0)
    with watched(made, world, tmp_path) as run:
        groups = run.sample()
        world.version = 2
        with pytest.raises(RuntimeError, match=r"group 0, rollout 0: .*versions 0 to 0 .* 2;"):
            run.pack(run.credit(run.reward(groups)))


@pytest.mark.parametrize("allocation", ["uniform", "tests.rounds"])
@pytest.mark.parametrize("bound", [0, 1, 3])
def test_resumed_runs_train_every_prompt_once(allocation: str, bound: int, tmp_path: Path) -> None:
    """Killed in the middle of a step, with batches ahead begun, ready or not yet begun."""
    made = recipe(
        tmp_path, steps=9, max_staleness=bound, allocation=allocation,
        checkpoint={"every": 2, "keep": 1},
    )  # fmt: skip
    rng, kept, newest, state = random.Random(bound), [], None, None

    class Dying(Aging):
        left = 0

        def step(self, batch):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return super().step(batch)

    for life in range(4):
        world = Dying(made.stages[0], life)
        world.left = rng.randint(3, 4) if life < 3 else 0
        with watched(made, world, tmp_path) as run:
            if state is not None:
                run.restore(newest, state)
                assert world.version == state["weight_version"] == run.step
            began = run.step
            if life < 3:
                with pytest.raises(KeyboardInterrupt):
                    train(run)
            else:
                train(run)
        newest = checkpoint.newest(tmp_path / "checkpoints")
        state = checkpoint.driver_state(newest)
        kept += run.trained[: state["step"] - began]  # what came after it is lost with the life
    assert state["step"] == 9
    assert sorted(draws(kept)) == list(range(9 * 3))
    if allocation == "tests.rounds":
        assert sorted(state["allocation"]["seen"]) == list(range(9 * 3))
    assert ages(kept).max() <= bound


def test_plans_are_made_for_the_step_they_are_trained_in(tmp_path: Path) -> None:
    made = recipe(tmp_path, max_staleness=2)
    asked: list[int] = []
    with watched(made, Aging(made.stages[0], 0), tmp_path) as run:
        real = run.sampling.budget.plans

        class Budget:
            @staticmethod
            def plans(config, prompt, n, step, memory, key):
                asked.append(step)
                return real(config, prompt, n, step, memory, key)

        run.sampling.budget = Budget
        train(run)
    assert asked == [step for step in range(6) for _ in range(3)]


class Breaking(Aging):
    """Its third batch cannot be made."""

    calls = 0

    def rollout(self, jobs):
        self.calls += 1
        if self.calls == 3:
            raise ValueError("rollout: the third batch cannot be made")
        return super().rollout(jobs)


def test_errors_of_the_producer_come_out_of_the_loop(tmp_path: Path) -> None:
    made = recipe(tmp_path, max_staleness=1)
    with (
        pytest.raises(ValueError, match="the third batch cannot be made"),
        watched(made, Breaking(made.stages[0], 0), tmp_path) as run,
    ):
        train(run)
    assert len(run.trained) <= 2
    assert not [t for t in threading.enumerate() if t.name == "sampling"]


def test_an_error_of_the_loop_ends_the_producer_in_the_middle_of_a_rollout(tmp_path: Path) -> None:
    """A thought of 100 tokens at 20 ms each: it ends because it is told to."""

    class Slow(Aging):
        def step(self, batch):
            self.pace = 0.1
            time.sleep(0.1)
            raise KeyboardInterrupt

    made = recipe(tmp_path, max_staleness=1, rollout={"max_tokens": 200}, prompts_per_step=40)
    world = Slow(made.stages[0], 0, pace=1e-5)
    with pytest.raises(KeyboardInterrupt), watched(made, world, tmp_path) as run:
        train(run)
    assert world.ended.is_set()
    assert not [t for t in threading.enumerate() if t.name == "sampling"]


def test_drift_is_no_gap_and_the_gap_is_probed(tmp_path: Path) -> None:
    made = recipe(tmp_path, max_staleness=1)

    class Off(Aging):
        """Learners (0 everywhere) and engines differ by 0.5, and training tokens by 7."""

        off = 0.0

        def probe(self, ids):
            probed.append(list(ids))
            return [np.full(len(row) - 1, self.off, np.float32) for row in ids]

    probed: list[list] = []
    with watched(made, Off(made.stages[0], 0), tmp_path / "a") as run:
        train(run)
    assert len(probed) == 6
    assert all(1 <= len(rows) <= staleness.PROBED for rows in probed)
    for off, told in ((0.5, "5.00e-01"), (np.nan, "nan")):  # an engine's NaN is no agreement
        Off.off = off
        with (
            pytest.raises(RuntimeError, match=f"engine gap: .* {told}"),
            watched(made, Off(made.stages[0], 0), tmp_path / told) as run,
        ):
            train(run)


def test_of_a_tree_its_last_branch_is_probed() -> None:
    """Both sides score plain rows; a batch of trees is not left without a gap."""
    tree = replace(tree_row(nested(), 0), ref_T=np.arange(14, dtype=np.float32))
    (row,) = staleness.probe([tree])
    assert row.plain
    assert row.ids_T.tolist() == [1, 2, 11, 12, 13, 14, 15, 41, 42]
    assert row.ids_T[row.mask_T].tolist() == [11, 12, 13, 14, 15, 41, 42]
    assert row.ref_T is not None
    assert row.ref_T.tolist() == [0, 1, 2, 3, 4, 5, 6, 12, 13]
    assert staleness.probe([replace(tree, mask_T=np.arange(14) == 9)]) == [], "another branch's"
    plain = plain_row(nested(), 0)
    (same,) = staleness.probe([plain])
    np.testing.assert_array_equal(same.ids_T, plain.ids_T)
    np.testing.assert_array_equal(same.behaviour_T, plain.behaviour_T)


def test_stale_tokens_are_corrected_unless_chosen_otherwise() -> None:
    def loss(*settings: str) -> LossConfig:
        return load("grpo/find", ("deterministic=false", *settings)).stages[0].loss

    assert loss().importance == "none"
    stale = loss("max_staleness=1")
    assert (stale.importance, stale.importance_cap) == ("token", 2.0)
    for written in ("max_staleness=1.0", "max_staleness='1'"):
        assert loss(written) == stale
    assert loss("max_staleness=1", "loss.importance=sequence").importance == "sequence"
    assert loss("max_staleness=1", "loss.importance_cap=5").importance_cap == 5
    assert loss("max_staleness=1", "loss.name=cispo").importance == "token"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("max_staleness=1",), "deterministic=true with max_staleness=1: .*deterministic=false"),
        (
            ("max_staleness=2", "deterministic=false", "loss.importance=none"),
            "loss.importance=none with max_staleness=2: .*importance_cap",
        ),
        (("max_staleness=-1", "deterministic=false"), "max_staleness: .*greater than or equal"),
    ],
)
def test_what_cannot_be_is_refused(settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load("grpo/find", settings)


def test_in_flight_updates_alone_have_no_effect_and_say_so() -> None:
    with pytest.warns(UserWarning, match="in_flight_updates has no effect with max_staleness=0"):
        load("grpo/find", ("rollout.in_flight_updates=true",))


def test_the_correction_is_current_over_behaviour_cut_at_two() -> None:
    """One update: the gradient of token t is -A w min(current / behaviour, 2) d log current."""
    current = torch.tensor([-1.0, -1.0, -2.0, -0.5], requires_grad=True)
    behaviour = torch.tensor([-1.5, -2.5, -1.0, float("nan")])
    advantages = torch.tensor([1.0, -1.0, 2.0, 1.0])
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    loss, metrics = policy_loss(
        load("grpo/find", ("max_staleness=1", "deterministic=false")).stages[0].loss,
        current, None, weights_N=weights, advantages_N=advantages, behaviour_N=behaviour,
        row_N=torch.zeros(4, dtype=torch.long), rows=1,
    )  # fmt: skip
    loss.backward()
    ratios = torch.tensor([np.exp(0.5), 2.0, np.exp(-1.0), 1.0], dtype=torch.float32)
    torch.testing.assert_close(current.grad, -weights * advantages * ratios)
    assert metrics["importance"][0] / metrics["importance"][1] == pytest.approx(
        float(ratios[:3].mean()), rel=1e-6
    )
