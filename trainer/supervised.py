"""Supervised batches: demonstrations of a task, prompts with completions from a file or a hub
dataset, or examples that the stage's own model makes (`trainer/traces`).

Rows are bucketed: a pool of examples is sorted by length and cut into batches of about as many
tokens each, which are then visited in random order. A curriculum may begin with easier problems.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from samplers import seam
from samplers.data import DataConfig, Dataset, PromptStream, digest, dress
from samplers.data import rows as read
from samplers.files import USUAL, Columns, Row, candidates, messages
from samplers.seam import Component
from samplers.seeds import key, uniforms
from samplers.types import Ids, Plan, Prompt
from trainer.components import explain
from trainer.modelfolder import ModelFolder
from trainer.rows import supervised_row
from trainer.types import TrainSequence

if TYPE_CHECKING:
    from trainer.config import Stage

Render = Callable[[Prompt, Plan], Ids]
Encode = Callable[[str], Sequence[int]]

COMPLETION = "completion"
"""Where a prompt of supervised data carries its target text, in `meta`."""
EXAMPLE = "example"
"""Where a prompt carries, instead of texts, the ids (prompt [T], response [T]) of an example."""
_COMPLETIONS = ("completion", "response", "output", "target")
_BATCHES = 0x5F7  # purpose of the random stream that orders the batches of a pool


class Phase(Component):
    """Settings of the task until some point of the stage."""

    until: float = Field(gt=0, lt=1)
    """Share of the stage's steps at which this phase ends."""
    settings: dict[str, Any]
    """Settings of the task that differ, e.g. {candidates: [2, 3]}."""


