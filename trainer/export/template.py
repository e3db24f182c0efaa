"""A chat template that knows budgets: Jinja around the model's own, which stays as it is.

What stands before it picks the way of asking from `enable_thinking`, `thinking_budget` and
`reasoning_effort`, and changes `messages` (and arguments of the model's own template) as
`samplers/render.py` does for the plans of training. What stands behind it begins the response.
Values that the model was not trained for raise, which vLLM answers with HTTP 400: a budget without
effect is an error.

Only tags that strip what is around them come before; the last is a comment and a newline, which
trim_blocks (transformers and vLLM set it) eats, so the model's own text begins at a line's start as
it did before. Nothing but `{{ }}` comes after, which neither strips nor is stripped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from samplers.budgets.base import BUDGET, Asking
from trainer.export.ways import NONE, Ways

VARIABLES = ("enable_thinking", "thinking_budget", "reasoning_effort")
"""What an exported template declares, strongest first."""
_BEGIN = "{#- Budgets: written by `laconic export`. "
_OWN = "{#- The model's own chat template follows. #}\n"
_RULES = (
    "enable_thinking=false, else thinking_budget (-1: no limit, 0: no\n"
    "thought), else reasoning_effort, else as by default. None is like not given. -#}\n"
)


def wrap(own: str, ways: Ways, closing: str | None, declared: Iterable[str]) -> str:
    """The template `own` with `ways` of asking around it.

    Args:
        closing: what begins a response without a thought (`trainer.export.probe.closing`); None
            for a model that has no thinking markers.
        declared: variables that `own` reads.
    """
    name = "laconic"
    while name in own:  # an exported model that was trained on: each layer has its own variable
        name += "_"
    consumed = [one for one in VARIABLES if one in set(declared)]
    efforts = list(dict.fromkeys([NONE, *ways.efforts]))
    parts = [
        f"{_BEGIN}{_RULES}",
        f"{{%- set {name} = namespace(way='', system=none, suffix='', after='', last=-1, out=[])",
        " -%}\n",
        _checked(efforts, ways.budget is not None, closing is not None),
        _picked(name),
        _asked(name, ways, closing, consumed),
        _told(name),
        _OWN,
    ]
    return "".join(parts) + _body(own) + _ending(name)


def unwrap(template: str) -> str | None:
    """The model's own template in one that `wrap` made; None in any other."""
    if not template.startswith(_BEGIN):
        return None
    head, _, rest = template.partition(_OWN)
    name = head.partition("{%- set ")[2].partition(" ")[0]
    return rest.removesuffix(_ending(name))


def _body(own: str) -> str:
    """Jinja drops one newline at the end of a template, which now is in its middle."""
    for end in ("\r\n", "\n", "\r"):
        if own.endswith(end):
            return own.removesuffix(end)
    return own


def _ending(name: str) -> str:
    return f"{{{{ {name}.after if add_generation_prompt else '' }}}}"


def _checked(efforts: list[str], numbers: bool, thinks: bool) -> str:
    """Values that no model takes, or this one does not, raise."""
    known = "[" + ", ".join(map(quoted, efforts)) + "]"
    no_number = (
        "{%- if thinking_budget is defined and thinking_budget is integer and thinking_budget > 0"
        " and not (enable_thinking is defined and enable_thinking is false) -%}\n"
        "  {{- raise_exception('thinking_budget=' ~ thinking_budget ~ ': this model was not trained"
        " to read a number, so it would have no effect; allowed here: -1 (no limit), 0 (no"
        " thinking). A hard limit goes to the engine, as thinking_token_budget') -}}\n"
        "{%- endif -%}\n"
    )
    no_thought = (
        "{%- if enable_thinking is defined and enable_thinking is true -%}\n"
        "  {{- raise_exception('enable_thinking=true: this model does not think') -}}\n"
        "{%- endif -%}\n"
    )
    return (
        "{%- if enable_thinking is defined and enable_thinking is not none"
        " and enable_thinking is not boolean -%}\n"
        "  {{- raise_exception('enable_thinking=' ~ enable_thinking ~ ': give true or false') -}}\n"
        "{%- endif -%}\n"
        "{%- if thinking_budget is defined and thinking_budget is not none"
        " and (thinking_budget is not integer or thinking_budget < -1) -%}\n"
        "  {{- raise_exception('thinking_budget=' ~ thinking_budget ~ ': give a whole number of"
        " tokens, -1 for no limit or 0 for no thinking') -}}\n"
        "{%- endif -%}\n"
        "{%- if reasoning_effort is defined and reasoning_effort is not none"
        f" and reasoning_effort not in {known} -%}}\n"
        "  {{- raise_exception('reasoning_effort=' ~ reasoning_effort ~ ': this model knows"
        f" {', '.join(efforts).translate(_ESCAPES)}') -}}}}\n"
        "{%- endif -%}\n" + ("" if numbers else no_number) + ("" if thinks else no_thought)
    )


