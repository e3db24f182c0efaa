"""Rollouts of the real engine: the same tokens anywhere, logprobs of the whole sequence."""

from __future__ import annotations

import numpy as np

from samplers.engines._torch import TorchEngine
from samplers.engines.base import Config
from samplers.rollout import RolloutWorker
from samplers.types import Job, Plan, Rollout
from tests.scripted import PROMPT, RENDERER
from tests.tiny import tiny_model

MODEL_PLANS = [
    Plan(30), Plan(30, think=6), Plan(30, think=0, answer=5), Plan(40, cuts=(0, 2, 8, 40)),
    Plan(40, cuts=(3, 9), answers_per_cut=3, close="w</think>!", after_close="A"),
    Plan(30, template={"enable_thinking": False}), Plan(30, prefill="A"),
]  # fmt: skip


def worker(slots: int) -> RolloutWorker:
    return RolloutWorker(TorchEngine(tiny_model(), Config(slots=slots, device="cpu")), RENDERER)


def test_rollouts_do_not_depend_on_slots_or_neighbours():
    jobs = [Job(PROMPT, p, 0, i, seed=i) for i, p in enumerate(MODEL_PLANS * 3)]
    together = worker(64).generate(jobs)
    for few, order in ((2, slice(None)), (5, slice(None, None, -1))):
        for a in worker(few).generate(jobs[order]):
            b = together[a.index]
            assert tokens(a) == tokens(b)
    assert [r.index for r in together] == list(range(len(jobs)))


def tokens(r: Rollout) -> list[list[int]]:
    return [run.ids_T.tolist() for run in (r.thought, *(a.tokens for c in r.answers for a in c))]


def test_behaviour_logprobs_are_those_of_the_whole_sequence():
    """What the learner will see: prompt, thought up to `after`, answer, teacher forced."""
    made = worker(16)
    for i, plan in enumerate(MODEL_PLANS):
        (rollout,) = made.generate([Job(PROMPT, plan, 0, i, seed=90 + i, temperature=0.9)])
        for answer in (a for cut in rollout.answers for a in cut):
            parts = [rollout.thought.ids_T[: answer.after], answer.tokens.ids_T]
            ids = np.concatenate([rollout.prompt_ids_T, *parts])
            (scores,) = made.engine.score([ids], 0.9)
            got = np.concatenate(
                [rollout.thought.logprobs_T[: answer.after], answer.tokens.logprobs_T]
            )
            sampled = ~np.isnan(got)
            expected = scores[len(rollout.prompt_ids_T) - 1 :]
            np.testing.assert_allclose(got[sampled], expected[sampled], atol=1e-5)


def test_a_group_prefills_its_prompt_once_and_its_thought_never():
    made = worker(64)
    made.generate([Job(PROMPT, Plan(40, cuts=(0, 4, 9)), 0, i, seed=i) for i in range(8)])
    assert made.stats()["prefilled"] == len(RENDERER.render(PROMPT, Plan(40)))
    assert made.stats()["rollouts"] == 8
