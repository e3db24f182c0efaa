"""Prompts become the ids the template says, and a setting that would change nothing is refused."""

from __future__ import annotations

import numpy as np
import pytest

from samplers import render
from samplers.render import Renderer, ThinkingConfig
from samplers.types import Plan, Prompt
from tests.tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

CHAT = Prompt(0, "c", ({"role": "user", "content": "A1"},), "", "", "exact")
TALK = Prompt(
    1,
    "t",
    (
        {"role": "system", "content": "B"},
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3"},
    ),
    "", "", "exact",
)  # fmt: skip
TEXT = Prompt(2, "x", (), "A1=", "", "exact")
PLAN = Plan(9)
SILENT = CHAT_TEMPLATE.replace("<think>", "").replace("</think>", "")


def renderer(template: str | None = CHAT_TEMPLATE, **kwargs) -> Renderer:
    return Renderer(tiny_tokenizer(template=template), kwargs.pop("thinking", ThinkingConfig()))


def text(prompt: Prompt, plan: Plan = PLAN, **kwargs) -> str:
    made = renderer(**kwargs)
    ids = made.render(prompt, plan)
    assert ids.dtype == np.int32
    return made.decode(ids)


def test_the_plan_shapes_the_prompt():
    assert text(CHAT) == "<user>A1<assistant><think>"
    assert text(CHAT, Plan(9, suffix="!")) == "<user>A1!<assistant><think>"
    assert text(CHAT, Plan(9, system="C")) == "<system>C<user>A1<assistant><think>"
    off = Plan(9, template={"enable_thinking": False})
    assert text(CHAT, off) == "<user>A1<assistant><think></think>"
    assert text(CHAT, Plan(9, template={"effort": "B"})) == "<user>A1B~<assistant><think>"
    assert text(CHAT, Plan(9, prefill="T", close="w</think>")) == text(CHAT)
    assert text(TALK, Plan(9, suffix="!", system="C")) == (
        "<system>C\n\nB<user>1<assistant>2<eos><user>3!<assistant><think>"
    )
    assert text(TEXT) == "A1="
    assert text(TEXT, Plan(9, suffix="?")) == "A1=?"
    assert text(TEXT, template=None) == "A1="
    assert TALK.messages[-1]["content"] == "3"  # the prompt itself is left alone


def test_an_argument_the_template_ignores_is_refused():
    for template in ({"reasoning": "high"}, {"effort": "B", "budget": 8}, {"thinking": True}):
        name = list(template)[-1]
        with pytest.raises(
            ValueError, match=rf"ignores the argument '{name}' \(={template[name]!r}"
        ):
            text(CHAT, Plan(9, template=template))
    with pytest.raises(ValueError, match="ignores the argument 'enable_thinking'"):
        text(CHAT, Plan(9, template={"enable_thinking": False}), template=SILENT)
    # Its default value changes nothing either, but the template does read it.
    assert text(CHAT, Plan(9, template={"enable_thinking": True})) == text(CHAT)
    picky = "{% if e is defined and e != 'B' %}{{ raise_exception('no') }}{% endif %}A"
    assert text(CHAT, Plan(9, template={"e": "B"}), template=picky) == "A"
    made = renderer()
    made.render(CHAT, Plan(9, template={"effort": "B"}))
    with pytest.raises(ValueError, match="ignores the argument 'budget'"):
        made.render(CHAT, Plan(9, template={"effort": "B", "budget": 8}))  # later, too


def test_settings_without_a_place_are_refused():
    with pytest.raises(ValueError, match="no chat template; add"):
        text(CHAT, template=None)
    for plan in (Plan(9, system="C"), Plan(9, template={"effort": "B"})):
        with pytest.raises(ValueError, match="needs chat messages, and prompt 'x' is plain text"):
            text(TEXT, plan)
    lone = Prompt(0, "s", ({"role": "system", "content": "B"},), "", "", "exact")
    with pytest.raises(ValueError, match="last user message, and prompt 's' has none"):
        text(lone, Plan(9, suffix="!"))
    with pytest.raises(ValueError, match="ignores the system message 'C'"):
        text(CHAT, Plan(9, system="C"), template="{{ messages[-1].content }}")


