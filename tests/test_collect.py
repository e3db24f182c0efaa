"""The allocator's driver: asks become groups, in one piece, whatever order they come in."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np

from rewards.verdict import Verdict
from samplers import seeds
from samplers.allocation import uniform
from samplers.allocation.base import Annotate, Ask, Finish, PutBack, Receive, Sample, Stream
from samplers.types import Answer, Group, Job, Plan, Prompt, Rollout, Tokens
from trainer.collect import Rounds, collect


class Counting:
    """A stream of numbered prompts that remembers what was put back."""

    def __init__(self) -> None:
        self.drawn, self.returned = 0, []

    def next(self) -> tuple[int, Prompt]:
        draw, self.drawn = self.drawn, self.drawn + 1
        return draw, Prompt(draw, f"p{draw}", (), f"q{draw}", str(draw % 2), "exact")

    def put_back(self, draw: int, prompt: Prompt) -> None:
        self.returned.append((draw, prompt.id))


def make(jobs: list[Job]) -> list[Rollout]:
    ids = np.array([1], np.int32)
    return [
        Rollout(
            job.prompt.index, job.group, job.index, job.seed, job.plan, ids,
            Tokens(ids, np.zeros(1, np.float32), "stop"), True,
            ((Answer(1, Tokens(ids, np.zeros(1, np.float32), "stop"), str(job.index)),),),
        )
        for job in jobs
    ]  # fmt: skip


def verify(groups: list[Group]) -> list[Group]:
    return [
        replace(g, verdicts=tuple(((Verdict(r.index == 5, 0.0, "ok"),),) for r in g.rollouts))
        for g in groups
    ]


def run(allocation, stream, calls=None) -> list[Group]:
    def counted(jobs: list[Job]) -> list[Rollout]:
        if calls is not None:
            calls.append(len(jobs))
        return make(jobs)

    return collect(
        allocation, stream, lambda p, n, key: [Plan(4)] * n, Rounds(counted), verify,
        lambda groups, what: [replace(g, annotations={what: ()}) for g in groups],
        seed=3, temperature=0.5,
    ).groups  # fmt: skip


def test_uniform_is_one_call_of_whole_groups() -> None:
    calls: list[int] = []
    groups = run(uniform.Allocator(uniform.Config(), 4, 3), Counting(), calls)
    assert calls == [12]
    assert [g.serial for g in groups] == [0, 1, 2, 3]
    for group in groups:
        assert [r.index for r in group.rollouts] == [0, 1, 2]
        assert all(r.group == group.serial for r in group.rollouts)
        assert [r.seed for r in group.rollouts] == [seeds.key(3, group.serial, i) for i in range(3)]


class UntilRight:
    """Samples two more until a group holds a right rollout; puts its last draw back."""

    def allocate(self, stream: Stream) -> Generator[Ask, Group | None, None]:
        for _ in range(2):
            yield Sample(*stream.next(), 2)
        left = 2
        while left:
            group = yield Receive()
            assert group is not None
            if group.correct_GCA.any():
                (group,) = yield Annotate((group,), "grad_norm")
                kept = np.arange(len(group)) >= 4
                yield Finish(group, kept)
                left -= 1
            else:
                yield Sample(group.serial, group.prompt, 2)
        yield PutBack(*stream.next())


def test_a_draw_sampled_again_stays_one_group() -> None:
    stream, calls = Counting(), []
    groups = run(UntilRight(), stream, calls)
    # both draws ask in the same round only when both have been received: one call per wait
    assert sum(calls) == 12
    assert sorted(g.serial for g in groups) == [0, 1]
    for group in groups:
        assert [r.index for r in group.rollouts] == list(range(6))
        assert len(group.verdicts) == 6
        assert group.kept_G is not None
        assert group.kept_G.sum() == 2
        assert "grad_norm" in group.annotations
        assert len({r.seed for r in group.rollouts}) == 6
    assert stream.returned == [(2, "p2")]
