"""An exported chat template renders what training rendered, whatever the texts and the template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.budgets.base import Asking
from samplers.render import Renderer, ThinkingConfig
from samplers.types import Plan, Prompt
from tests.exported import TEMPLATES, tokenizer
from trainer.export import probe, template
from trainer.export.ways import Ways, with_native

HARD = [
    "'",
    '"',
    "\\",
    "{{ x }}",
    "{% if %}",
    "{# c #}",
    "{budget",
    "}}",
    "%}",
    "-#}",
    "\n",
    "\r\n",
]
HARD += [
    "<think>",
    "</think>",
    "\u00e9",
    "\u65e5",
    "\U0001f600",
    "\u2028",
    "\x00",
    "\t",
    " ",
    "ab",
    "7",
    "~",
]
texts = st.lists(st.sampled_from(HARD) | st.text(max_size=3), max_size=6).map("".join)
filled = texts.filter(lambda text: "{budget}" not in text).map(lambda text: text + "B")


@cache
def own(name: str) -> Renderer:
    return Renderer(tokenizer(TEMPLATES[name]), ThinkingConfig())


def exported(name: str, ways: Ways) -> Renderer:
    """A renderer of the exported template."""
    base = own(name)
    closing = probe.closing(base, ways.plan("none", 1))
    made = template.wrap(TEMPLATES[name], ways, closing, base.variables)
    assert template.unwrap(made) == TEMPLATES[name].removesuffix("\n")
    return Renderer(tokenizer(made), ThinkingConfig())


def told(renderer: Renderer, messages: Any, **arguments: Any) -> list[int]:
    """As servers render: template arguments alone."""
    return list(
        renderer.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, **arguments
        )
    )


def trained(renderer: Renderer, messages: Any, plan: Plan) -> list[int]:
    prompt = Prompt(0, "p", tuple(messages), "", "", "")
    return probe.rendered(renderer, plan, prompt).tolist()


@st.composite
def askings(draw: Any, number: bool = False) -> Asking:
    """Texts of any kind; with `number`, one of them says it."""
    said = {
        "suffix": draw(filled) if draw(st.booleans()) else "",
        "system": draw(st.none() | filled),
        "prefill": draw(filled) if draw(st.booleans()) else "",
    }
    if number:
        where = draw(st.sampled_from(["suffix", "system", "prefill"]))
        said[where] = draw(filled) + "{budget}" + draw(filled)
    return Asking(**said)


@st.composite
def talks(draw: Any) -> list[Mapping[str, str]]:
    """One turn or several, with or without a system message; answers that hold thoughts."""
    out = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        out.append({"role": "user", "content": draw(texts)})
        thought = f"<think>{draw(texts)}</think>" if draw(st.booleans()) else ""
        out.append({"role": "assistant", "content": thought + draw(texts)})
    return [*out, {"role": "user", "content": draw(texts)}]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, deadline=None)
@given(talk=talks(), default=askings(), low=askings(), high=askings(), none=st.none() | askings(),
       budget=askings(number=True), number=st.integers(1, 10**6))  # fmt: skip
def test_every_mode_renders_the_ids_of_training(
    name: str, talk: Any, default: Asking, low: Asking, high: Asking, none: Asking | None,
    budget: Asking, number: int,
) -> None:  # fmt: skip
    efforts = {"low": low, "high": high} | ({} if none is None else {"none": none})
    ways = Ways(default=default, budget=budget, efforts=efforts)
    base, made = own(name), exported(name, ways)
    for arguments in ({}, {"reasoning_effort": None}, {"thinking_budget": -1}):
        assert told(made, talk, **arguments) == trained(base, talk, ways.plan("default", 1))
    for effort in ("low", "high"):
        wanted = trained(base, talk, ways.plan(effort, 1))
        assert told(made, talk, reasoning_effort=effort, thinking_budget=None) == wanted
    wanted = trained(base, talk, ways.plan("budget", 1, number))
    assert told(made, talk, thinking_budget=number, reasoning_effort="low") == wanted
    plan = replace(ways.plan("none", 1), prefill=probe.closing(base, ways.plan("none", 1)))
    silent = told(made, talk, enable_thinking=False, thinking_budget=number)
    assert silent == trained(base, talk, plan)
    assert silent == told(made, talk, thinking_budget=0)
    assert silent == told(made, talk, reasoning_effort="none", enable_thinking=False)
    assert made.closed(silent)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_with_nothing_to_tell_stays_what_it_was(name: str) -> None:
    made, talk = exported(name, Ways()), [{"role": "user", "content": "A {b} '"}]
    assert told(made, talk) == told(own(name), talk)
    whole = [*talk, {"role": "assistant", "content": "C"}]
    both = [r.tokenizer.apply_chat_template(whole, tokenize=False) for r in (made, own(name))]
    assert both[0] == both[1]  # without a generation prompt, as supervised data are rendered
    known = set(template.VARIABLES)
    assert known <= made.variables


def test_a_model_s_own_switch_and_numbers_are_used() -> None:
    base, talk = own("switch"), [{"role": "user", "content": "A"}]
    switch = exported("switch", with_native(Ways(), probe.native(base)))
    off = told(base, talk, enable_thinking=False)
    assert base.closed(off)
    assert off != told(base, talk)
    for arguments in ({"enable_thinking": False}, {"thinking_budget": 0}):
        assert told(switch, talk, **arguments) == off
    found = probe.native(own("native"))
    assert found.budget is not None
    assert set(found.efforts) >= {"low", "medium", "high"}
    made = exported("native", with_native(Ways(), found))
    assert told(made, talk, thinking_budget=64) == told(own("native"), talk, thinking_budget=64)
    assert told(made, talk, reasoning_effort="low") == told(
        own("native"), talk, reasoning_effort="low"
    )


def test_lists_of_parts_are_told_at_their_end() -> None:
    ways = Ways(budget=Asking(suffix=";{budget}", system="S"))
    made = exported("macros", ways)
    plain = [{"role": "system", "content": "T"}, {"role": "user", "content": "A"}]
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in plain]
    assert told(made, parts, thinking_budget=8) == told(made, plain, thinking_budget=8)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"thinking_budget": -2}, "thinking_budget=-2: give a whole number"),
        ({"thinking_budget": 1.5}, "whole number"),
        ({"thinking_budget": "7"}, "whole number"),
        ({"thinking_budget": True}, "whole number"),
        ({"thinking_budget": 64}, "was not trained to read a number"),
        ({"reasoning_effort": "minimal"}, "this model knows none, low"),
        ({"reasoning_effort": 3}, "this model knows none, low"),
        ({"enable_thinking": "false"}, "give true or false"),
        ({"enable_thinking": False, "reasoning_effort": "minimal"}, "knows none, low"),
    ],
)
def test_what_would_have_no_effect_is_refused(arguments: dict[str, Any], why: str) -> None:
    from jinja2 import TemplateError

    made = exported("opens", Ways(efforts={"low": Asking(suffix="L")}))
    with pytest.raises(TemplateError, match=why):
        told(made, [{"role": "user", "content": "A"}], **arguments)


def test_without_a_user_there_is_nobody_to_tell() -> None:
    from jinja2 import TemplateError

    made = exported("opens", Ways(efforts={"low": Asking(suffix="L")}))
    talk = [{"role": "system", "content": "A"}]
    assert told(made, talk) == told(own("opens"), talk)
    with pytest.raises(TemplateError, match="last user message, and there is none"):
        told(made, talk, reasoning_effort="low")


def test_a_model_without_thoughts_is_not_told_to_have_any() -> None:
    base = Renderer(tokenizer(TEMPLATES["opens"]), None)
    assert probe.closing(base, Ways().plan("none", 1)) is None
    made = template.wrap(TEMPLATES["opens"], Ways(), None, base.variables)
    renderer, talk = Renderer(tokenizer(made), None), [{"role": "user", "content": "A"}]
    assert told(renderer, talk, enable_thinking=False) == told(base, talk)
    from jinja2 import TemplateError

    with pytest.raises(TemplateError, match="does not think"):
        told(renderer, talk, enable_thinking=True)


def test_an_exported_model_can_be_trained_and_exported_again() -> None:
    first = exported("opens", Ways(efforts={"low": Asking(suffix="L")}))
    ways = Ways(budget=Asking(suffix="{budget}T"), efforts={"low": Asking(suffix="M"), "high":
                Asking(template={"reasoning_effort": "low"})})  # fmt: skip
    inner = first.tokenizer.chat_template
    closing = probe.closing(first, ways.plan("none", 1))
    second = template.wrap(inner, ways, closing, first.variables)
    made, talk = Renderer(tokenizer(second), ThinkingConfig()), [{"role": "user", "content": "A"}]
    assert template.unwrap(second) == inner
    for way, arguments in (("low", {"reasoning_effort": "low"}), ("high", {"reasoning_effort":
                           "high"}), ("default", {})):  # fmt: skip
        wanted = trained(first, talk, ways.plan(way, 1))
        assert told(made, talk, **arguments) == wanted
    assert told(made, talk, thinking_budget=9) == trained(first, talk, ways.plan("budget", 1, 9))
