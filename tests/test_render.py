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


def test_a_number_has_to_be_read_as_one():
    """With it, without it and with another, the prompts have to differ."""

    def number(template: str, value: int) -> str:
        tail = "{% if add_generation_prompt %}<think>{% endif %}"
        return text(CHAT, Plan(9, template={"b": value}), template=template + tail)

    read = "{{ messages[-1].content }}{% if b is defined %};{{ b }}{% endif %}"
    assert number(read, 12) == "A1;12<think>"
    assert number(read, 0) == "A1;0<think>"
    default = "{% set c = b|default(12) %}{{ c }}"
    assert number(default, 12) == "12<think>"
    three = (
        "{% if b is defined %}{% if b < 9 %}2{% elif b < 30 %}4{% else %}6{% endif %}{% endif %}"
    )
    assert number(three, 12) == "4<think>"
    picky = "{% if b is defined %}{% if b != 12 %}{{ raise_exception('no') }}{% endif %}{% endif %}"
    assert number(picky, 12) == "<think>"
    assert number("{% if b is defined and b > -1 %}{{ b }}{% endif %}", -1) == "<think>"  # no limit
    told = "does not read the number in 'b' \\(=12\\)"
    with pytest.raises(ValueError, match=told):  # says something, and nothing of how much
        number("{% if b is defined %}!{% endif %}", 12)
    dead = "{% if b is defined and b < 9 %}{{ b }}{% endif %}"
    assert number(dead, 8) == "8<think>"
    for template, value in ((dead, 12), (dead, 5000), ("{% set c = b %}", 12), ("", -1)):
        with pytest.raises(ValueError, match="ignores the argument 'b'"):
            number(template, value)
    with pytest.raises(ValueError, match="chat template refuses the prompt: not 7"):
        number("{% if b == 7 %}{{ raise_exception('not 7') }}{% endif %}", 7)


def test_what_a_template_can_be_told():
    known = {"messages", "add_generation_prompt"}
    assert renderer().variables == known | {"effort", "enable_thinking"}
    marked = (
        "{% for m in messages %}{% generation %}{{ m.content }}{{ inside }}{% endgeneration %}"
        "{% if m.bad %}{{ raise_exception(strftime_now('%Y')) }}{% break %}{% endif %}{% endfor %}"
        "{% set own = 1 %}{{ own }}{% if read %}{% set read = 2 %}{% endif %}"
    )
    assert renderer(marked).variables == {"messages", "inside", "read"}
    assert renderer(None).variables == frozenset()


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
