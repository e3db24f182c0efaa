"""Generation under a budget: losers end, ties fall as the pure function says, costs add up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from launch.cli import main
from samplers import inference
from samplers.budget import Asks, Budget
from samplers.budgets.base import Asking
from samplers.generated import Generation
from samplers.inference import generate
from samplers.render import ThinkingConfig
from samplers.rollout import RolloutWorker
from samplers.selection import base as selections
from samplers.tasks import find
from tests.engines import STARTS, small
from tests.scripted import BARE, RENDERER, ScriptedEngine

Captured = pytest.CaptureFixture[str]
PROMPTS = [find.prompt(find.Config(), "test", i) for i in range(16)]
PROMPT = PROMPTS[0].messages[0]["content"]
HIGH = Asks(efforts={"high": Asking(suffix="<b4>"), "low": Asking(suffix="<b2>")})
TOLD = Asks(budget=Asking(suffix=";{budget}"))


@pytest.fixture(scope="module")
def modes() -> RolloutWorker:
    return inference.load("recipes/base/modes", {"name": "torch", "slots": 64}, ThinkingConfig())


def of_modes(worker: RolloutWorker, samples: int = 1, **more: Any) -> list[Generation]:
    budget = Budget(answer_tokens=400, effort="high", samples=samples)
    return generate(worker, PROMPTS[:10], budget, asks=HIGH, max_tokens=400, **more)


def paid(worker: RolloutWorker, samples: int = 1, **more: Any) -> tuple[int, list[Generation]]:
    """Tokens that the engine sampled, and what came of them."""
    before = worker.stats()["sampled"]
    made = of_modes(worker, samples, **more)
    return int(worker.stats()["sampled"] - before), made


@pytest.fixture(scope="module")
def whole(modes: RolloutWorker) -> tuple[int, list[Generation]]:
    """All of eight samples."""
    return paid(modes, 8, selection="majority")


# Selections


@pytest.mark.parametrize("m", [1, 3])
def test_short_m_ends_the_losers_and_is_the_pure_function(modes, whole, m):
    """The first m of k are the m shortest; nothing of the others is sampled after that."""
    spent, made = paid(modes, 8, selection={"name": "short_m", "m": m})
    of_all, complete = whole
    module, config = selections.resolve({"name": "short_m", "m": m})
    for short, full in zip(made, complete, strict=True):
        thinks = np.array([s.usage.thinking for s in full.samples])
        order = np.argsort(thinks, kind="stable")
        winners, last = set(order[:m].tolist()), thinks[order[m - 1]]
        assert short.aborted == 8 - m
        for i, (a, b) in enumerate(zip(short.samples, full.samples, strict=True)):
            if i in winners:
                assert (a.reasoning, a.answer) == (b.reasoning, b.answer)
            else:
                assert a.answer is None
                assert a.usage.answer == 0
                assert a.usage.thinking <= last + 1
                assert b.reasoning.startswith(a.reasoning)
        numbers = {a: n for n, a in enumerate(sorted({s.answer or "" for s in full.samples}))}
        pool = selections.Pool(
            np.array([[-1 if s.answer is None else numbers[s.answer] for s in full.samples]]),
            thinks[None],
            np.zeros((1, 8), np.int64),
            np.full((1, 8), np.nan),
        )
        assert module.chosen(config, pool)[0][short.chosen] > 0
    assert spent == sum(g.usage.total - g.usage.forced for g in made) < 0.9 * of_all
    assert of_all == sum(g.usage.total for g in complete)


@pytest.mark.parametrize("kind", STARTS)
def test_a_race_on_every_engine(kind):
    """Whatever the slots, everybody's costs are the engine's own, and m answers are finished."""
    for slots, prompts in ((32, 6), (3, 3)):
        engine = STARTS[kind](small(initializer_range=0.02), slots=slots)
        worker = RolloutWorker(engine, RENDERER)
        asked = ["A1+2", "B2", "A", "C3+4", "B", "A1"][:prompts]
        made = generate(worker, asked, Budget(30, samples=6), selection="short-2@6", max_tokens=50)
        dropped = sum(s.rollout.thought.finish == "stop" for g in made for s in g.samples)
        paid = sum(g.usage.total - g.usage.forced for g in made)
        natural = sum(s.rollout.closed for g in made for s in g.samples)
        assert engine.counters["sampled"] == paid + dropped - natural
        for one in made:
            assert sum(s.ended != "abort" for s in one.samples) >= 2
            assert one.best.finish != "abort"
        assert not engine.pending
        assert not getattr(engine, "_kept", None)


def test_thoughts_that_a_rule_ends_count_once():
    """Though it weighed two texts, which came back together."""
    worker = RolloutWorker(ScriptedEngine(), RENDERER)
    weigh = {"name": "self_evaluation", "every": 3, "threshold": 0.01, "text": "C"}
    rule = weigh | {"no": "A", "yes": "B"}
    more: dict[str, Any] = {"stopping": rule, "selection": "short-2", "max_tokens": 60}
    for one in generate(worker, ["A1+2", "B2", "C", "A"], Budget(40, samples=4), **more):
        assert sum(s.ended != "abort" for s in one.samples) >= 2
        assert one.aborted == 2


def test_an_error_of_the_callers_own_leaves_nothing_kept():
    worker = RolloutWorker(engine := ScriptedEngine(), RENDERER)
    rule = {"name": "consistency", "every": 2, "tokens": 4}
    with pytest.raises(ZeroDivisionError):
        generate(worker, ["A1"] * 5, stopping=rule, max_tokens=60, canonical=lambda _: 1 / 0)
    assert not any(engine.kept.values())


def test_votes_and_ties_and_scores(modes, whole):
    for one in whole[1]:
        assert sum(one.votes.values()) == sum(s.answer is not None for s in one.samples)
        assert one.votes[one.answer] == max(one.votes.values())
        assert one.usage.thinking == sum(s.usage.thinking for s in one.samples)
    for one in of_modes(modes, 4, selection="best-of-n"):
        answered = [s for s in one.samples if s.answer is not None]
        assert one.best.confidence == max(s.confidence for s in answered)
    for one in of_modes(modes, 4, selection={"name": "best_of_n", "weighted": True}):
        sums = dict.fromkeys(one.votes, 0.0)
        for s in one.samples:
            if s.answer is not None:
                sums[s.answer] += s.confidence
        assert sums[one.answer] == max(sums.values())
    for one in of_modes(modes, 4, selection="best-of-n", scorer=lambda _, s: s.usage.thinking):
        answered = [s for s in one.samples if s.answer is not None]
        assert one.best.usage.thinking == max(s.usage.thinking for s in answered)


# Budgets


def test_efforts_and_soft_budgets_move_thoughts(modes):
    def thought(asks: Asks, model: Any, budget: Budget) -> float:
        made = generate(model, PROMPTS, budget, asks=asks, max_tokens=400)
        return float(np.mean([g.usage.thinking for g in made]))

    assert thought(HIGH, modes, Budget(effort="low")) < 0.5 * thought(
        HIGH, modes, Budget(effort="high")
    )
    told = inference.load("recipes/base/told", "torch", ThinkingConfig())
    short, long = (thought(TOLD, told, Budget(n, hard=False)) for n in (32, 128))
    assert short < 0.6 * long
    hard = generate(told, PROMPTS, Budget(32, answer_tokens=4), asks=TOLD, max_tokens=400)
    assert max(g.usage.thinking for g in hard) <= 32
    assert {g.best.ended for g in hard} == {"itself", "budget"}
    forced = [g for g in hard if g.best.ended == "budget"]
    assert all((g.forced, g.usage.forced) == ("</think>", 1) for g in forced)
    assert any(g.best.usage.thinking > 32 for g in generate(told, PROMPTS, Budget(), asks=TOLD))


def test_early_exit_pays_for_its_looks_and_saves_more(modes):
    of_all, _ = paid(modes)
    spent, made = paid(modes, stopping={"name": "confidence", "every": 16, "threshold": 0.8})
    assert spent == sum(g.usage.total - g.usage.forced for g in made) < 0.8 * of_all
    ended = [g for g in made if g.best.ended == "rule"]
    assert len(ended) > 2
    assert all(g.usage.probes > 0 and g.forced == "</think>" for g in ended)


def test_prompts_may_be_texts_messages_or_prompts(modes):
    messages = [{"role": "user", "content": PROMPT}]
    made = generate(modes, [PROMPT, messages], Budget(8), max_tokens=40)
    assert made[0].samples[0].rollout.prompt_ids_T.tolist() == (
        made[1].samples[0].rollout.prompt_ids_T.tolist()
    )
    for alone in (PROMPT, messages):
        assert len(generate(modes, alone, Budget(8), max_tokens=40)) == 1
    (bare,) = generate(RolloutWorker(ScriptedEngine(), BARE), "A1", max_tokens=20)
    assert (bare.reasoning, bare.best.ended) == ("", "none")
    assert bare.answer is not None
    left = 1024 - made[0].usage.prompt
    assert generate(modes, PROMPT)[0].plan.max_tokens == left
    (seen,) = generate(modes, PROMPT, stopping={"name": "confidence", "tokens": 8})
    assert seen.plan.max_tokens == left - 8 - 1  # room for a look: the end marker, an answer


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"selection": "majority"}, "of one sample has no effect"),
        ({"selection": "short-3", "budget": Budget(samples=2)}, "waits for m=3 thoughts of 2"),
        ({"selection": "majorty", "budget": Budget(samples=2)}, "did you mean 'majority'"),
        ({"scorer": lambda *_: 0.0}, "without a selection"),
        (
            {"scorer": lambda *_: 0.0, "selection": "majority", "budget": Budget(samples=2)},
            "reads no score",
        ),
        ({"temperature": 0.0, "budget": Budget(samples=2)}, "greedy ones are all the same"),
        ({"budget": Budget(9, hard=False)}, "would have no effect"),
        ({"budget": Budget(effort="low")}, "cannot be asked for 'low'"),
        ({"budget": Budget(2000)}, "leaves no token for an answer"),
        ({"budget": Budget(effort="low"), "asks": Asks(efforts={"low": Asking(
            template={"reasoning_effort": "low"})})}, "ignores the argument 'reasoning_effort'"),
        ({"stopping": "ramp"}, "without a thinking budget"),
        ({"prompts": []}, "prompts: there are none"),
    ],
)  # fmt: skip
def test_what_would_have_no_effect_is_refused(settings, said, modes):
    before = modes.stats()["sampled"]
    with pytest.raises(ValueError, match=said):
        generate(modes, **{"prompts": [PROMPT], **settings})
    assert modes.stats()["sampled"] == before


def test_limits_of_a_thought_that_the_prompt_closes_are_refused():
    """Which a template does at `enable_thinking: false`; a budget of 0 goes with it."""
    worker = RolloutWorker(ScriptedEngine(), RENDERER)
    none = {"budget": Budget(effort="none"), "max_tokens": 40}
    assert generate(worker, "A1", **none)[0].best.ended == "none"
    generate(worker, "A1", Budget(0, effort="none"), max_tokens=40)
    with pytest.raises(ValueError, match="thinking_tokens: 9 would have no effect: so asked"):
        generate(worker, "A1", Budget(9, effort="none"), max_tokens=40)
    with pytest.raises(ValueError, match="stopping: confidence would have no effect: so asked"):
        generate(worker, "A1", stopping="confidence", **none)


# The command


def generated(capsys: Captured, *options: str, model: str = "base/find") -> Any:
    assert main(["generate", model, PROMPT, "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_generate_forces_at_its_budget_and_never_without(capsys: Captured) -> None:
    free = generated(capsys, "--thinking-budget", "none", "--temperature", "0")
    assert free["thought_ended_by"] == "itself"
    assert free["forced"] == ""
    assert free["usage"]["thinking"] == len(free["reasoning"])  # one character, one token
    short = generated(capsys, "--thinking-budget", "7", "--temperature", "0")
    assert short["reasoning"] == free["reasoning"][:7]
    assert (short["usage"]["thinking"], short["forced"]) == (7, "</think>")
    nothing = generated(capsys, "--thinking-budget", "0", "--answer-tokens", "3")
    assert (nothing["reasoning"], nothing["usage"]["thinking"]) == ("", 0)
    assert nothing["usage"]["answer"] <= 3


def test_generate_repeats_by_seed_and_its_samples_differ(capsys: Captured) -> None:
    first = generated(capsys, "--samples", "4", "--seed", "3")
    assert first == generated(capsys, "--samples", "4", "--seed", "3")
    assert len({sample["reasoning"] for sample in first["samples"]}) > 1


def test_generate_prints_what_was_forced_and_chosen(capsys: Captured) -> None:
    assert main(["generate", "base/find", PROMPT, "--thinking-budget", "5"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("[thinking 5 tokens, answer ")
    assert "forced '</think>'" in last
    efforts = ["--effort", "high", "--efforts", "{high: {suffix: <b4>}}", "--max-tokens", "400"]
    samples = ["--samples", "5", "--selection", "short-m", "--m", "2"]
    assert main(["generate", "base/modes", PROMPT, PROMPT, *efforts, *samples]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[sample")]
    assert len(told) == 2
    assert all("votes: " in line and "3 ended early" in line for line in told)
    rule = ["--stopping", "{name: confidence, every: 8, threshold: 0.5}"]
    watched = generated(capsys, *efforts, *rule, model="base/modes")
    assert watched["thought_ended_by"] == "rule"
    assert watched["stopping"]["exit"] == watched["usage"]["thinking"]
    told = generated(capsys, "--thinking-budget", "48", "--soft", "--ask", "{suffix: ';{budget}'}",
                     model="base/told")  # fmt: skip
    assert told["forced"] == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--thinking-budget", "1020"], "tokens that the context leaves; lower it"),
        (["--thinking-budget", "40", "--max-tokens", "40"], "below the 40 tokens of --max-tokens"),
        (["--max-tokens", "1024"], "model's context of 1024"),
        (["--soft"], "--soft has no effect without --thinking-budget"),
        (["--ask", "{suffix: ';{budget}'}"], "--ask has no effect"),
        (["--efforts", "{low: {suffix: a}}"], "--efforts has no effect without --effort"),
        (["--thinking-budget", "9", "--ask", "{suffix: ';'}"], "nowhere says {budget}"),
        (["--thinking-budget", "9", "--ask", "suffix"], "is no YAML map"),
        (["--thinking-budget", "9", "--ask", "{sufix: ';{budget}'}"], "--ask: sufix"),
        (["--thinking-budget", "9", "--soft"], "would have no effect"),
        (["--effort", "low"], "cannot be asked for 'low'"),
        (["--effort", "lo"], "'lo' is none of"),
        (["--selection", "majority"], "of one sample"),
        (["--m", "3"], "--m 3 has no effect"),
        (["--m", "3", "--selection", "{m: 2}"], "--m 3 has no effect"),
        (["--m", "3", "--samples", "4", "--selection", "majority"], "--m 3 has no effect"),
        (["--m", "5", "--samples", "4", "--selection", "short-m"], "m=5 thoughts of 4 samples"),
        (["--samples", "3", "--temperature", "0"], "all the same"),
        (["--stopping", "consistensy"], "did you mean 'consistency'"),
        (["--stopping", "{name: consistency, every: 2000}"], "would have no effect"),
        (["--engine", "vlm"], "did you mean 'vllm'"),
    ],
)
def test_mistakes_on_the_command_line(options, said, capsys, monkeypatch):
    monkeypatch.setattr("launch.inprocess.start", lambda *_: pytest.fail("weights were loaded"))
    assert main(["generate", "base/find", PROMPT, *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
