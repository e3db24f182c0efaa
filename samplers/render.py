"""Prompts into token ids, and back: the only place that applies a chat template.

Rollouts, evaluation, supervised data and export all render here, so a prompt is the same ids
wherever it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samplers.seam import Component
from samplers.types import Ids, Plan, Prompt

_REMEMBERED = 4096
"""Texts of plans whose ids a renderer keeps."""
UNLIMITED = -1
"""A number of tokens in a template's argument that asks for no limit, as engines write it."""


class ThinkingConfig(Component):
    """The markers around a thought. Write `thinking: none` for a model that has none."""

    start: str = "<think>"
    """Text that opens a thought: one token of the vocabulary."""
    end: str = "</think>"
    """Text that closes it: one token of the vocabulary."""


@dataclass(frozen=True, slots=True)
class Markers:
    """The thinking markers as this tokenizer knows them."""

    start: str
    end: str
    start_id: int
    end_id: int
    opened: bool
    """The chat template ends its generation prompt with the start marker: shown to the user."""


class Renderer:
    """Renders prompts and reads responses for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        thinking: the markers; None or 'none' where the whole response is the answer.
        eos_ids: further ids that end a response (those of the model's generation config).

    Raises:
        ValueError: a marker is not one token, or no token ends a response.
    """

    def __init__(
        self,
        tokenizer: Any,
        thinking: ThinkingConfig | str | None = None,
        eos_ids: Iterable[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.eos_ids: tuple[int, ...] = tuple(sorted({*own, *eos_ids}))
        if not self.eos_ids:
            raise ValueError(
                "model.path: the tokenizer has no eos token, so no response could end; set "
                "eos_token in its tokenizer_config.json"
            )
        self.thinking: Markers | None = None
        self._heeded: set[tuple[str, str]] = set()
        self._encoded: dict[str, Ids] = {}
        if isinstance(thinking, ThinkingConfig):
            start_id, end_id = (_marker_id(tokenizer, thinking, f) for f in ("start", "end"))
            self.thinking = Markers(thinking.start, thinking.end, start_id, end_id, False)
            self.thinking = replace(self.thinking, opened=self._probe_opened())
        elif thinking not in (None, "none"):
            raise ValueError(f"thinking: {thinking!r}; give start and end markers, or none")

    @functools.cached_property
    def variables(self) -> frozenset[str]:
        """Names that the chat template reads and does not set: what it can be told."""
        template = self.tokenizer.chat_template
        if not isinstance(template, str):
            return frozenset()
        from jinja2 import TemplateError, meta

        try:
            return frozenset(meta.find_undeclared_variables(_jinja().parse(template)))
        except TemplateError:  # a tag that nobody here knows: ask for nothing
            return frozenset()

    def takes(self, **arguments: Any) -> bool:
        """Whether the chat template renders with these, where it does without: it may refuse."""
        talk = [{"role": "user", "content": ""}]
        for given, found in ((arguments, True), ({}, False)):
            try:
                self.tokenizer.apply_chat_template(talk, tokenize=False, **given)
                return found
            except Exception as error:
                if type(error).__name__ != "TemplateError":  # by raise_exception
                    break
        return True

    # Into ids

    def render(self, prompt: Prompt, plan: Plan) -> Ids:
        """Prompt ids [T], generation prompt included; `plan.prefill` is not among them.

        Raises:
            ValueError: no chat template for messages, or a setting of the plan that this template
                or prompt ignores (named).
        """
        if prompt.messages:
            return self._render_chat(prompt, plan)
        for field in ("template", "system"):
            if getattr(plan, field):
                raise ValueError(
                    f"budget: {field} {getattr(plan, field)!r} needs chat messages, and prompt "
                    f"'{prompt.id}' is plain text; set data.chat=true or leave {field} out"
                )
        text = prompt.text + plan.suffix
        return np.asarray(_written(text, lambda: self.tokenizer(text)["input_ids"]), np.int32)

    def _render_chat(self, prompt: Prompt, plan: Plan) -> Ids:
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"model.path: prompt '{prompt.id}' has chat messages and the tokenizer has no chat "
                "template; add chat_template.jinja to the model folder, or set data.chat=false"
            )
        messages = [dict(m) for m in prompt.messages]
        if plan.suffix:
            users = [m for m in messages if m["role"] == "user"]
            if not users:
                raise ValueError(
                    f"budget: suffix {plan.suffix!r} goes to the last user message, and prompt "
                    f"'{prompt.id}' has none; leave suffix out or add a user message"
                )
            users[-1]["content"] += plan.suffix
        plain = messages
        if plan.system is not None:
            messages = _with_system(messages, plan.system)
        ids = self._apply(messages, plan.template)
        if plan.system and ("system", plan.system) not in self._heeded:
            if ids == self._apply(plain, plan.template):
                raise ValueError(
                    f"budget: the chat template ignores the system message {plan.system!r}; use "
                    "suffix, or a template that renders it"
                )
            self._heeded.add(("system", plan.system))
        for name, value in plan.template.items():
            if (name, repr(value)) not in self._heeded:
                self._check_heeded(messages, plan.template, name, ids)
                self._heeded.add((name, repr(value)))
        return np.asarray(ids, np.int32)

    def _apply(
        self, messages: Sequence[Mapping[str, str]], template: Mapping[str, Any]
    ) -> list[int]:
        text = " ".join(message["content"] for message in messages)
        out = _written(
            text,
            lambda: self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False, **template
            ),
        )
        return list(out)

    def _check_heeded(
        self,
        messages: Sequence[Mapping[str, str]],
        template: Mapping[str, Any],
        name: str,
        ids: list[int],
    ) -> None:
        """Refuse an argument that changes nothing: left out, and with another value.

        The second look is for a value that equals the template's default (enable_thinking: true).
        A number has to be read as one: it renders unlike being left out and unlike some other
        number, or, where it is the default, unlike the next one.
        """
        others = {k: v for k, v in template.items() if k != name}
        value = template[name]
        number = type(value) is int
        if number and value == UNLIMITED and name in self.variables:
            return

        def same(*instead: Any) -> bool:
            """Whether the prompt is the same with each of these in its place."""
            try:
                return all(ids == self._apply(messages, {**others, name: v}) for v in instead)
            except Exception:  # the template reads it: it refused the value we made up
                return False

        if ids != self._without(messages, others):
            if not number or not same(2 * value + 1, value // 2):
                return
            raise ValueError(
                f"budget: the chat template does not read the number in '{name}' (={value}): the "
                f"prompt is the same for {2 * value + 1} and {value // 2}; say it in suffix or "
                "system, or use a template that reads it"
            )
        nearby = value + 1 if number else not value if isinstance(value, bool) else f"{value}1"
        if not same(nearby):
            return
        raise ValueError(
            f"budget: the chat template ignores the argument '{name}' (={value!r}): the prompt is "
            "the same without it; leave it out, or use a template that reads it"
        )

    def _without(
        self, messages: Sequence[Mapping[str, str]], others: Mapping[str, Any]
    ) -> list[int] | None:
        try:
            return self._apply(messages, others)
        except Exception:  # the template insists on it
            return None

    def encode(self, text: str) -> Ids:
        """Ids of a piece of a response: nothing is put before or after it. Read-only.

        Plans repeat their few texts in every rollout: they are remembered.
        """
        ids = self._encoded.get(text)
        if ids is None:
            made = _written(text, lambda: self.tokenizer(text, add_special_tokens=False))
            ids = np.asarray(made["input_ids"], np.int32)
            ids.flags.writeable = False
            if len(self._encoded) >= _REMEMBERED:
                self._encoded.clear()
            self._encoded[text] = ids
        return ids

    def close_ids(self, plan: Plan) -> Ids:
        """What closes a thought that is cut: `plan.close`, or the end marker alone.

        Raises:
            ValueError: the text does not contain the end marker.
        """
        markers = self._markers()
        if not plan.close:
            return np.array([markers.end_id], np.int32)
        ids = self.encode(plan.close)
        if markers.end_id not in ids:
            raise ValueError(
                f"budget: close {plan.close!r} does not contain the end marker '{markers.end}', so "
                "the thought would stay open; add it, or leave close empty"
            )
        return ids

    def after_close_ids(self, plan: Plan) -> Ids:
        """Forced text between any end marker and the answer; empty for none."""
        return self.encode(plan.after_close) if plan.after_close else np.zeros(0, np.int32)

    # Back

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text as it is, markers and special tokens included."""
        return self.tokenizer.decode(
            np.asarray(ids, np.int64).tolist(), clean_up_tokenization_spaces=False
        )

    def answer_text(self, ids: Ids) -> str | None:
        """The text of an answer part, as the grader sees it: no special tokens.

        None, no answer: a marker stands in it, as one token or spelled out, so that the model went
        on thinking where it had to answer. (To close once more what was closed by force is no
        thought.)
        """
        markers = self.thinking
        if markers is not None:
            ids = ids[int(np.argmax(np.append(ids, -1) != markers.end_id)) :]
            if np.isin(ids, (markers.start_id, markers.end_id)).any():
                return None
        text = self.tokenizer.decode(
            [i for i in ids.tolist() if i not in self.eos_ids],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        if markers is not None and (markers.start in text or markers.end in text):
            return None
        return text

    def opened(self, ids: Sequence[int] | Ids) -> bool:
        """The rendered prompt leaves a thought open: it ends with the start marker."""
        return self.thinking is not None and self._ends_with(ids, self.thinking.start_id)

    def closed(self, ids: Sequence[int] | Ids) -> bool:
        """The rendered prompt has closed its thought (no-think modes): the response is answer."""
        return self.thinking is not None and self._ends_with(ids, self.thinking.end_id)

    def _ends_with(self, ids: Sequence[int] | Ids, marker: int) -> bool:
        """Whether nothing but whitespace follows the last `marker`."""
        found = np.flatnonzero(np.asarray(ids) == marker)
        return bool(len(found)) and not self.decode(ids[found[-1] + 1 :]).strip()

    def _markers(self) -> Markers:
        assert self.thinking is not None
        return self.thinking

    def _probe_opened(self) -> bool:
        if not self.tokenizer.chat_template:
            return False
        return self.opened(self._apply([{"role": "user", "content": "1"}], {}))


def _jinja() -> Any:
    """Jinja as chat templates are written for it, with transformers' own tag."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  # as Jinja's own extensions have it

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.globals |= dict.fromkeys(("raise_exception", "strftime_now"))
    return made


def answer_part(response: str, thinking: ThinkingConfig) -> str | None:
    """What follows the last end marker of a written response; None if its thought was left open.

    For responses whose phases nobody knows; of a rollout the engine knows them.
    """
    answer = response.rpartition(thinking.end)[2]
    return None if thinking.start in answer else answer


def _written(text: str, tokenize: Callable[[], Any]) -> Any:
    """What `tokenize` gives; a text that the vocabulary or the template cannot hold is told."""
    try:
        return tokenize()
    except ValueError:
        raise
    except Exception as error:  # tokenizers raises nothing more special
        if type(error).__name__ == "TemplateError":  # by raise_exception
            raise ValueError(f"the model's chat template refuses the prompt: {error}") from None
        shown = text if len(text) <= 60 else f"...{text[-57:]}"
        why = " ".join(str(error).split())
        raise ValueError(
            f"the model's tokenizer or chat template cannot write {shown!r} ({why}); use a model "
            "that can, or its words in prompts, in all texts of the budget and in stopping rules"
        ) from None


def load(path: str, thinking: ThinkingConfig | None, trust_remote_code: bool = False) -> Renderer:
    """The renderer of a model folder or hub name: its tokenizer and every eos id it declares."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    try:
        eos = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # not every model folder has one
        eos = None
    return Renderer(tokenizer, thinking, [eos] if isinstance(eos, int) else eos or ())


def add_markers(tokenizer: Any, thinking: ThinkingConfig) -> int:
    """Add markers that are missing as single tokens; how many. Resize the embeddings after it."""
    from tokenizers import AddedToken

    missing = [m for m in (thinking.start, thinking.end) if _ids_of(tokenizer, m) is None]
    return tokenizer.add_tokens([AddedToken(m, normalized=False, special=False) for m in missing])


def _ids_of(tokenizer: Any, marker: str) -> int | None:
    """The single id of `marker`, or None."""
    ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def _marker_id(tokenizer: Any, thinking: ThinkingConfig, field: str) -> int:
    marker = getattr(thinking, field)
    found = _ids_of(tokenizer, marker)
    if found is None:
        pieces = tokenizer.tokenize(marker)
        raise ValueError(
            f"thinking.{field}: '{marker}' is not one token of this vocabulary (it becomes "
            f"{pieces}); name the model's own markers, set model.add_markers: true (adds them and "
            "resizes the embeddings), or set thinking: none"
        )
    return found


def _with_system(messages: list[dict[str, str]], system: str) -> list[dict[str, str]]:
    """`system` first; before the text of a system message that is there already."""
    if messages and messages[0]["role"] == "system":
        joined = f"{system}\n\n{messages[0]['content']}"
        return [{**messages[0], "content": joined}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]
