"""Prompts: where they come from (a task, a file, a hub dataset) and in which order they are drawn.

A row is recognised by its columns: `problem` or `question` with `answer` (MATH, GSM8K, AIME), or
verl's layout (a list of messages, `reward_model.ground_truth`, `extra_info`), or a column map.
"""

from __future__ import annotations

import bisect
import hashlib
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from samplers import seam
from samplers.files import Columns, Row, prompts, read
from samplers.seam import Component
from samplers.seeds import key, uniforms
from samplers.types import Prompt

Split = Literal["train", "test"]
_SAME_NAMES: dict[Split, str] = {"train": "train", "test": "test"}
_ORDER = 0x0DE2  # purpose of the random stream that shuffles


class DataConfig(Component):
    """Exactly one of `task`, `path` and `hub`."""

    task: str | dict[str, Any] | None = None
    """A procedural task: a name in samplers/tasks or your own module, with its settings."""
    path: str | dict[Split, str] | None = None
    """JSONL, JSON list or Parquet file of training prompts, or {train: file, test: file}."""
    hub: str | None = None
    """Name of a hub dataset (needs `pip install 'laconic[hub]'`)."""
    subset: str | None = None
    """Configuration of the hub dataset."""
    split: str | dict[Split, str] = _SAME_NAMES
    """Hub split of training prompts, or {train: name, test: name}."""
    revision: str | None = None
    """Commit or tag of the hub dataset."""
    columns: Columns = Columns()
    system: str = ""
    """System message put before every prompt that has none; before a prompt of plain text, text."""
    suffix: str = ""
    """Appended to every prompt, e.g. ' Please reason step by step.'"""
    chat: bool = True
    """Prompts are user messages for the chat template; off: text to be continued as it stands."""
    skip_unanswered: bool = False
    """Leave rows without a gold answer out, instead of refusing the file."""
    bad_golds: Literal["refuse", "drop"] = "refuse"
    """Rows whose gold answer the verifier does not accept as its own, or that accept another one:
    refuse to start, or leave them out and say which."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many prompts; makes a procedural task finite."""
    shuffle: bool = True
    """Draw in a new random order in every epoch."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        given = [name for name in ("task", "path", "hub") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of task, path and hub; got {', '.join(given) or 'none of them'}"
            )
        idle = {"subset", "split", "revision"} if given != ["hub"] else set()
        if given == ["task"]:
            idle |= {"columns", "skip_unanswered"}
            idle |= {"bad_golds"} if self.limit is None else set()
        fields = type(self).model_fields
        for name in sorted(idle & self.model_fields_set):
            if getattr(self, name) == fields[name].get_default(call_default_factory=True):
                continue  # a resolved recipe spells out its defaults
            warnings.warn(f"data.{name} has no effect with data.{given[0]}", stacklevel=2)
        return self


@dataclass(frozen=True, slots=True)
class Dataset:
    """`dataset[index]` is a Prompt, the same one for ever."""

    get: Callable[[int], Prompt]
    size: int | None
    """None: a task that never ends."""
    fingerprint: str
    """Hash of the content (rows) or of the settings (tasks)."""

    def __getitem__(self, index: int) -> Prompt:
        if index < 0 or (self.size is not None and index >= self.size):
            raise IndexError(f"prompt {index} of {self.size}")
        return self.get(index)

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError("this task is unlimited; `size` is None, set data.limit for a length")
        return self.size

    def without(self, left_out: Collection[int]) -> Dataset:
        """The other prompts of a finite dataset, indexed anew."""
        if not left_out:
            return self
        kept = [self[i] for i in range(len(self)) if i not in left_out]
        kept = [replace(prompt, index=i) for i, prompt in enumerate(kept)]
        words = f"{self.fingerprint} without {sorted(left_out)}"
        return Dataset(kept.__getitem__, len(kept), digest(words))


def load(config: DataConfig, split: Split = "train", seed: int = 0) -> Dataset:
    """Read and check the prompts of `split`.

    `seed` makes the training problems of a procedural task differ between runs; its test
    problems, and files, are the same for every seed.

    Raises:
        ValueError: one line that names file and row, the value and the fix.
    """
    if config.task:
        return _task(config, split, seed if split == "train" else 0)
    found = prompts(rows(config, split), config.columns, config.skip_unanswered)
    kept = [dress(config, prompt) for prompt in found[: config.limit]]
    content = "\n".join(repr((p.id, p.messages, p.text, p.answer, p.verifier)) for p in kept)
    return Dataset(kept.__getitem__, len(kept), digest(content))


def rows(config: DataConfig, split: Split) -> list[Row]:
    """Rows of `split`, of a file or a hub dataset.

    Raises:
        ValueError: one line that names the file or the dataset, and the fix.
    """
    if config.path:
        return read(of_split("path", config.path, split))
    return _hub(config, of_split("split", config.split, split))


@dataclass(slots=True)
class PromptStream:
    """Draws prompts, each draw with its serial number. All its state is a number and two lists.

    A dataset is shuffled anew in every epoch; the order is a function of (seed, epoch), so nothing
    needs to be stored. Unlimited tasks count up.
    """

    dataset: Dataset
    seed: int = 0
    shuffle: bool = True
    drawn: int = 0
    """Serial number of the next fresh draw."""
    returned: list[tuple[int, int]] = field(default_factory=list)
    """(draw, index) put back, ascending: these come first."""
    excluded: set[int] = field(default_factory=set)
    """Indices of prompts that are drawn no more; the serial numbers of their draws are not used."""
    _epoch: tuple[int, Any] = (-1, None)

    def next(self) -> tuple[int, Prompt]:
        """(serial number of the draw, prompt).

        Raises:
            ValueError: every prompt is excluded.
        """
        while self.returned:
            draw, index = self.returned.pop(0)
            if index not in self.excluded:
                return draw, self.dataset[index]
        if self.dataset.size is not None and len(self.excluded) >= self.dataset.size:
            raise ValueError(
                f"data: all {self.dataset.size} prompts took engines down and were left out; see "
                "faults.jsonl for what happened"
            )
        while True:
            draw, index = self.drawn, self._index(self.drawn)
            self.drawn += 1
            if index not in self.excluded:
                return draw, self.dataset[index]

    def exclude(self, index: int) -> None:
        """Never draw this prompt again; the order of all others stays."""
        self.excluded.add(index)

    def put_back(self, draw: int, prompt: Prompt) -> None:
        """Return a draw that was not used: draws put back come first, oldest first."""
        entry = (draw, prompt.index)
        assert 0 <= draw < self.drawn, f"draw {draw} was never made"
        assert entry not in self.returned, f"draw {draw} was put back twice"
        bisect.insort(self.returned, entry)

    @property
    def epoch(self) -> float:
        """How often the dataset was gone through; 0 for unlimited tasks."""
        return self.drawn / self.dataset.size if self.dataset.size else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "fingerprint": self.dataset.fingerprint,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drawn": self.drawn,
            "returned": [list(entry) for entry in self.returned],
            "excluded": sorted(self.excluded),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: the data or its order are not those of the checkpoint.
        """
        ours = self.state_dict()
        for name in ("fingerprint", "seed", "shuffle"):
            if state[name] != ours[name]:
                raise ValueError(
                    f"data: {name} is {ours[name]} and the checkpoint's is {state[name]}: it would "
                    "not continue with the same prompts; restore it, or start a new run"
                )
        self.drawn = int(state["drawn"])
        self.returned = [(int(draw), int(index)) for draw, index in state["returned"]]
        self.excluded = {int(index) for index in state.get("excluded", ())}

    def _index(self, draw: int) -> int:
        if self.dataset.size is None:
            return draw
        epoch, position = divmod(draw, self.dataset.size)
        if not self.shuffle:
            return position
        if self._epoch[0] != epoch:
            self._epoch = (epoch, _permutation(self.seed, epoch, self.dataset.size))
        return int(self._epoch[1][position])


