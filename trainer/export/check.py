"""Whether an exported folder does what it says: templates, parsing, transformers, vLLM."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samplers.budgets import base
from samplers.budgets.base import Asking
from samplers.render import Renderer, ThinkingConfig
from samplers.types import Plan, Prompt
from trainer.export import FILE, probe, read
from trainer.export.template import VARIABLES, unwrap

NUMBERS = (1, 37, 512, 100_000)
ENGINE_SECONDS = 400
"""What vLLM may take to start, generate and stop."""
Message = Mapping[str, str]
TALKS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "1"},),
    ({"role": "system", "content": "2"}, {"role": "user", "content": "1"}),
    (
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "<think>2</think>3"},
        {"role": "user", "content": "4"},
    ),
    (
        {"role": "system", "content": "Say \"a\" and 'b' \\ {{ c }} {% d %} {# e #}\n\u00e9\u65e5"},
        {"role": "user", "content": "What is 'x' in {x: \"1\"}?\n\n"},
        {"role": "assistant", "content": "<think>\nIt is\n</think>\n\n1 </think> \U0001f600"},
        {"role": "user", "content": " And {budget}? "},
    ),
)
"""Messages that every way of asking is rendered for; texts that a vocabulary lacks are left out."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `ok` is None where it could not be made here."""

    name: str
    ok: bool | None
    text: str

    def __str__(self) -> str:
        word = {True: "ok", False: "FAILED", None: "skipped"}[self.ok]
        return f"{word:8}{self.name}: {self.text}"


def check(out: Path, *, source: Path | None = None, engines: bool = True) -> list[Finding]:
    """All findings, in the order of `checks`."""
    return list(checks(out, source=source, engines=engines))


def checks(out: Path, *, source: Path | None = None, engines: bool = True) -> Iterator[Finding]:
    """Check an exported folder, one thing after the other.

    Args:
        source: the model folder that it came from, to compare with its own tokenizer and template;
            None: with the template inside the exported one.
        engines: also start vLLM, where it is installed.

    Raises:
        ValueError: `out` is no exported folder.
    """
    said = read(out)
    if said is None:
        raise ValueError(f"'{out}' has no {FILE}: it is no exported model; export one first")
    markers = said["thinking"]
    thinking = (
        None if markers is None else ThinkingConfig(start=markers["start"], end=markers["end"])
    )
    yield _try("files", lambda: _files(out, said))
    try:
        renderer = probe.load(str(out), thinking)
        training = _training(out, source, thinking)
    except ValueError as error:
        yield Finding("tokenizer", False, str(error))
        return
    yield _try("markers", lambda: _markers(renderer, said))
    yield _try("template variables", lambda: _variables(renderer))
    yield _try("ids of every mode", lambda: same_ids(renderer, training, said))
    yield _try("bad values", lambda: _refusals(renderer, said))
    yield _try("response parsing", lambda: _parsing(renderer, said))
    yield _try("sampling", lambda: _sampling(out, renderer))
    yield _try("transformers", lambda: _transformers(out, renderer, said))
    if engines:
        yield _vllm(out)


