"""The probability of the gold answer stands for an answer, and nobody is asked to grade it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rewards.verdict import Verdict
from rewards.verify import verify
from samplers.types import Answer
from tests.made import group, rollout, run
from trainer.metrics import summarise


def test_a_probe_is_graded_by_its_probability():
    probabilities = (0.0, 0.25, 0.5, 1.0)
    cuts = [[Answer(1, run((21, 22), forced=2), "x", p)] for p in probabilities]
    made = rollout(0, answers=[*cuts, [Answer(3, run((23,)), "said")]])
    asked = []

    def grade(items):
        asked.extend(text for text, *_ in items)
        return [Verdict(True, 1.0, "ok") for _ in items]

    plain = replace(group([1.0]), verdicts=())
    probed, other = verify([replace(plain, rollouts=(made,)), plain], grade)
    assert asked == ["said", "x"]  # one of each group
    verdicts = [cut[0] for cut in probed.verdicts[0]]
    assert [v.score for v in verdicts] == [*probabilities, 1.0]
    assert [v.correct for v in verdicts] == [False, False, True, True, True]
    assert [v.status for v in verdicts] == ["wrong", "wrong", "ok", "ok", "ok"]
    assert [v.grader for v in verdicts] == ["gold-probability"] * 4 + [""]
    assert probed.known_GCA.all()
    assert np.array_equal(other.correct_GCA, [[[True]]])


def test_probes_are_told_apart_from_what_was_sampled():
    probes = [[Answer(1, run((21, 22), forced=2), "x", p)] * 3 for p in (0.0, 0.5)]
    made = rollout(0, answers=[*probes, [Answer(3, run((23,)), "said")] * 3])
    verdicts = tuple(tuple(Verdict(True, 1.0, "ok") for _ in cut) for cut in made.answers)
    plain = group([1.0])
    figures = summarise([replace(plain, rollouts=(made,), verdicts=(verdicts,), rewards={})])
    assert figures["tokens/scored"] == 2 * 2, "once a cut"
    assert figures["tokens/sampled"] == made.sampled_tokens
    assert "tokens/scored" not in summarise([plain])
