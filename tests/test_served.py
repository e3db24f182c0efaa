"""Rollouts over HTTP are those of the engine behind it; what a server does otherwise is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplers.budget import EFFORTS, Asks, Budget, plan_of
from samplers.budgets.base import Asking
from samplers.inference import generate
from samplers.served import wire
from samplers.served.client import CONVENTION, Client, request_body, split
from samplers.served.engine import worker
from samplers.served.http import Served
from samplers.types import Plan, Rollout
from tests.endpoint import HARD, Endpoint, folder, jobs, prompts, serving

CUTS = Plan(max_tokens=160, cuts=(0, 8, 16, 32, 160), collapse=True, answer=4)
PLANS = {
    "uncut": Plan(max_tokens=250),
    "told": Plan(max_tokens=250, template={"reasoning_effort": "low"}),
    "suffix": Plan(max_tokens=250, suffix="<b3>"),
    "nothing thought": Plan(max_tokens=250, think=0),
    "hard": Plan(max_tokens=250, think=8, answer=3),
    "short of room": Plan(max_tokens=40),
    "one token of answer": Plan(max_tokens=250, think=20, answer=1),
    "cuts": CUTS,
}
ASK = [{"role": "user", "content": "A1-1+1B1-1+0?"}]


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Endpoint:
    return Endpoint(folder(tmp_path_factory.mktemp("served") / "model"))


@pytest.fixture
def endpoint(behind: Endpoint) -> Iterator[tuple[Endpoint, str]]:
    with serving(behind) as url:
        yield behind, url
    behind.deaf = behind.bare = behind.wanders = False
    behind.fails, behind.refusal, behind.asked = 0, "", []
    behind.paths.clear()


@pytest.fixture
def served(endpoint: tuple[Endpoint, str]) -> Iterator[Served]:
    one = Served(endpoint[1], None, endpoint[0].renderer, timeout=60)
    yield one
    one.close()


def check_same(a: Rollout, b: Rollout, logprobs: bool = True) -> None:
    """All that evaluation reads of a rollout."""
    assert a.prompt_ids_T.tolist() == b.prompt_ids_T.tolist()
    assert a.thought.ids_T.tolist() == b.thought.ids_T.tolist()
    assert (a.closed, a.skipped, a.truncated) == (b.closed, b.skipped, b.truncated)
    assert a.thought.finish == b.thought.finish
    if logprobs:
        np.testing.assert_allclose(a.thought.logprobs_T, b.thought.logprobs_T, atol=1e-4)
    for mine, other in zip(a.answers, b.answers, strict=True):
        one, two = mine[0], other[0]
        assert (one.after, one.text, one.tokens.finish) == (two.after, two.text, two.tokens.finish)
        assert one.tokens.ids_T.tolist() == two.tokens.ids_T.tolist()
        assert one.tokens.forced_T.tolist() == two.tokens.forced_T.tolist()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_chat_makes_the_rollouts_of_the_engine_behind_it(
    endpoint: tuple[Endpoint, str], served: Served, plan: Plan
) -> None:
    made = served.rollout(jobs(plan))
    for a, b in zip(made, endpoint[0].worker.generate(jobs(plan)), strict=True):
        check_same(a, b)
    odd = [line for line in served.findings() if "generation each" not in line]
    assert odd == []


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_token_ids_make_the_rollouts_of_the_engine_behind_them(
    endpoint: tuple[Endpoint, str], plan: Plan
) -> None:
    behind, url = endpoint
    over = worker(url, None, behind.renderer, timeout=60)
    for a, b in zip(over.generate(jobs(plan)), behind.worker.generate(jobs(plan)), strict=True):
        check_same(a, b)
    assert behind.paths.keys() == {"/v1/completions"}
    over.engine.close()  # type: ignore[attr-defined]


def test_a_server_without_ids_gives_the_same_counts_and_says_so(
    endpoint: tuple[Endpoint, str], served: Served
) -> None:
    """Over chat the text is all there is: the tokenizer here writes it."""
    endpoint[0].bare = True
    for plan in (PLANS["hard"], PLANS["uncut"], CUTS):
        made = served.rollout(jobs(plan))
        for a, b in zip(made, endpoint[0].worker.generate(jobs(plan)), strict=True):
            check_same(a, b, logprobs=False)
    told = " ".join(served.findings())
    assert "without token ids" in told
    assert "without logprobs" in told


def test_an_ignored_hard_budget_is_counted_and_told(
    endpoint: tuple[Endpoint, str], served: Served
) -> None:
    behind = endpoint[0]
    behind.deaf = True
    made = served.rollout(jobs(PLANS["hard"]))
    most = max(rollout.think_tokens for rollout in made) - 8
    assert most > 0
    [line] = [line for line in served.findings() if "ignored" in line]
    assert line.startswith("4 of 4 hard budgets were ignored")
    assert f"up to {most} tokens" in line
    assert served.stats()["over"] == 4
    cut = served.rollout(jobs(CUTS))
    assert all(a[0].after == len(r.thought) for r in cut for a in r.answers if r.closed)


@pytest.mark.parametrize("cut", [(0.6, 0), (0.9, 5)])
def test_a_nucleus_is_asked_of_the_server(
    endpoint: tuple[Endpoint, str], served: Served, cut: tuple[float, int]
) -> None:
    """Over chat and over token ids: every request says it, and its tokens are of it."""
    behind, url = endpoint
    asked = [replace(j, top_p=cut[0], top_k=cut[1]) for j in jobs(CUTS, 3, temperature=1.0)]
    served.rollout(asked)
    assert {(b["top_p"], b["top_k"]) for b in behind.asked if "messages" in b} == {cut}
    by_ids = worker(url, None, behind.renderer)
    for made in by_ids.generate(asked):
        for answer in (made.final.tokens, made.thought):
            ids = np.concatenate([made.prompt_ids_T, made.thought.ids_T[: made.final.after]])
            if answer is made.thought:
                ids = made.prompt_ids_T
            whole = np.concatenate([ids, answer.ids_T])
            (plain,) = behind.worker.score([whole])
            drawn = ~answer.forced_T
            # Renormalised: what is left out is shared among what is kept.
            assert (answer.logprobs_T[drawn] >= plain[len(ids) - 1 :][drawn] - 1e-4).all()
    assert {(b["top_p"], b["top_k"]) for b in behind.asked if "prompt" in b} == {cut}
    [one] = served.rollout(
        [replace(j, top_p=cut[0], top_k=cut[1]) for j in jobs(PLANS["uncut"], 1, 0.0)]
    )
    [greedy] = behind.worker.generate(jobs(PLANS["uncut"], 1, 0.0))
    check_same(one, greedy)


def test_cuts_of_another_thought_are_told(endpoint: tuple[Endpoint, str], served: Served) -> None:
    endpoint[0].wanders = True
    served.rollout(jobs(CUTS, temperature=1.0))
    assert any("not nested" in line for line in served.findings())
    endpoint[0].wanders = False
    with_seeds = Served(endpoint[1], "tiny", endpoint[0].renderer)
    with_seeds.rollout(jobs(CUTS, temperature=1.0))
    assert not any("not nested" in line for line in with_seeds.findings())
    with_seeds.close()


def test_another_template_at_the_server_is_told(
    endpoint: tuple[Endpoint, str], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = endpoint[0]._chat
    monkeypatch.setattr(
        endpoint[0],
        "_chat",
        lambda body: chat({k: v for k, v in body.items() if k != "reasoning_effort"}),
    )
    served.rollout(jobs(PLANS["told"], 2))
    assert any(line.startswith("2 of 2 prompts were rendered") for line in served.findings())


def test_errors_that_pass_are_tried_again_a_few_times(
    endpoint: tuple[Endpoint, str], served: Served
) -> None:
    endpoint[0].fails = 2
    assert len(served.rollout(jobs(PLANS["hard"], 2))) == 2
    assert "2 requests were sent again" in " ".join(served.findings())
    stubborn = Served(endpoint[1], None, endpoint[0].renderer, retries=1)
    endpoint[0].fails = 99
    with pytest.raises(ValueError, match=r"\(2 times\): 503: overloaded"):
        stubborn.rollout(jobs(PLANS["hard"], 1))
    stubborn.close()


def test_a_refusal_is_told_in_the_servers_words_and_what_helps(
    endpoint: tuple[Endpoint, str], served: Served
) -> None:
    endpoint[0].refusal = "thinking_token_budget is set but reasoning_config is not configured."
    wanted = r"refuses \(thinking_token_budget=8\): 400: thinking.*--reasoning-parser"
    with pytest.raises(ValueError, match=wanted):
        served.rollout(jobs(PLANS["hard"], 1))


def test_lots_that_were_made_come_back_beside_one_that_fails(
    endpoint: tuple[Endpoint, str], served: Served
) -> None:
    with served.flow() as flow:
        flow.add(jobs(PLANS["hard"], 3), key="good")
        flow.add(jobs(replace(PLANS["hard"], prefill="A"), 1), key="bad")
        flow.add([], key="none")
        assert len(flow) == 2
        seen: list[str] = []
        errors: list[str] = []
        while len(flow):
            try:
                seen += [key for key, _ in flow.finished()]
            except ValueError as error:
                errors.append(str(error))
        assert seen == ["good"]
        assert len(errors) == 1
        assert "prefill 'A' cannot be asked over a chat endpoint" in errors[0]
        assert flow.finished() == []
    with pytest.raises(ValueError, match="closed"):
        flow.add(jobs(PLANS["hard"], 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"close": "w</think>"}, "close"),
        ({"after_close": "A"}, "after_close"),
        ({"cuts": (8,), "answers_per_cut": 2}, "answers_per_cut"),
        ({"max_tokens": 2000}, "exceed the model's context of 1024"),
        ({"template": {"reasoning_efort": "low"}}, "ignores the argument"),
    ],
)
def test_what_chat_cannot_be_asked_is_refused_before_any_request(
    endpoint: tuple[Endpoint, str], served: Served, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        served.rollout(jobs(replace(PLANS["uncut"], **change), 1))
    assert endpoint[0].asked == []


@pytest.mark.parametrize(
    ("url", "own", "sent"),
    [
        ("http://127.0.0.1:8000/v1", True, True),
        ("http://localhost:8000", True, True),
        ("http://[::1]:8000", True, True),
        ("https://example.org", False, True),
        ("http://example.org:8000", False, False),
        ("http://127.0.0.1.example.org", False, False),
        ("http://localhost.example.org", False, False),
    ],
)
def test_a_key_of_the_environment_is_not_sent_in_clear_text_to_others(
    url: str, own: bool, sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert wire.loopback(url) == own
    for key, told in ((None, "secret" if sent else None), ("mine", "mine")):
        one = wire.Wire(url, key)
        assert one._http.headers.get("Authorization") == (told and f"Bearer {told}")
        one.close()


def test_wrong_addresses_and_names() -> None:
    with pytest.raises(ValueError, match="no address"):
        Client("localhost:8000")
    with pytest.raises(ValueError, match="nobody answers; start one with laconic serve"):
        Client("http://127.0.0.1:9", retries=0)


def test_a_selection_ends_the_losers_over_http_too(endpoint: tuple[Endpoint, str]) -> None:
    behind, url = endpoint
    over = worker(url, None, behind.renderer, timeout=60)
    budget = Budget(None, samples=4)
    asked = [p.messages[0]["content"] for p in prompts(2)]
    settings: dict[str, Any] = {"max_tokens": 200, "selection": "short_m", "asks": Asks()}
    made = generate(over, asked, budget, **settings)
    for one in made:
        assert one.best.finish != "abort"
        assert one.aborted == sum(sample.finish == "abort" for sample in one.samples)
    over.engine.close()  # type: ignore[attr-defined]


# One question


def test_a_client_keeps_budgets_and_splits_usage(endpoint: tuple[Endpoint, str]) -> None:
    behind, url = endpoint
    with Client(f"{url}/v1", timeout=60) as client:
        for tokens in (0, 8, 16):
            [reply] = client.ask(ASK, Budget(tokens, answer_tokens=4), temperature=0.0)
            assert reply.usage.thinking == tokens == len(reply.reasoning)
            assert reply.usage.completion <= tokens + 1 + 4
            assert reply.answer
            assert reply.over == 0
        replies = client.ask(ASK[0]["content"], Budget(8, samples=3), seed=4)
        assert sorted(body["seed"] for body in behind.asked[-3:]) == [4, 5, 6]
        assert len(replies) == 3
        behind.deaf = True
        [reply] = client.ask(ASK, Budget(4, effort="low"), max_tokens=300)
        assert reply.over == reply.usage.thinking - 4 > 0


@given(
    st.integers(0, 4000) | st.none(),
    st.sampled_from([None, *EFFORTS]),
    st.integers(1, 2000) | st.none(),
    st.floats(0, 1),
)
def test_a_request_says_both_budgets_and_leaves_room_for_the_answer(
    tokens: int | None, effort: str | None, answer: int | None, slack: float
) -> None:
    settings = {"slack": slack, "reserve": 50, "asks": CONVENTION}
    body = request_body("m", ASK, Budget(tokens, answer, effort), **settings)
    kwargs = body.get("chat_template_kwargs", {})
    assert HARD not in kwargs
    assert body.get("reasoning_effort") == effort
    announced = tokens if effort is None else None  # an effort is told instead of a number
    assert kwargs.get("thinking_budget") == announced
    if tokens is None:
        assert HARD not in body
        assert "max_tokens" not in body
        return
    hard = body[HARD]
    wide = tokens if announced is None else tokens * (1 + slack)
    assert wide - 1e-6 <= hard < wide + 1
    assert body["max_tokens"] == hard + 1 + (answer or 50)
    told = request_body("m", ASK, Budget(tokens), slack=slack)
    assert told[HARD] == tokens  # nothing is announced: there is nothing to keep to roughly
    assert "chat_template_kwargs" not in told


def test_texts_are_put_around_messages_of_parts() -> None:
    parts = [{"type": "text", "text": "1"}]
    asks = Asks(budget=Asking(suffix=";{budget}", system="Be brief."))
    talk = [{"role": "system", "content": parts}, {"role": "user", "content": parts}]
    first, last = request_body("m", talk, Budget(7), asks=asks)["messages"]
    assert [part["text"] for part in first["content"]] == ["Be brief.\n\n", "1"]
    assert [part["text"] for part in last["content"]] == ["1", ";7"]
    assert parts == [{"type": "text", "text": "1"}]


def test_requests_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="hard=False enforces none"):
        request_body("m", ASK, Budget(8, hard=False), asks=Asks())
    with pytest.raises(ValueError, match="cannot be asked for 'low'"):
        request_body("m", ASK, Budget(effort="low"), asks=Asks())
    with pytest.raises(ValueError, match=r"leaves no token for an answer after 8.*set 1033"):
        request_body("m", ASK, Budget(8), max_tokens=9)
    with pytest.raises(ValueError, match=r"slack: -0\.1"):
        request_body("m", ASK, Budget(8), slack=-0.1)
    soft = request_body("m", ASK, Budget(8, hard=False), asks=CONVENTION)
    assert HARD not in soft
    assert soft["chat_template_kwargs"] == {"thinking_budget": 8}
    sglang = request_body("m", ASK, Budget(8), dialect="sglang")
    assert sglang["custom_params"] == {"thinking_budget": 8}
    assert HARD not in sglang


def test_a_body_splits_into_what_the_openai_client_knows_and_the_rest() -> None:
    body = request_body("m", ASK, Budget(8), asks=CONVENTION, temperature=0.5, seed=1)
    plain = split(body)
    extra = plain.pop("extra_body")
    assert plain | extra == body
    assert extra.keys() == {HARD, "chat_template_kwargs"}


def test_a_plan_is_enforced_over_chat_as_in_this_process() -> None:
    plan = plan_of(Budget(8, 3), Asks(), 250)
    assert request_body("m", ASK, Budget(8, 3), asks=Asks(), max_tokens=250)[HARD] == plan.think