def _try(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except Exception as error:  # whatever a library makes of a broken folder is a finding
        return Finding(name, False, " ".join(f"{error}".split()) or type(error).__name__)


def _need(true: bool, otherwise: str) -> None:
    if not true:
        raise ValueError(otherwise)


def _training(out: Path, source: Path | None, thinking: ThinkingConfig | None) -> Renderer:
    """The renderer that trained: the source's, or the export's with its inner template."""
    made = probe.load(str(out if source is None else source), thinking)
    if source is None:
        own = unwrap(made.tokenizer.chat_template)
        _need(own is not None, "chat_template.jinja was not written by `laconic export`")
        made.tokenizer.chat_template = own
    return made


# Files and tokens


def _files(out: Path, said: Mapping[str, Any]) -> str:
    wanted = ("config.json", "generation_config.json", "tokenizer_config.json", "README.md")
    missing = [name for name in (*wanted, "chat_template.jinja") if not (out / name).is_file()]
    if not any(out.glob("*.safetensors")):
        missing.append("*.safetensors")
    _need(not missing, f"missing: {', '.join(missing)}")
    for name, file in (("tokenizer", "tokenizer.json"), ("chat_template", "chat_template.jinja")):
        hashed = said["sha256"][name]
        if hashed is not None:
            now = hashlib.sha256((out / file).read_bytes()).hexdigest()
            _need(now == hashed, f"{file} is not the one that was exported (its hash differs)")
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return f"complete, weights {size / 1e6:.1f} MB; hashes as exported"


def _markers(renderer: Renderer, said: Mapping[str, Any]) -> str:
    markers = renderer.thinking
    if markers is None:
        return "none: all of a response is answer"
    ids = (markers.start_id, markers.end_id)  # a Renderer refuses any that are not one token
    known = (said["thinking"]["start_id"], said["thinking"]["end_id"])
    _need(ids == known, f"ids are {ids}, and {FILE} says {known}")
    forced = renderer.close_ids(Plan(1, close=said["forced_end"])).tolist()
    _need(markers.end_id in forced, f"forced end {said['forced_end']!r} lacks the end marker")
    return (
        f"{markers.start} = {ids[0]}, {markers.end} = {ids[1]}, one token each; "
        f"a hard budget forces {forced}"
    )


# The template


def _variables(renderer: Renderer) -> str:
    """As vLLM and SGLang find what a template can be told: undeclared variables of the Jinja."""
    missing = [name for name in VARIABLES if name not in renderer.variables]
    _need(not missing, f"the template does not declare {', '.join(missing)}")
    return f"{', '.join(VARIABLES)} are declared, so that servers pass them on"


def ways(said: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], Plan]]:
    """Name, template arguments and training plan of everything that can be asked."""
    texts, off = said["texts"], said["thinking"] is not None

    def plan(text: Mapping[str, Any], number: int | None = None) -> Plan:
        return base.announce(Asking(**text, max_tokens=1), number)

    default: list[dict[str, Any]] = [{}, {"reasoning_effort": None}, {"thinking_budget": -1}]
    none: list[dict[str, Any]] = [{"enable_thinking": False}, {"thinking_budget": 0}]
    none += [{"reasoning_effort": "none", "enable_thinking": False}, {"reasoning_effort": "none"}]
    none.append({"enable_thinking": False, "thinking_budget": 7, "reasoning_effort": "none"})
    for arguments in default:
        yield "default", arguments, plan(texts["default"])
    for arguments in none if off else none[:1]:
        yield "no thinking", arguments, plan(texts["none"])
    for name, text in texts["efforts"].items():
        for more in ({}, {"enable_thinking": True}, {"thinking_budget": -1}) if off else ({},):
            yield name, {"reasoning_effort": name, **more}, plan(text)
    for number in NUMBERS if texts["budget"] is not None else ():
        others = [None, *texts["efforts"]]  # a number is the stronger one
        for effort in others[:2]:
            given = {"thinking_budget": number, "reasoning_effort": effort}
            yield f"{number} tokens", given, plan(texts["budget"], number)


def same_ids(
    renderer: Renderer,
    training: Renderer,
    said: Mapping[str, Any],
    talks: Sequence[tuple[Message, ...]] = TALKS,
) -> str:
    """Every way of asking gives the ids that training rendered; prefills included.

    Raises:
        ValueError: the first that differs.
    """
    compared, names = 0, set()
    for name, arguments, plan in ways(said):
        for talk in talks:
            wanted, told = _trained_ids(training, plan, talk), _told_ids(renderer, arguments, talk)
            lacking = told is None or renderer.tokenizer.pad_token_id in told  # an export pads it
            if lacking and wanted is None:
                continue  # the vocabulary or the model's own template cannot hold the talk
            what = f"{name} ({arguments}) of {len(talk)} messages"
            _need(told is not None, f"{what}: refused, and training rendered it")
            _need(wanted is not None, f"{what}: rendered, and training's renderer refuses it")
            assert told is not None
            assert wanted is not None
            same = np.array_equal(told, wanted)
            _need(same, f"{what}: {renderer.decode(told)!r} is not {renderer.decode(wanted)!r}")
            compared += 1
            names.add(name)
    _need(compared > 0, "nothing could be rendered")
    return f"{len(names)} ways, {compared} prompts, equal to training's"


def _trained_ids(training: Renderer, plan: Plan, talk: Sequence[Message]) -> Any:
    try:
        return probe.rendered(training, plan, Prompt(0, "check", tuple(talk), "", "", ""))
    except ValueError:
        return None


def _told_ids(renderer: Renderer, arguments: Mapping[str, Any], talk: Sequence[Message]) -> Any:
    try:
        ids = renderer.tokenizer.apply_chat_template(
            [dict(one) for one in talk], add_generation_prompt=True, return_dict=False, **arguments
        )
    except Exception:  # tokenizers and templates raise what they like
        return None
    return np.asarray(ids, np.int32)