def _picked(name: str) -> str:
    """The precedence. Ways: '' default, none, budget, or an effort's name behind an 'effort '."""
    return (
        "{%- if enable_thinking is defined and enable_thinking is false -%}\n"
        f"  {{%- set {name}.way = 'none' -%}}\n"
        "{%- elif thinking_budget is defined and thinking_budget is not none"
        " and thinking_budget > -1 -%}\n"
        f"  {{%- set {name}.way = 'budget' if thinking_budget else 'none' -%}}\n"
        "{%- elif reasoning_effort is defined and reasoning_effort is not none -%}\n"
        f"  {{%- set {name}.way = 'none' if reasoning_effort == 'none' else"
        " 'effort ' ~ reasoning_effort -%}\n"
        "{%- endif -%}\n"
    )


def _asked(name: str, ways: Ways, closing: str | None, consumed: list[str]) -> str:
    """One branch for each way: its texts, and arguments of the model's own template."""
    branches = {NONE: ways.none}
    if ways.budget is not None:
        branches["budget"] = ways.budget
    branches |= {f"effort {effort}": a for effort, a in ways.efforts.items() if effort != NONE}
    out, word = [], "if"
    for way, asking in branches.items():
        out.append(f"{{%- {word} {name}.way == {quoted(way)} -%}}\n")
        after = closing if way == NONE else None
        out.append(_texts(name, asking, consumed, after, way))
        word = "elif"
    out.append("{%- else -%}\n" + _texts(name, ways.default, consumed, None, ""))
    return "".join([*out, "{%- endif -%}\n"])


def _texts(name: str, asking: Asking, consumed: list[str], after: str | None, way: str) -> str:
    prefill = asking.prefill if after is None else after
    said = {"system": asking.system, "suffix": asking.suffix, "after": prefill}
    lines = [
        f"  {{%- set {name}.{field} = {_expression(text)} -%}}\n"
        for field, text in said.items()
        if text is not None and (text or field == "system")
    ]
    template = dict(asking.template)
    for variable in consumed:  # the model's own template sees what it saw in training
        passed = variable == "enable_thinking" and not way  # vLLM gives it with every effort
        if variable not in template and not passed:
            lines.append(f"  {{%- set {variable} = {name}.unset -%}}\n")
    for variable, value in template.items():  # after the texts, which may say the number
        lines.append(f"  {{%- set {variable} = {_expression(value)} -%}}\n")
    # thinking_budget is read by the others, so it changes last
    lines.sort(key=lambda line: line.startswith("  {%- set thinking_budget ="))
    return "".join(lines)


def _told(name: str) -> str:
    """`messages` as `Renderer.render` makes them: the system text first, the suffix last."""
    of = f"{name}.out = {name}.out + "
    parts = "[{'type': 'text', 'text': %s}]"
    head, tail = parts % f"{name}.system ~ '\\n\\n'", parts % f"{name}.suffix"
    return (
        f"{{%- if {name}.suffix or {name}.system is not none -%}}\n"
        "  {%- for message in messages -%}\n"
        f"    {{%- if message.role == 'user' -%}}{{%- set {name}.last = loop.index0 -%}}"
        "{%- endif -%}\n"
        "  {%- endfor -%}\n"
        f"  {{%- if {name}.suffix and {name}.last < 0 -%}}\n"
        "    {{- raise_exception('this model is told of its budget at the end of the last user"
        " message, and there is none') -}}\n"
        "  {%- endif -%}\n"
        f"  {{%- if {name}.system is not none and (not messages or messages[0].role != 'system')"
        " -%}\n"
        f"    {{%- set {of}[{{'role': 'system', 'content': {name}.system}}] -%}}\n"
        "  {%- endif -%}\n"
        "  {%- for message in messages -%}\n"
        f"    {{%- if {name}.system is not none and loop.first and message.role == 'system' -%}}\n"
        f"      {{%- set {of}[dict(message, content={name}.system ~ '\\n\\n' ~ message.content"
        f" if message.content is string else {head} + message.content)] -%}}\n"
        f"    {{%- elif {name}.suffix and loop.index0 == {name}.last -%}}\n"
        f"      {{%- set {of}[dict(message, content=message.content ~ {name}.suffix"
        f" if message.content is string else message.content + {tail})] -%}}\n"
        "    {%- else -%}\n"
        f"      {{%- set {of}[message] -%}}\n"
        "    {%- endif -%}\n"
        "  {%- endfor -%}\n"
        f"  {{%- set messages = {name}.out -%}}\n"
        "{%- endif -%}\n"
    )


# Literals


_ESCAPES = str.maketrans({"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def quoted(text: str) -> str:
    """A Jinja string literal of any text."""
    plain = text.translate(_ESCAPES)
    shown = (c if c.isprintable() else _escape(ord(c)) for c in plain)
    return "'" + "".join(shown) + "'"


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _expression(value: Any) -> str:
    """A Jinja expression; '{budget}' in a text is the number that was asked for."""
    if isinstance(value, str):
        if value == BUDGET:
            return "thinking_budget"
        if BUDGET in value:
            return " ~ thinking_budget ~ ".join(map(quoted, value.split(BUDGET)))
        return quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        inside = (f"{quoted(str(k))}: {_expression(v)}" for k, v in value.items())
        return "{" + ", ".join(inside) + "}"
    return "[" + ", ".join(map(_expression, value)) + "]"