def test_markers_are_single_tokens_or_refused_with_the_fix():
    made = renderer().thinking
    assert made is not None
    assert (made.start_id, made.end_id) == (5, 6)
    for tokenizer in (tiny_tokenizer(markers=False, template=None), tiny_tokenizer()):
        thinking = ThinkingConfig(start="<think>", end="</reason>")
        with pytest.raises(ValueError, match=r"thinking\.(start|end).*model.add_markers: true"):
            Renderer(tokenizer, thinking)
    with pytest.raises(ValueError, match=r"thinking.end: 'AB' is not one token .*\['A', 'B'\]"):
        renderer(thinking=ThinkingConfig(end="AB"))
    assert renderer(thinking="none").thinking is None
    assert renderer(thinking=None).thinking is None
    with pytest.raises(ValueError, match="thinking: 'maybe'"):
        renderer(thinking="maybe")


def test_markers_can_be_added():
    tokenizer = tiny_tokenizer(markers=False, template=None)
    assert render.add_markers(tokenizer, ThinkingConfig()) == 2
    assert render.add_markers(tokenizer, ThinkingConfig()) == 0
    made = Renderer(tokenizer, ThinkingConfig())
    ids = made.encode("A<think>B</think>C<eos>")
    assert made.decode(ids) == "A<think>B</think>C<eos>"
    assert len(ids) == 6


def test_whether_the_template_opens_or_closes_the_thought():
    def opened(template: str | None) -> bool:
        found = renderer(template).thinking
        assert found is not None
        return found.opened

    assert opened(CHAT_TEMPLATE)
    assert opened(CHAT_TEMPLATE.replace("<think>{% else", "<think>\n{% else"))
    assert not opened(SILENT)
    assert not opened(CHAT_TEMPLATE.replace("<think>{% else", "<think>A{% else"))
    assert not opened(None)
    made = renderer()
    off = made.render(CHAT, Plan(9, template={"enable_thinking": False}))
    assert made.closed(off)
    assert not made.opened(off)
    assert made.closed(np.append(off, made.encode("\n\n")))
    assert not made.closed(made.render(CHAT, PLAN))
    assert not renderer(thinking="none").closed(off)


def test_forced_texts():
    made = renderer()
    assert made.close_ids(PLAN).tolist() == [6]
    assert made.decode(made.close_ids(Plan(9, close="w</think>\n"))) == "w</think>\n"
    assert made.after_close_ids(PLAN).tolist() == []
    assert made.decode(made.after_close_ids(Plan(9, after_close="A="))) == "A="
    with pytest.raises(ValueError, match="close 'w' does not contain the end marker '</think>'"):
        made.close_ids(Plan(9, close="w"))


def test_the_grader_sees_plain_text():
    made = renderer()
    assert made.answer_text(made.encode("</think></think>AB<eos><pad>")) == "AB"
    assert made.answer_text(made.encode("AB<eos>")) == "AB"
    for thinks in ("A</think>B<eos>", "A<think>B</think>C", "A<think>B", "<think>", "A</think>"):
        assert made.answer_text(made.encode(thinks)) is None, thinks
    assert made.answer_text(made.encode("<eos>")) == ""
    bare = renderer(thinking="none")
    assert bare.answer_text(made.encode("A</think>B<eos>")) == "A</think>B"


def test_every_eos_of_a_model_folder_ends_a_response(tmp_path):
    tokenizer, model = tiny_tokenizer(), tiny_model()
    tokenizer.save_pretrained(tmp_path)
    assert render.load(str(tmp_path), None).eos_ids == (1,)
    model.generation_config.eos_token_id = [1, 4]
    model.save_pretrained(tmp_path)
    made = render.load(str(tmp_path), ThinkingConfig())
    assert made.eos_ids == (1, 4)
    np.testing.assert_array_equal(made.render(CHAT, PLAN), renderer().render(CHAT, PLAN))
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos token"):
        Renderer(tokenizer)