def _permutation(seed: int, epoch: int, size: int) -> Any:
    positions_N = np.arange(size, dtype=np.uint64)
    keys_N = np.full(size, key(seed, _ORDER, epoch), dtype=np.uint64)
    return np.argsort(uniforms(keys_N, positions_N), kind="stable")


def _task(config: DataConfig, split: Split, seed: int) -> Dataset:
    assert config.task is not None
    module, settings = seam.resolve("samplers.tasks", config.task)

    def get(index: int) -> Prompt:
        return dress(config, module.prompt(settings, split, index, seed))

    described = settings.model_dump_json() if settings is not None else ""
    words = (config.system, config.suffix, config.chat, config.limit)
    return Dataset(
        get, config.limit, digest(repr((module.__name__, described, split, seed, words)))
    )


def dress(config: DataConfig, prompt: Prompt) -> Prompt:
    """Add what the config adds to every prompt."""
    if not prompt.messages:
        return replace(prompt, text=config.system + prompt.text + config.suffix)
    *before, last = prompt.messages
    content = last["content"] + config.suffix
    if not config.chat:
        if before:
            raise ValueError(
                f"data.chat: false needs prompts of one text; prompt '{prompt.id}' has "
                f"{len(prompt.messages)} messages"
            )
        return replace(prompt, messages=(), text=config.system + content)
    if config.system and not any(m["role"] == "system" for m in before):
        before.insert(0, {"role": "system", "content": config.system})
    return replace(prompt, messages=(*before, {"role": "user", "content": content}))


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def of_split(name: str, value: str | dict[Split, str], split: Split) -> str:
    """A bare value means the training prompts: nothing is evaluated on them by accident."""
    named = {"train": value} if isinstance(value, str) else dict(value)
    if split not in named:
        raise ValueError(
            f"data.{name}: names nothing for '{split}' (got {value!r}); "
            f"write {name}: {{train: ..., test: ...}}"
        )
    return named[split]


def _hub(config: DataConfig, split: str) -> list[Row]:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"data.hub: '{config.hub}' needs the package `datasets`; pip install 'laconic[hub]'"
        ) from None
    try:
        table = datasets.load_dataset(
            config.hub, name=config.subset, split=split, revision=config.revision
        )
    except Exception as error:  # any of its many errors; all are about what the user named
        reason = " ".join(str(error).split())
        raise ValueError(f"data.hub: '{config.hub}' split '{split}': {reason}") from None
    return [
        Row(f"{config.hub} ({split}) row {i}", f"{config.hub}/{split}/{i}", dict(row))
        for i, row in enumerate(table, 1)
    ]
