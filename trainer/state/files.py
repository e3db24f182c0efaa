"""A saved learner state on disk: safetensors and JSON, read in slices by whoever needs them.

`state.json` says what was saved and names the files of each rank. A file holds one-dimensional
tensors; the `index` in its metadata maps each to [parameter, key, first element]. Nothing is ever
unpickled, and what a file claims is believed only as far as it was checked: it may be a stranger's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.state.deepspeed import STEP, Part
from trainer.state.fragments import Span, sources
from trainer.together import disk_error

FORMAT = 1
SUMMARY = "state.json"
FILE_BYTES = 2**30
"""About the most in one file: of a GPU's, this much is copied to the host at a time."""
_RANDOM = "random."
Plan = dict[str, list[tuple[str, Span, Span, Part]]]
"""By file, what is read of it: a tensor, its span, what to take of that, where it goes."""


def write(
    folder: Path, rank: int, parts: Iterable[Part], random: Mapping[str, Tensor]
) -> list[str]:
    """Save what this rank owns; the names of its files, the first of which has `random`.

    Raises:
        OSError: with its errno, where the system gave one.
    """
    names: list[str] = []
    tensors = {f"{_RANDOM}{key}": state for key, state in random.items()}
    index: dict[str, list[Any]] = {}
    used = 0

    def flush() -> None:
        path = folder / f"rank{rank:05d}-{len(names):03d}.safetensors"
        try:
            save_file(tensors, path, metadata={"index": json.dumps(index)})
        except SafetensorError as error:
            raise disk_error(error, path) from error
        names.append(path.name)

    for part in parts:
        if not part.own.size:
            continue
        values = part.values[part.own.within(part.span)]
        if part.key == STEP:  # one tensor for many parameters, which safetensors refuses
            values = values.clone()
        if used and used + values.nbytes > FILE_BYTES:
            flush()
            tensors, index, used = {}, {}, 0
        tensor = f"{part.key}/{part.name}"
        tensors[tensor], index[tensor] = values, [part.name, part.key, part.own.start]
        used += values.nbytes
    flush()
    return names


def summarise(folder: Path, facts: Mapping[str, Any], files: list[list[str]]) -> None:
    """Write `state.json`, once every rank has written its `files`."""
    text = json.dumps({"format": FORMAT, **facts, "files": files}, indent=1)
    (folder / SUMMARY).write_text(text + "\n")


class Saved:
    """A folder that `write` and `summarise` filled.

    Raises:
        ValueError: a file is missing, cut short, or not what it should be; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, folder / SUMMARY
        self._at: dict[tuple[str, str], list[tuple[Span, str, str]]] = {}
        try:
            self.facts: dict[str, Any] = json.loads(path.read_text())
            known = self.facts["format"]
            self.updates, self.bad_steps = int(self.facts["updates"]), int(self.facts["bad_steps"])
            self._files = [[str(name) for name in names] for names in self.facts["files"]]
            self.shapes = {
                str(name): tuple(int(n) for n in shape)
                for name, shape in self.facts["parameters"].items()
            }
        except OSError as error:
            raise ValueError(
                f"{path}: {error.strerror}; no learner's state was saved there"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r})") from error
        if known != FORMAT:
            raise ValueError(f"{path}: format {known} is not known here, only {FORMAT}")
        self.keys: dict[str, set[str]] = {name: set() for name in self.shapes}
        for name in (name for names in self._files for name in names):
            self._look(name)

    def _look(self, name: str) -> None:
        """Note which elements a file holds."""
        with self._open(name) as file:
            try:
                index = json.loads((file.metadata() or {})["index"])
                for tensor, (parameter, key, start) in index.items():
                    part = file.get_slice(tensor)
                    (count,) = part.get_shape()
                    if part.get_dtype() not in ("F32", "BF16") or int(start) < 0:
                        raise ValueError(f"{tensor}: {part.get_dtype()} from {start}")
                    here = (Span(int(start), int(start) + count), name, tensor)
                    self._at.setdefault((parameter, key), []).append(here)
                    self.keys[parameter].add(key)
            except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                raise ValueError(f"{self.folder / name} is damaged ({error!r})") from error

    def _open(self, name: str) -> Any:
        path = self.folder / name
        if path.name != name:
            raise ValueError(f"{self.folder / SUMMARY}: {name!r} is no name of a file there")
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            why = "it is missing" if not path.exists() else str(error)
            raise ValueError(f"{path} cannot be read: {why}") from error

    def plan(self, parts: Iterable[Part]) -> Plan:
        """What to read for these parts.

        Raises:
            ValueError: some elements were not saved.
        """
        reads: Plan = {}
        for part in parts:
            saved = self._at.get((part.name, part.key), [])
            try:
                found = sources(part.span, [span for span, _, _ in saved])
            except ValueError as error:
                raise ValueError(f"{self.folder}: {part.key} of {part.name}: {error}") from error
            for index, take in found:
                span, file, tensor = saved[index]
                reads.setdefault(file, []).append((tensor, span, take, part))
        return reads

    @torch.no_grad()
    def read(self, plan: Plan) -> None:
        """Overwrite the parts of `plan`."""
        for part in (part for reads in plan.values() for *_, part in reads if part.key == STEP):
            part.values.zero_()
        for name, reads in plan.items():
            with self._open(name) as file:
                for tensor, span, take, part in reads:
                    values = file.get_slice(tensor)[take.within(span)]
                    target = part.values[take.within(part.span)]
                    if part.key == STEP:  # a stretch of many parameters has one count for all
                        values = torch.maximum(values.to(target.device), target)
                    target.copy_(values)

    def random(self, rank: int) -> dict[str, Tensor] | None:
        """The random states of a rank, if there was such a rank."""
        if rank >= len(self._files) or not self._files[rank]:
            return None
        with self._open(self._files[rank][0]) as file:
            keys = [key for key in file.keys() if key.startswith(_RANDOM)]  # noqa: SIM118
            return {key.removeprefix(_RANDOM): file.get_tensor(key) for key in keys}