class SupervisedConfig(Component):
    """How an sft stage turns its data into batches."""

    completion: str = ""
    """Column of the text to imitate. Usual: completion, response, output, target; else the
    messages end with it."""
    batch_tokens: int = Field(2048, ge=1)
    """Tokens of a batch, padding to its longest row included; one step trains one batch."""
    pool: int = Field(2048, ge=1)
    """Examples that are sorted by length together."""
    curriculum: tuple[Phase, ...] = ()
    """Phases before the data's own settings hold; for procedural tasks."""
    traces: str | dict[str, Any] | None = None
    """Who makes examples of the model's own rollouts on the data's training prompts when the stage
    begins (a file of trainer/traces: shortest_correct, budget_modes). None: the data hold them."""

    @field_validator("traces")
    @classmethod
    def _known(cls, spec: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if spec is None:
            return None
        name, _ = seam.split(spec)
        module = seam.find("trainer.traces", name)
        if not (hasattr(module, "Config") and hasattr(module, "make")):
            raise ValueError(f"'{name}' lacks Config or make; see trainer/traces/base.py")
        try:
            seam.resolve("trainer.traces", spec)
        except ValidationError as error:
            raise ValueError(explain(error, module.Config)) from None
        return spec

    @model_validator(mode="after")
    def _one_source(self) -> SupervisedConfig:
        if self.traces and self.curriculum:
            raise ValueError("curriculum: has no place beside traces, which are made once; drop it")
        if self.traces and self.completion:
            warnings.warn("supervised.completion has no effect beside traces", stacklevel=2)
        return self

    @model_validator(mode="after")
    def _ascending(self) -> SupervisedConfig:
        ends = [phase.until for phase in self.curriculum]
        if ends != sorted(set(ends)):
            raise ValueError(f"curriculum: phases end at {ends}; 'until' must ascend")
        return self


class SupervisedStream:
    """Batches of rows, one per step, from `data` (a task with demonstrations, or rows with
    completions).

    With `config.traces` the data are `supply`-ed before the first row is asked for.

    `render` gives the prompt's ids, generation prompt included; `encode` those of a completion,
    to which `eos_id` is added. `opened`: the text of a thought that the template opens; a
    completion that begins with it again loses it. `context`: tokens the model can hold.
    """

    def __init__(
        self,
        config: SupervisedConfig,
        data: DataConfig,
        *,
        steps: int,
        seed: int,
        render: Render,
        encode: Encode,
        eos_id: int,
        opened: str = "",
        context: int | None = None,
    ) -> None:
        self.config, self.steps, self.seed = config, steps, seed
        self._render, self._encode = render, encode
        self._eos_id, self._opened, self._context = eos_id, opened, context
        self._shuffle = data.shuffle
        self._streams: list[PromptStream] = []
        if config.traces is None:
            changes = [phase.settings for phase in config.curriculum] + [{}]
            self.supply(*(examples(config, data, change, seed) for change in changes))
        self._step = 0
        self._phase, self._at = -1, 0
        self._before: dict[str, Any] = {}  # the phase's stream before it filled the pool
        self._pool: list[list[TrainSequence]] = []

    def supply(self, *datasets: Dataset) -> None:
        """What rows are made of: one dataset per phase."""
        self._streams = [PromptStream(data, self.seed, self._shuffle) for data in datasets]

    def next(self) -> list[TrainSequence]:
        """The rows of the next step.

        Raises:
            ValueError: a row longer than the context.
        """
        ends = [phase.until * self.steps for phase in self.config.curriculum]
        phase = sum(self._step >= end for end in ends)
        if phase != self._phase or self._at == len(self._pool):
            self._phase, self._at = phase, 0
            self._fill()
        rows = self._pool[self._at]
        self._step, self._at = self._step + 1, self._at + 1
        return rows

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "phase": self._phase, "at": self._at, "stream": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken: the pool of that moment is made again.

        Raises:
            ValueError: the data are not those of the checkpoint.
        """
        self._step, self._phase, self._at = state["step"], state["phase"], state["at"]
        if self._phase >= 0:
            self._streams[self._phase].load_state_dict(state["stream"])
            self._fill()

    def _fill(self) -> None:
        stream = self._streams[self._phase]
        self._before = stream.state_dict()
        size = self.config.pool
        if stream.dataset.size is not None:
            size = min(size, stream.dataset.size)
        rows = [self._row(stream.next()[1]) for _ in range(size)]
        batches = bucket(rows, self.config.batch_tokens)
        keys_N = np.full(len(batches), key(self.seed, _BATCHES, stream.drawn), dtype=np.uint64)
        order_N = np.argsort(uniforms(keys_N, np.arange(len(batches), dtype=np.uint64)))
        self._pool = [batches[i] for i in order_N]

    def _row(self, prompt: Prompt) -> TrainSequence:
        if EXAMPLE in prompt.meta:
            prompt_ids, target_ids = prompt.meta[EXAMPLE]
            return supervised_row(prompt_ids, target_ids, prompt.index)
        text = str(prompt.meta[COMPLETION])
        if self._opened:
            text = text.removeprefix(self._opened)
        prompt_ids = np.asarray(self._render(prompt, Plan(max_tokens=0)), dtype=np.int32)
        target_ids = np.asarray([*self._encode(text), self._eos_id], dtype=np.int32)
        length = len(prompt_ids) + len(target_ids)
        if self._context is not None and length > self._context:
            raise ValueError(
                f"data: '{prompt.id}' has {length} tokens and the model holds {self._context}; "
                "shorten it or leave it out"
            )
        return supervised_row(prompt_ids, target_ids, prompt.index)


def bucket(rows: Sequence[TrainSequence], tokens: int) -> list[list[TrainSequence]]:
    """Cut rows, sorted by length, into batches of at most `tokens`, padding included.

    A row longer than that gets a batch of its own.
    """
    batches: list[list[TrainSequence]] = []
    for row in sorted(rows, key=len):
        if batches and len(row) * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def examples(
    config: SupervisedConfig, data: DataConfig, change: Mapping[str, Any], seed: int
) -> Dataset:
    """Prompts that carry the text to imitate in `meta`.

    Raises:
        ValueError: a task without demonstrations, a row without completion.
    """
    if data.task:
        return _demonstrations(data, change, seed)
    if change:
        raise ValueError("supervised.curriculum: rows have no settings; use data.task, or drop it")
    prompts = _with_completions(read(data, "train"), data.columns, config.completion)
    kept = [dress(data, prompt) for prompt in prompts[: data.limit]]
    text = "\n".join(repr((p.messages, p.text, p.meta[COMPLETION])) for p in kept)
    return Dataset(kept.__getitem__, len(kept), digest(text))


def _demonstrations(data: DataConfig, change: Mapping[str, Any], seed: int) -> Dataset:
    assert data.task is not None
    name, own = seam.split(data.task)
    module, settings = seam.resolve("samplers.tasks", {"name": name, **own, **change})
    if not hasattr(module, "demonstration"):
        raise ValueError(f"data.task: '{name}' has no demonstrations to learn from; use another")

    def get(index: int) -> Prompt:
        prompt, completion = module.demonstration(settings, index, seed)
        return dress(data, replace(prompt, meta={**prompt.meta, COMPLETION: completion}))

    described = settings.model_dump_json() if settings is not None else ""
    return Dataset(get, data.limit, digest(repr((module.__name__, described, seed, data.limit))))


def _with_completions(rows: Sequence[Row], columns: Columns, given: str) -> list[Prompt]:
    asked = candidates(rows, USUAL["prompt"], columns.prompt, "data.columns.prompt")
    if not asked:
        raise ValueError(f"{rows[0].where}: no prompt column; name it in data.columns.prompt")
    places = candidates(rows, _COMPLETIONS, given, "supervised.completion")
    out = []
    for index, row in enumerate(rows):
        talk = messages(row, next((c for c in asked if row.get(c) is not None), asked[0]))
        text = next((row.get(c) for c in places if row.get(c) is not None), None)
        if text is None and talk[-1]["role"] == "assistant":
            text, talk = talk[-1]["content"], talk[:-1]
        if not isinstance(text, str) or not text or not talk:
            raise ValueError(
                f"{row.where}: no completion in {' or '.join(places or _COMPLETIONS)}, and the "
                "messages do not end with one; name its column in supervised.completion"
            )
        out.append(Prompt(index, row.name, talk, "", "", "", {COMPLETION: text}))
    return out


def demonstrations(stage: Stage, model: str, seed: int) -> SupervisedStream:
    """Supervised batches, rendered by the same code as rollouts."""
    from samplers import render

    renderer = render.load(model, stage.markers, stage.model.trust_remote_code)
    opened = renderer.thinking.start if renderer.thinking and renderer.thinking.opened else ""
    own = renderer.tokenizer.eos_token_id  # of several ends, the one this tokenizer writes
    return SupervisedStream(
        stage.supervised,
        stage.data,
        steps=stage.steps,
        seed=seed,
        render=renderer.render,
        encode=lambda text: renderer.encode(text).tolist(),
        eos_id=own if own is not None else renderer.eos_ids[0],
        opened=opened,
        context=ModelFolder(Path(model)).context,
    )