def bad_values(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Template arguments that must raise."""
    out: list[dict[str, Any]] = [{"thinking_budget": bad} for bad in (-2, 1.5, "7", True)]
    out += [{"reasoning_effort": "unheard-of"}, {"enable_thinking": "false"}]
    if said["texts"]["budget"] is None:
        out.append({"thinking_budget": 64})
    return out


def _refusals(renderer: Renderer, said: Mapping[str, Any]) -> str:
    for arguments in bad_values(said):
        told = _told_ids(renderer, arguments, TALKS[0])
        _need(told is None, f"{arguments} is taken, and has no effect that training knew")
    return f"{len(bad_values(said))} of them are refused by the template"


# Responses


def _parsing(renderer: Renderer, said: Mapping[str, Any]) -> str:
    """A thought that closes itself, one that was cut, none at all: as parse_response tells them."""
    tokenizer, markers = renderer.tokenizer, renderer.thinking
    talk = [dict(one) for one in TALKS[0]]
    end = tokenizer.decode([renderer.eos_ids[0]])

    def parsed(text: str, **arguments: Any) -> dict[str, Any]:
        prefix = tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=False, **arguments
        )
        found: dict[str, Any] = tokenizer.parse_response(text, prefix=prefix)
        return {name: found.get(name) for name in ("thinking", "content")}

    if markers is None:
        _need(parsed(f"12{end}")["content"] == "12", "the answer is not found")
        return "answers are found"
    on: dict[str, Any] = {}
    if renderer.closed(_told_ids(renderer, on, talk)):  # it thinks only when it is told to
        on = {"enable_thinking": True}
    opened = probe.generation_prompt(tokenizer, on).rfind(markers.start) >= 0
    start = "" if opened else markers.start
    cases = {
        "a natural end": (f"{start}21{markers.end}12{end}", on, "21", "12"),
        "a forced end": (f"{start}2{said['forced_end']}12", on, "2", "12"),
        "a thought without end": (f"{start}21", on, "21", None),
        "no thinking": (f"12{end}", {"enable_thinking": False}, None, "12"),
    }
    for name, (text, arguments, thinking, content) in cases.items():
        found = parsed(text, **arguments)
        if name == "a forced end" and said["forced_end"] != markers.end:
            head, _, tail = said["forced_end"].partition(markers.end)
            thinking, content = f"2{head}".strip(), f"{tail}12".strip()
        whole = str(found["thinking"] or "").endswith(thinking or "")  # behind a prefill, if any
        wanted = {"thinking": thinking, "content": content}
        apart = whole and found["content"] == content
        _need(apart, f"{name}: {text!r} is taken for {found}, not {wanted}")
    for name, arguments, _ in ways(said):
        text = tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=False, **arguments
        )
        if renderer.closed(_told_ids(renderer, arguments, talk)):
            continue
        start = "" if text.rfind(markers.start) > text.rfind(markers.end) else markers.start
        found = parsed(f"{start}21{markers.end}12{end}", **arguments)
        apart = found["content"] == "12" and str(found["thinking"]).endswith("21")
        _need(apart, f"{name} ({arguments}): a thought and an answer are taken for {found}")
    return f"{', '.join(cases)}, and every mode: thinking and content come apart"


def _sampling(out: Path, renderer: Renderer) -> str:
    config = json.loads((out / "generation_config.json").read_text())
    greedy = not config.get("do_sample") or not config.get("temperature")
    _need(not greedy, "generation_config.json is greedy, at which reasoners loop")
    ends = config["eos_token_id"]
    ends = [ends] if isinstance(ends, int) else ends
    _need(set(renderer.eos_ids) <= set(ends), f"eos ids {ends} lack some of {renderer.eos_ids}")
    return f"temperature {config['temperature']}, responses end with {ends}"


# Engines


def _transformers(out: Path, renderer: Renderer, said: Mapping[str, Any]) -> str:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto", trust_remote_code=False)
    name, arguments, _ = list(ways(said))[-1]
    ids = torch.tensor(_told_ids(renderer, arguments, TALKS[0])[None], dtype=torch.long)
    with torch.no_grad():
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False
        )
    count = made.shape[1] - ids.shape[1]
    _need(count > 0, "nothing was generated")
    return f"loads {model.num_parameters():,} parameters in {model.dtype}, generates ({name})"


def _vllm(out: Path) -> Finding:
    """In a process of its own: an engine leaves its mark on the one it lives in."""
    name = "vLLM"
    if importlib.util.find_spec("vllm") is None:
        return Finding(name, None, "not installed: nothing about it was checked")
    command = [sys.executable, "-m", "trainer.export.vllm_check", str(out.resolve())]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ENGINE_SECONDS, env=dict(os.environ)
        )
    except subprocess.TimeoutExpired:
        return Finding(name, False, f"not done after {ENGINE_SECONDS} seconds")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding(name, False, why)
    found = json.loads(lines[-1])
    return Finding(name, found["ok"], found["text"])
