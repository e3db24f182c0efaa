"""Success rates per prompt, estimated from raw verdicts: what allocators remember of a finite pool.

Arrays over `Prompt.index`, so they survive a reshuffled order: 8 bytes a prompt for each unit (1,
or the modes where statistics are within a mode), so 80 MB for 10 million prompts with one (85 MB of
resident memory, measured); while arrays are doubled, and in a snapshot, one or all of them twice.

Shape suffixes: G rollouts of a group, C cuts, N prompts, U units.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from samplers.allocation.base import rights, units
from samplers.seam import Component
from samplers.types import Group

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
MOST_UNITS = 32
"""A curriculum makes new subgroups for ever: those not seen for longest are forgotten."""
_SMALLEST = 1024
_READ_BY = {"momentum": ("ema", "beta"), "prior": ("beta",)}


class Estimates(Component):
    """How success rates are estimated. A prompt is visited when any verdict of it is known."""

    estimate: Literal["last", "cumulative", "ema", "beta"] = "last"
    """`last`: the last visit alone; `cumulative`: all verdicts so far; `ema`: a moving average of
    the visits; `beta`: the mean of a Beta posterior, never exactly 0 or 1."""
    momentum: float = Field(0.7, ge=0, le=1)
    """`ema`: share of the old rate in the new one. `beta`: what verdicts count for at each later
    visit, 1 for ever: the policy that they tell of is gone."""
    prior: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 1.0)
    """`beta`: right and wrong verdicts that are imagined beforehand."""

    @model_validator(mode="after")
    def _sensible(self) -> Estimates:
        if self.estimate == "ema" and self.momentum == 1:
            raise ValueError(
                "momentum=1 with estimate=ema keeps the first visit for ever; write a value below "
                "1, or estimate: cumulative"
            )
        for name, kinds in _READ_BY.items():
            value = getattr(self, name)
            if self.estimate not in kinds and value != Estimates.model_fields[name].default:
                warnings.warn(
                    f"{name} has no effect with estimate: {self.estimate}; it is for "
                    f"{' and '.join(kinds)}",
                    stacklevel=2,
                )
        return self


class SuccessRates:
    """What was seen of each prompt, whole or per unit: a mode or another subgroup of its rollouts.

    With nested budgets a visit counts at one cut, the one whose verdicts are most evenly split: a
    group teaches if any of them is mixed, and the mean over cuts may be one half where none is.
    """

    def __init__(self, config: Estimates) -> None:
        self.config = config
        self._right: dict[str, Singles] = {}
        self._count: dict[str, Singles] = {}
        self._size = 0  # one more than the largest index that was visited
        self._live: list[str] = []  # units of the last update that had any

    def update(self, groups: Iterable[Group], apart: bool = False) -> None:
        """One more visit to each prompt. Groups of one prompt are one visit, whatever their order.

        Args:
            apart: each subgroup of the rollouts has a rate of its own.
        """
        seen: dict[str, dict[int, Floats]] = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))
        for group in groups:
            rights_GC = rights(group)
            for unit, mine in units(group, apart).items():
                right, count = even_cut(rights_GC[mine])
                if count:
                    seen[unit][group.prompt.index] += right, count
        if not seen:
            return
        self._size = max(self._size, 1 + max(i for found in seen.values() for i in found))
        for unit, found in seen.items():
            right_N, count_N = np.array(list(found.values())).T
            self._fold(unit, np.array(list(found), np.intp), right_N, count_N)
        self._live = list(seen)
        most = max(MOST_UNITS, len(seen))
        for unit in list(self._count)[: max(0, len(self._count) - most)]:
            del self._right[unit], self._count[unit]

    def _fold(self, unit: str, indices_N: NDArray[np.intp], right_N: Floats, n_N: Floats) -> None:
        """Add a visit to the unit's sums, which become the last of all units: the newest."""
        right, count = (
            _grown(sums.pop(unit, np.zeros(0, np.float32)), self._size)
            for sums in (self._right, self._count)
        )
        self._right[unit], self._count[unit] = right, count
        old_right_N, old_n_N = right[indices_N].astype(float), count[indices_N].astype(float)
        keep = {"last": 0.0, "cumulative": 1.0}.get(self.config.estimate, self.config.momentum)
        if self.config.estimate == "ema":
            rate_N = right_N / n_N
            old_rate_N = np.divide(old_right_N, old_n_N, out=rate_N.copy(), where=old_n_N > 0)
            right_N, n_N = keep * old_rate_N + (1 - keep) * rate_N, np.ones_like(n_N)
        else:
            right_N, n_N = keep * old_right_N + right_N, keep * old_n_N + n_N
        right[indices_N], count[indices_N] = right_N, n_N

    def units(self, apart: bool = False) -> list[str]:
        """Names of the units that are in use: '' where there is one.

        With `apart` those of the last update that had a known verdict. Others that are remembered,
        budgets of a curriculum's earlier steps or of an earlier stage, are no part of a group now.
        """
        return list(self._live) if apart and self._live else [""]

    def rates(self, indices: ArrayLike, unit: str = "") -> Floats:
        """[N] estimated success rates; NaN where the prompt was never visited in this unit."""
        empty = np.zeros(0, np.float32)
        right_N = _at(self._right.get(unit, empty), indices).astype(float)
        count_N = _at(self._count.get(unit, empty), indices).astype(float)
        a, b = self.config.prior if self.config.estimate == "beta" else (0.0, 0.0)
        unvisited_N = np.full(len(count_N), np.nan)
        return np.divide(right_N + a, count_N + a + b, out=unvisited_N, where=count_N > 0)

    def state_dict(self) -> dict[str, Any]:
        """A snapshot: names of all units and of those in use, right and count [U, N] float32."""

        def whole(sums: dict[str, Singles]) -> Singles:
            out_UN = np.zeros((len(sums), self._size), np.float32)
            for row_N, array in zip(out_UN, sums.values(), strict=True):
                known = array[: self._size]
                row_N[: len(known)] = known
            return out_UN

        return {
            "units": list(self._count),
            "live": list(self._live),
            "right": whole(self._right),
            "count": whole(self._count),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, whichever way of estimating it was made with."""
        self._size = np.shape(state["right"])[1]
        self._live = list(state["live"])
        for name, sums in (("right", self._right), ("count", self._count)):
            sums.clear()
            for unit, row_N in zip(state["units"], state[name], strict=True):
                sums[unit] = np.array(row_N, np.float32)


def even_cut(rights_GC: Floats) -> tuple[float, int]:
    """(right verdicts, rollouts known) at the cut most evenly split; the largest budget of equals.

    A rollout with several answers at a cut counts by the share of right ones.
    """
    count_C = (~np.isnan(rights_GC)).sum(axis=0)
    right_C = np.nansum(rights_GC, axis=0)
    uneven_C = np.where(count_C > 0, np.abs(right_C / np.maximum(count_C, 1) - 0.5), np.inf)
    cut = len(uneven_C) - 1 - int(np.argmin(uneven_C[::-1]))
    return float(right_C[cut]), int(count_C[cut])


def _grown(array_N: NDArray[Any], size: int) -> NDArray[Any]:
    """The array itself, or with zeros behind it up to the next power of two."""
    if size <= len(array_N):
        return array_N
    grown_N = np.zeros(max(_SMALLEST, 1 << (size - 1).bit_length()), array_N.dtype)
    grown_N[: len(array_N)] = array_N
    return grown_N


def _at(array_N: NDArray[Any], indices: ArrayLike) -> NDArray[Any]:
    """Entries at `indices`; 0 beyond the end."""
    indices_N = np.asarray(indices, np.intp)
    out_N = np.zeros(len(indices_N), array_N.dtype)
    inside_N = indices_N < len(array_N)
    out_N[inside_N] = array_N[indices_N[inside_N]]
    return out_N
