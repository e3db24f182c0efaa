"""vLLM's own server with a model that was trained and exported here: budgets over HTTP."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from samplers import render
from samplers.budget import Asks, Budget
from samplers.render import Renderer, ThinkingConfig
from samplers.served.client import Client, request_body, split
from samplers.served.wire import Wire
from tests import serving
from tests.endpoint import HARD, prompts
from trainer.export import asks as exported_asks

pytestmark = pytest.mark.slow
EVALUATED = ["--data", "find", "--max-tokens", 300, "--answer-tokens", 8, "--problems", 32]


@dataclass(frozen=True)
class Model:
    """A model that was trained, exported and is served."""

    folder: Path
    url: str
    renderer: Renderer

    def ask(self, index: int, **body: Any) -> dict[str, Any]:
        """The server's answer on a problem, by plain HTTP."""
        asked = {"model": "tiny", "messages": list(prompts(index + 1)[index].messages)}
        wire = Wire(self.url, retries=0)
        try:
            return wire.post("/v1/chat/completions", asked | {"return_token_ids": True} | body)
        finally:
            wire.close()

    def thought(self, found: dict[str, Any]) -> int:
        """Thinking tokens, by the ids of the response."""
        ids = found["choices"][0]["token_ids"]
        assert self.renderer.thinking is not None
        end = self.renderer.thinking.end_id
        return ids.index(end) if end in ids else len(ids)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Two steps of a recipe with modes, its export, and a server of that."""
    serving.need_vllm()
    home = tmp_path_factory.mktemp("served")
    few = ["steps=2", "prompts_per_step=6", "evaluation.every=0", f"output={home}/runs"]
    serving.laconic("train", "modes/find", *few)
    serving.laconic("export", home / "runs" / "modes-find-seed0", home / "tiny")
    with serving.served(home / "tiny") as url:
        yield Model(home / "tiny", url, render.load(str(home / "tiny"), ThinkingConfig()))


@pytest.mark.parametrize("budget", [0, 8, 16, 32])
def test_hard_budgets_hold_exactly_over_plain_http(model: Model, budget: int) -> None:
    used, free = [], []
    for i in range(8):
        sampling = {"temperature": 1.0, "seed": i, "max_tokens": 300}
        found = model.ask(i, **sampling, **{HARD: budget})
        used.append(model.thought(found))
        free.append(model.thought(model.ask(i, **sampling)))
        message = found["choices"][0]["message"]
        assert len(message["reasoning"] or "") == used[-1]
        assert message["content"] is not None
        assert "</think>" not in (message["reasoning"] or "")
        assert found["usage"]["completion_tokens"] == len(found["choices"][0]["token_ids"])
    assert used == [min(budget, length) for length in free]
    assert budget in used


@pytest.mark.parametrize("budget", [0, 8, 16, 32, None])
def test_the_openai_client_asks_with_what_the_helper_writes(
    model: Model, budget: int | None
) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{model.url}/v1", api_key="none", max_retries=0)
    messages = list(prompts(1)[0].messages)
    body = request_body("tiny", messages, Budget(budget, 4), temperature=0.0, max_tokens=300)
    reply = client.chat.completions.create(**split(body))
    message = reply.choices[0].message
    reasoning = getattr(message, "reasoning", None) or ""
    assert message.content in tuple("ABCDEFGH")
    assert len(reasoning) == budget if budget is not None else len(reasoning) > 32
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len(reasoning) + 1 + 2  # marker, letter and <eos>
    with Client(model.url) as ours:
        [same] = ours.ask(messages, Budget(budget, 4), temperature=0.0, max_tokens=300)
    assert (same.reasoning, same.answer) == (reasoning, message.content)
    assert same.usage.thinking == len(reasoning)
    assert same.over == 0


def how(folder: Path) -> Asks:
    """How an export says it is told."""
    found = exported_asks(folder)
    assert found is not None
    return found


def lengths(url: str, asks: Asks, budgets: Sequence[Budget], problems: int = 24) -> list[float]:
    """Mean thinking tokens under each budget; what is asked at once does not change them."""
    asked = [list(p.messages) for p in prompts(problems)]
    with Client(url, asks=asks) as client, ThreadPoolExecutor(16) as pool:
        return [
            float(np.mean([replies[0].usage.thinking for replies in pool.map(partial(
                client.ask, budget=budget, seed=7, max_tokens=400), asked)]))
            for budget in budgets
        ]  # fmt: skip


def test_efforts_move_the_length(model: Model) -> None:
    efforts = [Budget(effort=name) for name in ("none", "low", "medium", "high")]
    none, low, medium, high = lengths(model.url, how(model.folder), efforts)
    assert none == 0
    assert 0 < low < medium < high


def test_a_soft_and_a_hard_budget_together(model: Model) -> None:
    """The effort is low, and the engine ends what is longer all the same."""
    asks = how(model.folder)
    [both] = lengths(model.url, asks, [Budget(16, effort="low")])
    [soft] = lengths(model.url, asks, [Budget(effort="low")])
    assert both <= 16 < soft


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "negative": ({HARD: -5}, "non-negative integer or -1"),
    "text": ({HARD: "8"}, "non-negative integer or -1"),
    "fraction": ({HARD: 1.5}, "non-negative integer or -1"),
    "effort": ({"reasoning_effort": "huge"}, "reasoning_effort"),
    "effort the model has not": ({"reasoning_effort": "xhigh"}, "this model knows"),
    "effort in the template": ({"chat_template_kwargs": {"reasoning_effort": "huge"}}, "knows"),
    "number it cannot read": ({"chat_template_kwargs": {"thinking_budget": 64}}, "no effect"),
    "number that is none": ({"chat_template_kwargs": {"thinking_budget": "64"}}, "whole number"),
    "more than the context": ({"max_tokens": 5000}, "max_tokens"),
    "no such model": ({"model": "large"}, "does not exist"),
}


@pytest.mark.parametrize(("body", "words"), BAD.values(), ids=BAD)
def test_bad_values_are_refused(model: Model, body: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=rf"refuses.* 40[04]: .*{words}"):
        model.ask(0, **body)


def test_a_hard_budget_among_template_arguments_is_ignored_without_a_word(model: Model) -> None:
    """Why the helper never sends it there."""
    for lost in ({"chat_template_kwargs": {HARD: 8}}, {"vllm_xargs": {HARD: 8}}, {"extra": 8}):
        assert model.thought(model.ask(0, temperature=0.0, max_tokens=300, **lost)) > 8


def test_the_server_counts_no_reasoning_tokens_where_the_prompt_opens_the_thought(
    model: Model,
) -> None:
    """Why thinking tokens are counted by ids."""
    found = model.ask(0, temperature=0.0, **{HARD: 8}, max_tokens=20)
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert model.thought(found) == 8


HOW = {
    "truncate": ["--budgets", "0,8,16,32,inf"],
    "effort": ["--efforts", "none,low,medium,high"],  # high is what this export does by default
}


def rows_of(folder: Path) -> list[list[str]]:
    """Samples and verdicts of an evaluation."""
    files = [folder / "samples.jsonl", folder / "verdicts.jsonl"]
    return [sorted(map(keyed, map(json.loads, f.read_text().splitlines()))) for f in files]


@pytest.mark.parametrize("mode", HOW)
def test_evaluation_over_http_is_that_of_the_engine(
    model: Model, tmp_path: Path, mode: str
) -> None:
    """Trained, exported, served: greedy, every sample is the same, its tokens and its verdict."""
    common = [model.folder, *EVALUATED, "--temperature", 0, "--budget-mode", mode, *HOW[mode]]
    serving.laconic("eval", *common, "--engine", "vllm", "--out", tmp_path / "direct")
    direct = rows_of(tmp_path / "direct")
    assert len(direct[0]) == 32 * {"truncate": 1, "effort": 5}[mode]
    for api in ("chat", "ids")[: 2 if mode == "truncate" else 1]:
        over = ["--base-url", model.url, "--api", api, "--out", tmp_path / api]
        told = serving.laconic("eval", *common, *over)
        assert rows_of(tmp_path / api) == direct
        paid_again = mode == "truncate" and api == "chat"
        assert ("a thought is paid for at every cut" in told) == paid_again
        assert "ignored" not in told


def keyed(row: dict[str, Any]) -> str:
    """A sample or a verdict as one text; times and last digits of logprobs are left out."""
    row = {k: v for k, v in row.items() if k != "thought_logprob"}
    for cut in row.get("cuts", ()):
        cut.pop("confidence")
    return json.dumps(row, sort_keys=True)


def test_what_cannot_be_served_is_told_in_a_line(model: Model, tmp_path: Path) -> None:
    port = model.url.rpartition(":")[2]
    said = serving.laconic("serve", model.folder, "--port", port, code=2)
    assert said.splitlines() == [
        f"laconic: --port {port} on 127.0.0.1: Address already in use; choose another with --port"
    ]


def test_an_engine_that_dies_is_told_in_a_line_and_leaves_nothing(model: Model) -> None:
    port = serving.free_port()
    with serving.begun(model.folder, "--port", port, "--", "--no-such-flag") as process:
        assert process.stdout is not None
        said = process.stdout.read().splitlines()
        assert process.wait() == 1
    assert said[-1].startswith("laconic: the engine ended (exit code 2) and said last: ")
    assert "--no-such-flag" in said[-1]


def test_an_interrupt_during_the_start_leaves_nothing(model: Model) -> None:
    with serving.begun(model.folder, "--port", serving.free_port()) as process:
        assert process.stdout is not None
        assert "--reasoning-config" in process.stdout.readline()
        children = serving.below(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert [one for one in children if psutil.pid_exists(one.pid) and one.is_running()] == []


def test_announced_numbers_move_the_length(model: Model, tmp_path: Path) -> None:
    """Of a model that reads them; announced alone, nothing is enforced."""
    told = tmp_path / "told"
    serving.laconic("export", "base/told", told, "--ask", '{suffix: ";{budget}"}')
    with serving.served(told) as url:
        soft = [Budget(number, hard=False) for number in (32, 64, 128)]
        short, middle, long = lengths(url, how(told), soft)
        assert short < middle < long
        [both] = lengths(url, how(told), [Budget(32)])
        assert both <= min(32, short)
        with Client(url, asks=how(told)) as client:
            [reply] = client.ask(list(prompts(1)[0].messages), Budget(8), temperature=0.0)
            assert (reply.usage.thinking, reply.over) == (8, 0)
