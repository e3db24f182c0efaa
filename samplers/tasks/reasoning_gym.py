"""reasoning_gym: problems of the library of that name, as a task.

    task: {name: reasoning_gym, dataset: chain_sum, settings: {max_terms: 4}}

Its own scorers grade them: `verifier: reasoning_gym`. An answer may have many right forms there, so
the gold is one example, and empty where the library gives none.

A problem is a function of (seed, split, index) and of the library's version. Which split a problem
belongs to is a property of its question alone, so the splits share none.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pydantic import Field, model_validator

from samplers.seam import Component
from samplers.seeds import key
from samplers.tasks._chains import Draw, Split, of_split
from samplers.types import Prompt

SIZE = 1 << 20
"""Problems that are drawn from, where the dataset's settings do not say `size`."""
SIZES = {"acre": 1 << 12, "word_ladder": 1 << 14}
"""Fewer of datasets that make all of them first, or refuse more (library 0.1.25)."""
HASHED = (
    "codeio",
    "isomorphic_strings",
    "knight_swap",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
)
"""Datasets whose problems follow the order of sets of strings, found in a dozen problems of each
(library 0.1.25)."""
_STREAM = 0x4C47
_TRIES = 16
"""Problems of other numbers that are tried where the library fails to make one."""


class Config(Component):
    dataset: str
    """A dataset of the library (chain_sum, countdown, knights_knaves, ...)."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Its settings, as the library names them; those left out are the library's."""
    instructions: str = ""
    """Appended to every question, e.g. ' Give the answer between <answer> and </answer>.'"""

    @model_validator(mode="after")
    def _valid(self) -> Config:
        if "seed" in self.settings:
            raise ValueError("settings: seed is the run's; take it out")
        if self.dataset in HASHED and not os.environ.get("PYTHONHASHSEED", "").isdigit():
            raise ValueError(
                f"dataset: problems of '{self.dataset}' differ between processes unless Python's "
                "hashing is fixed; set the environment variable PYTHONHASHSEED=0"
            )
        _dataset(self)
        return self


def prompt(config: Config, split: Split, index: int, seed: int = 0) -> Prompt:
    """Problem `index` of `split`, with what its scorer needs in `meta`.

    Raises:
        ValueError: unknown split, or settings that give no or too few different problems.
    """
    entry = of_split(
        lambda draw: pose(config, draw),
        lambda entry: str(entry["question"]),
        split,
        seed,
        index,
    )
    if entry is None:
        raise ValueError(
            f"dataset: '{config.dataset}' gives too few different problems to fill a {split} "
            "split; widen its settings"
        )
    return Prompt(
        index=index,
        id=f"{config.dataset}/{split}/{index}",
        messages=({"role": "user", "content": f"{entry['question']}{config.instructions}"},),
        text="",
        answer="" if entry["answer"] is None else str(entry["answer"]),
        verifier="reasoning_gym",
        meta=scored(config, entry),
    )


def scored(config: Config, entry: Any) -> dict[str, Any]:
    """What the library's scorer is told of a problem: a prompt's `meta`."""
    return {
        "source_dataset": config.dataset,
        "settings": config.settings,
        "entry": {name: entry[name] for name in ("question", "answer", "metadata")},
    }


def pose(config: Config, draw: Draw) -> Any:
    """A problem of the library as it has it, `{question, answer, metadata}`: one drawn of many.

    Raises:
        ValueError: the dataset makes none with these settings.
    """
    dataset, reason = _dataset(config), ""
    for _ in range(_TRIES):
        place = int(draw() * len(dataset))
        try:
            with _apart(key(_STREAM, place)):
                return dataset[place]
        except Exception as error:  # of the library's code, which differs by dataset
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    raise ValueError(
        f"dataset: '{config.dataset}' makes no problems with settings {config.settings}; "
        f"change them ({reason})"
    )


@contextlib.contextmanager
def _apart(seed: int) -> Iterator[None]:
    """The library's code seeds and draws from global generators, and prints: ours stay as they are.

    `seed`: what Python's global generator starts from inside.
    """
    import numpy as np

    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _dataset(config: Config) -> Any:
    return _made(config.dataset, json.dumps(config.settings, sort_keys=True))


@lru_cache(maxsize=8)
def _made(name: str, settings: str) -> Any:
    """The library's dataset of that name and those settings (as JSON).

    Raises:
        ValueError: the library is not there, has no such dataset or refuses the settings.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError:
        raise ValueError(
            "task: problems of reasoning_gym need the library of that name; pip install "
            "'laconic[reasoning-gym]'"
        ) from None
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"dataset: reasoning_gym has none named '{name}'{hint}")
    wanted = {"size": SIZES.get(name, SIZE), **json.loads(settings), "seed": 0}
    try:
        with _apart(0):
            return create_dataset(name, **wanted)
    except Exception as error:  # assertions, unknown arguments: the library's own checks
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"settings: '{name}' of reasoning_gym refuses them: {reason}") from None
