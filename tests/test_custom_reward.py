"""Users' functions by import path: both signatures, plain and async, as verifier and as reward."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rewards.apply import Shaping
from rewards.custom import reward, wait
from rewards.grader import failed, load
from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from rewards.verify import verify
from samplers.types import Answer, Group, Plan, Prompt, Rollout
from tests.made import run

CHAT = ({"role": "user", "content": "which?"},)


def group(
    texts: Sequence[str | None], messages: Sequence[Any] = CHAT, difficulty: int = 3, **meta: Any
) -> Group:
    """One rollout per text; rollout i has i + 2 thinking tokens and one answer token."""
    rollouts = tuple(
        Rollout(0, 0, i, 0, Plan(64), np.array([1], np.int32), run(range(i + 3)), True,
                ((Answer(i + 3, run((9,)), text),),))
        for i, text in enumerate(texts)
    )  # fmt: skip
    text = "" if messages else "which?"
    prompt = Prompt(0, "p", tuple(messages), text, "B", "", {"difficulty": difficulty, **meta})
    return Group(prompt, 0, rollouts)


def judged(texts: Sequence[str | None], spec: Any, **fields: Any) -> list[Verdict]:
    with VerifierPool(spec, workers=1, deadline=20.0) as pool:
        return [v[0][0] for v in verify([group(texts, **fields)], pool.grade)[0].verdicts]


def test_a_plain_function_grades() -> None:
    verdicts = judged(["B", "C", None], "tests.graders:by_text")
    assert [v.status for v in verdicts] == ["ok", "wrong", "no_answer"]
    assert [v.score for v in verdicts] == [1.0, 0.0, 0.0]
    assert verdicts[0].grader == "tests.graders:by_text"


def test_an_async_function_grades() -> None:
    verdicts = judged(["B", "C"], "tests.graders:patient")
    assert [(v.score, v.correct) for v in verdicts] == [(1.0, True), (0.25, False)]
    lenient = judged(["B", "C"], {"name": "tests.graders:patient", "correct_at": 0.2})
    assert [v.correct for v in lenient] == [True, True]
    assert lenient[1].score == 0.25  # what is rewarded is the score all the same


@pytest.mark.parametrize("messages", [CHAT, ()])
def test_a_trl_function_grades(messages: Sequence[Any]) -> None:
    """It gets chats for a chat prompt and strings for a text prompt, as TRL gives them."""
    verdicts = judged(["B", "C"], "tests.graders:trl_exact", messages=messages)
    assert [v.correct for v in verdicts] == [True, False]


def test_an_async_trl_function_grades_with_columns() -> None:
    spec = {"name": "tests.graders:trl_chat", "correct_at": 0.5}
    assert [v.status for v in judged(["B"], spec)] == ["ok"]
    # None: the function says that it does not apply; as a verifier that is no verdict
    assert [v.status for v in judged(["B"], spec, difficulty=1)] == ["error"]


def shaped(whole: Group, spec: str, right: bool = True) -> Group:
    whole = verify([whole], lambda items: [Verdict(right, float(right), "ok")] * len(items))[0]
    return Shaping([spec]).apply([whole])[0]


def test_a_trl_function_is_a_reward_component() -> None:
    whole = shaped(group(["B", "C", "B"]), "tests.graders:trl_exact")
    assert list(whole.rewards) == ["correct", "trl_exact"]
    assert whole.rewards["trl_exact"][:, 0, 0].tolist() == [1.0, 0.0, 1.0]
    assert whole.total_GCA[:, 0, 0].tolist() == [2.0, 1.0, 2.0]


def test_a_reward_sees_its_whole_group() -> None:
    whole = shaped(group(["B", "C", "B"]), "tests.graders:spread")
    assert whole.rewards["spread"][:, 0, 0].tolist() == [0.5, 1.0, 0.5]


def test_an_unknown_verdict_is_not_told_as_a_wrong_one() -> None:
    """Nor is it rewarded, whatever the function says."""
    verdicts = [Verdict(True, 1.0, "ok"), Verdict(False, 0.0, "wrong"), failed("g", "sick")]
    judged = replace(group(["B", "C", "D"]), verdicts=tuple(((v,),) for v in verdicts))
    assert reward("tests.graders:trl_lenient")(judged).ravel().tolist() == [1.0, 0.0, 0.5]
    rewards = Shaping(["tests.graders:trl_lenient"]).apply([judged])[0].rewards
    assert np.isnan(rewards["trl_lenient"].ravel()).tolist() == [False, False, True]


def test_only_named_columns_reach_a_function_without_kwargs() -> None:
    whole = shaped(group(["B", "C"]), "tests.graders:trl_brief")
    assert whole.rewards["trl_brief"][:, 0, 0].tolist() == [-0.04, -0.05]  # thought and answer


def test_none_does_not_apply_and_counts_as_nothing() -> None:
    easy = shaped(group(["B", "C"], difficulty=1), "tests.graders:trl_chat")
    assert easy.rewards["trl_chat"][:, 0, 0].tolist() == [0.0, 0.0]
    hard = shaped(group(["B", "C"], difficulty=2), "tests.graders:trl_chat")
    assert hard.rewards["trl_chat"][:, 0, 0].tolist() == [0.5, 0.5]


def test_an_answer_that_was_never_reached_is_empty_text() -> None:
    whole = shaped(group([None, "B"]), "tests.graders:trl_exact")
    assert whole.rewards["trl_exact"][:, 0, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tests.graders:absent", "cannot be imported"),
        ("tests.graders:not_a_function", "not a function"),
        ("tests.graders:by_text", "completions"),
    ],
)
def test_mistakes_are_named(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shaping([path])
    if "function" in message:
        with pytest.raises(ValueError, match=message):
            load(path)


def test_a_list_of_the_wrong_length_is_told() -> None:
    with pytest.raises(ValueError, match="1 rewards for 2 completions"):
        shaped(group(["B", "C"]), "tests.graders:trl_short")


def test_coroutines_inside_a_running_loop() -> None:
    """A notebook has one running: asyncio.run would refuse."""

    async def answer() -> int:
        await asyncio.sleep(0)
        return 7

    async def broken() -> int:
        raise RuntimeError("no")

    async def outer() -> None:
        assert wait(answer()) == 7
        with pytest.raises(RuntimeError, match="no"):
            wait(broken())

    asyncio.run(outer())
    assert wait(answer()) == 7
    assert wait(7) == 7
