"""How a model is sampled, and how long it may respond, where nobody says: as its folder does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from samplers import inference
from samplers.budget import Asks
from samplers.render import Renderer
from trainer.eval.problems import SHUFFLE, Task
from trainer.eval.settings import EvalSettings, ways
from trainer.modelfolder import GENERATION, ModelFolder

_SPARE = 16
"""Tokens by which the same options may be longer in another order."""
_STEP = 64
"""Caps are multiples of it, so that models whose prompts differ by a token have the same."""
_FITS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda value: 0 < value < float("inf"), "a number above 0"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "top_k": (lambda value: value >= 1 and value == int(value), "a whole number"),
    "max_new_tokens": (lambda value: value >= 1 and value == int(value), "a whole number"),
}


def told(model: ModelFolder) -> dict[str, Any]:
    """What generation_config.json says of temperature, top_p, top_k and max_tokens.

    Null and 0 say nothing, nor does `do_sample: false` of sampling: reasoners loop when greedy.

    Raises:
        ValueError: it says what cannot be sampled.
    """
    found = {}
    for name, (fits, wanted) in _FITS.items():
        value = model.generation.get(name)
        if not value or value == -1:  # as vLLM writes that top_k is off
            continue
        if not isinstance(value, int | float) or not fits(value):
            file = model.path / GENERATION
            raise ValueError(f"{file}: {name} is {value!r}; it must be {wanted}: correct it there")
        found[name] = value if name in ("temperature", "top_p") else int(value)
    cap = {"max_tokens": found.pop("max_new_tokens")} if "max_new_tokens" in found else {}
    return cap if model.generation.get("do_sample") is False else {**found, **cap}


def room(
    tasks: Sequence[Task],
    settings: EvalSettings,
    asks: Asks,
    renderer: Renderer,
    context: int | None,
) -> int:
    """Tokens of a response that the context leaves beside the longest prompt, however it is asked;
    32768 at most."""
    if context is None:
        return inference.LONGEST
    most = settings.model_copy(update={"max_tokens": min(inference.LONGEST, context)})
    plain, *others = [way.plan for way in ways(most, asks, renderer.thinking is not None)]
    longest = [
        max(task.prompts, key=lambda p: len(renderer.render(p, plain)))
        for task in tasks
        if task.prompts
    ]
    if not longest:
        return most.max_tokens
    spare = _SPARE if any(SHUFFLE in prompt.meta for prompt in longest) else 0
    plans = (plain, *others)
    left = min(inference.room(longest, plan, renderer, context - spare) for plan in plans)
    return max(left - left % _STEP, min(left, _STEP))
