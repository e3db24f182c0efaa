"""knapsack: the rollouts of a step go where a mixed group is likely, and worth something.

Knapsack RL, Li et al. 2025 (arXiv:2509.25849). A prompt with success rate p that gets n rollouts is
worth (1 - p^n - (1-p)^n) p (1-p)^2: the chance of a mixed group times what a success then adds.
The step's total, prompts x rollouts, is divided so that the sum of these is largest.

What the estimate says of a prompt decides its rule:

    never visited   rollouts_per_prompt
    always solved   `low`
    never solved    `low`, and what the others no longer need (`enough`): they are explored
    else            the knapsack, between `low` and `up`

What is left when these are full is divided evenly, over never solved prompts first. Where modes or
budgets are compared apart, those in use share a prompt's rollouts: the ones with a known verdict in
the last observed step that had any. What was seen of a prompt in others alone is no visit.

Changed from the paper's code, whose procedure this follows: the knapsack is solved exactly, bounds
hold for every prompt, and a prompt that was not visited is not taken for one that is never solved.

Shape suffixes: N prompts, M modes, K rollouts above the lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from samplers import seam
from samplers.allocation._estimates import Estimates, SuccessRates, even_cut
from samplers.allocation.base import Ask, Finish, Receive, Sample, Stream, rights, units
from samplers.facts import FINITE, UPDATES
from samplers.types import Group

Floats = NDArray[np.float64]
Sizes = NDArray[np.intp]
Flags = NDArray[np.bool_]
Value = Callable[[Any, Any], Any]
"""(n, p) -> worth of n >= 1 rollouts at success rate p, broadcast; concave and not falling in n."""
_ROWS = 4096  # prompts whose values are computed at a time: bounds what is held besides the gains


def mixed_chance(n: ArrayLike, p: ArrayLike) -> Floats:
    """1 - p^n - (1-p)^n: the chance that n rollouts hold right and wrong ones; 0 for n < 1."""
    n, p = np.asarray(n, float), np.asarray(p, float)
    rare = np.minimum(p, 1 - p)
    with np.errstate(divide="ignore", invalid="ignore"):  # log 0 is right, and 0 log 0 unused
        # not 1 - (1-rare)^n, which is rounding noise for rare successes
        chance = -np.expm1(n * np.log1p(-rare)) - np.exp(n * np.log(rare))
    return np.where(n < 1, 0.0, chance)


def information(n: ArrayLike, p: ArrayLike) -> Floats:
    """The paper's value: `mixed_chance` times p (1-p)^2, which is largest at p = 1/3."""
    p = np.asarray(p, float)
    return mixed_chance(n, p) * p * (1 - p) ** 2


VALUES: dict[str, Value] = {"information": information, "mixed": mixed_chance}


class Config(Estimates):
    low: int = Field(2, ge=1)
    """Fewest rollouts of a prompt [paper]; 1 or more, or the value would not be concave."""
    up: int = Field(128, ge=1)
    """Most rollouts of a prompt [paper], whatever its rule."""
    value: str = "information"
    """What is maximised: `information` [paper]; `mixed`, the number of mixed groups; or the import
    path my_pkg.my_file:fn of your own fn(n, p), over numpy arrays."""
    enough: float = Field(0.9, gt=0, le=1)
    """A prompt needs rollouts until its rarer verdict shows up with this chance [code]. What a
    step has beyond the needs of all goes to never solved prompts. 1: they get the leftover only."""
    weights: Literal["rollouts", "prompts"] = "rollouts"
    """`prompts`: advantages are weighted so that every prompt of a step counts alike, however many
    rollouts it has; `rollouts`: each rollout counts alike [paper]."""

    @model_validator(mode="after")
    def _solvable(self) -> Config:
        if self.low > self.up:
            raise ValueError(f"low={self.low} must not be above up={self.up}; swap or widen them")
        if self.value not in VALUES:
            _check_concave(self.value, self.low, self.up)
        return self


class Allocator:
    """Draws `prompts` prompts a step and divides `prompts * rollouts` rollouts among them.

    Raises:
        ValueError: the bounds leave no room for the total.
    """

    def __init__(self, config: Config, prompts: int, rollouts: int) -> None:
        total = prompts * rollouts
        if config.low > rollouts:
            raise ValueError(
                f"low={config.low} of each of {prompts} prompts is more than the {total} rollouts "
                f"of a step; lower it to rollouts_per_prompt={rollouts} or less, or raise that"
            )
        if config.up < rollouts:
            raise ValueError(
                f"up={config.up} of each of {prompts} prompts is less than the {total} rollouts of "
                f"a step; raise it to rollouts_per_prompt={rollouts} or more, or lower that"
            )
        self.config, self.prompts, self.rollouts = config, prompts, rollouts
        self.apart = False
        self.estimates = SuccessRates(config)
        self._asked: dict[str, float] = {}
        self._observed: dict[str, float] = {}

    def allocate(self, stream: Stream) -> Generator[Ask, Group | None, None]:
        draws = [stream.next() for _ in range(self.prompts)]
        indices_N = np.array([prompt.index for _, prompt in draws])
        rates_NM = self._rates(indices_N)
        sizes_N = sizes_of(self.config, rates_NM, self.rollouts)
        _, visited_N, never_N = outcomes(rates_NM)
        self._asked = {
            "allocation/unspent": float(self.prompts * self.rollouts - sizes_N.sum()),
            "allocation/unvisited": float((~visited_N).mean()),
            "allocation/explored": float(sizes_N[never_N].sum() / sizes_N.sum()),
        }
        for (draw, prompt), n in zip(draws, sizes_N, strict=True):
            yield Sample(draw, prompt, int(n))
        groups: list[Group] = []
        while (group := (yield Receive())) is not None:
            groups.append(group)  # also what an earlier step asked for: weights are over all
        for group, weight in zip(groups, self._weights(groups), strict=True):
            yield Finish(group, weights_G=weight)

    def _rates(self, indices_N: NDArray[np.intp]) -> Floats:
        """[N, M]: one column, or those of the modes in use; NaN where never visited."""
        units_M = self.estimates.units(self.apart)
        return np.stack([self.estimates.rates(indices_N, unit) for unit in units_M], axis=1)

    def _weights(self, groups: Sequence[Group]) -> list[Floats | None]:
        """Per group: what makes its sum over rollouts the same for all; 1 on average."""
        if self.config.weights == "rollouts":
            return [None] * len(groups)
        mean = sum(map(len, groups)) / max(len(groups), 1)
        return [np.full(len(group), mean / len(group)) for group in groups]

    def observe(self, groups: list[Group]) -> None:
        """Compare what was estimated of them with what they show, then learn from that."""
        self._observed = _errors(self.estimates, groups, self.apart)
        self.estimates.update(groups, self.apart)

    def state_dict(self) -> dict[str, Any]:
        return {"statistics": self.estimates.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "statistics" in state:
            self.estimates.load_state_dict(state["statistics"])

    def metrics(self) -> dict[str, float]:
        return self._asked | self._observed


def sizes(config: Config, prompts: int, rollouts: int) -> tuple[int, int]:
    """Fewest and most rollouts of a prompt: the others have `low` at least."""
    return config.low, min(config.up, prompts * rollouts - (prompts - 1) * config.low)


def requires(config: Config) -> dict[str, str]:
    return {FINITE: "rollouts go by what earlier visits to a prompt showed; set data.limit"}


def refuses(config: Config) -> dict[str, str]:
    why = (
        "weights=prompts makes the prompts of a step count alike under one denominator, and each "
        "update has its own; set updates_per_batch=1, or weights=rollouts"
    )
    return {UPDATES: why} if config.weights == "prompts" else {}


def sizes_of(config: Config, rates_NM: Floats, rollouts: int) -> Sizes:
    """[N] rollouts of each prompt, N * rollouts in all, by the rules above.

    Args:
        rates_NM: estimated success rates, one column or one per mode in use; NaN where never
            visited.
        rollouts: of a prompt on average, and of a prompt never visited; within the bounds.
    """
    inner_N, visited_N, never_N = outcomes(rates_NM)
    # each mode of a prompt needs a rollout at least
    low = int(np.clip(rates_NM.shape[1], config.low, rollouts))
    sizes_N = np.where(visited_N, low, rollouts).astype(np.intp)
    left = len(rates_NM) * rollouts - int(sizes_N.sum())
    needs_N = np.minimum(_needs(rates_NM[inner_N], config.enough), config.up - low)
    sizes_N += evenly(
        np.where(never_N, config.up - sizes_N, 0), min(left, max(0, int(left - needs_N.sum())))
    )
    left = len(rates_NM) * rollouts - int(sizes_N.sum())
    if inner_N.any():
        start_N = sizes_N[inner_N]
        sizes_N[inner_N] = solve(
            rates_NM[inner_N],
            int(start_N.sum()) + left,
            start_N,
            config.up,
            _function(config.value),
        )
    for rest_N in (never_N, np.ones_like(never_N)):
        left = len(rates_NM) * rollouts - int(sizes_N.sum())
        sizes_N += evenly(np.where(rest_N, config.up - sizes_N, 0), left)
    return sizes_N


def solve(
    rates: ArrayLike, total: int, low: ArrayLike, up: ArrayLike, value: Value = information
) -> Sizes:
    """[N] rollouts with the largest sum of values, by marginal gains: exact, since these only fall.

    Ties are shared evenly. Where `total` is more than all upper bounds together, these.

    Args:
        rates: [N] success rates, or [N, M] of a prompt's modes, all of which share its rollouts
            evenly and add their values (NaN: not known, adds nothing).
        total: rollouts to divide.
        low, up: bounds of each prompt, one for all or [N].

    Raises:
        ValueError: `total` is below the lower bounds, or bounds are crossed.
    """
    rates_NM = np.asarray(rates, float)
    rates_NM = rates_NM.reshape(len(rates_NM), -1)
    low_N, up_N = (np.broadcast_to(bound, len(rates_NM)).astype(np.intp) for bound in (low, up))
    if (low_N > up_N).any() or total < low_N.sum():
        raise ValueError(
            f"total={total} cannot be divided: lower bounds sum to {low_N.sum()} and must be at or "
            "below the upper ones; raise the total or lower the bounds"
        )
    room_N = up_N - low_N
    spend = min(total - int(low_N.sum()), int(room_N.sum()))
    if not spend:
        return low_N
    gains_NK = _gains(rates_NM, low_N, room_N, value)
    # no sorting, no heap: the gain of the last rollout that is bought, and what lies above it
    least = np.partition(gains_NK.ravel(), gains_NK.size - spend)[gains_NK.size - spend]
    bought_N = (gains_NK > least).sum(axis=1)
    return low_N + bought_N + evenly((gains_NK == least).sum(axis=1), spend - int(bought_N.sum()))


def _gains(rates_NM: Floats, low_N: Sizes, room_N: Sizes, value: Value) -> Floats:
    """[N, K]: what the k-th rollout above the lower bound adds; -1 above the upper one."""
    most, modes = int(room_N.max()), rates_NM.shape[1]
    gains_NK = np.empty((len(rates_NM), most))
    for start in range(0, len(rates_NM), _ROWS):
        rows = slice(start, start + _ROWS)
        n_NK = low_N[rows, None] + np.arange(most + 1)
        values_NK = np.zeros(n_NK.shape)
        for p_N in rates_NM[rows].T:
            worth_NK = value(n_NK / modes, np.nan_to_num(p_N)[:, None])
            values_NK += np.where(np.isnan(p_N)[:, None], 0.0, worth_NK)
        gains_NK[rows] = np.diff(values_NK, axis=1)
    np.minimum.accumulate(gains_NK, axis=1, out=gains_NK)  # they fall, but for rounding
    np.maximum(gains_NK, 0, out=gains_NK)
    gains_NK[np.arange(most) >= room_N[:, None]] = -1
    return gains_NK


def evenly(room_N: Sizes, amount: int) -> Sizes:
    """[N] shares of `amount`, equal as far as there is room; the first ones get what is over."""
    amount = min(amount, int(room_N.sum()))
    low, high = 0, int(room_N.max(initial=0))
    while low < high:  # the largest share that all can have who have room for it
        middle = (low + high + 1) // 2
        fits = int(np.minimum(room_N, middle).sum()) <= amount
        low, high = (middle, high) if fits else (low, middle - 1)
    shares_N = np.minimum(room_N, low)
    more_N = np.flatnonzero(room_N > low)[: amount - int(shares_N.sum())]
    shares_N[more_N] += 1
    return shares_N


def outcomes(rates_NM: Floats) -> tuple[Flags, Flags, Flags]:
    """[N] each: solved now and then, in any mode; visited; never solved in some mode, and in no
    mode now and then."""
    inner_N = np.asarray(((rates_NM > 0) & (rates_NM < 1)).any(axis=1))
    visited_N = np.asarray((~np.isnan(rates_NM)).any(axis=1))
    return inner_N, visited_N, ~inner_N & np.asarray((rates_NM == 0).any(axis=1))


def _needs(rates_NM: Floats, enough: float) -> Floats:
    """[N] rollouts until the rarer verdict shows up with chance `enough`, in every mode."""
    likelier_NM = np.maximum(rates_NM, 1 - rates_NM)
    with np.errstate(divide="ignore"):
        needs_NM = np.log(1 - enough) / np.log(likelier_NM)
    teaches_NM = likelier_NM < 1  # False for NaN
    return np.where(teaches_NM, needs_NM, 0.0).max(axis=1, initial=0.0) * rates_NM.shape[1]


def _errors(estimates: SuccessRates, groups: Sequence[Group], apart: bool) -> dict[str, float]:
    """Mean error of the estimates of visited prompts, against this visit and against the truth."""
    seen, known = [], []
    for group in groups:
        truth = group.prompt.meta.get("rate")
        rights_GC = rights(group)
        for unit, mine in units(group, apart).items():
            (rate,) = estimates.rates([group.prompt.index], unit)
            right, count = even_cut(rights_GC[mine])
            if count and not np.isnan(rate):
                seen.append(abs(rate - right / count))
            if truth is not None and not np.isnan(rate):
                known.append(abs(rate - truth))
    found = {"allocation/estimate_error": seen, "allocation/rate_error": known}
    return {name: float(np.mean(errors)) for name, errors in found.items() if errors}


def _function(value: str) -> Value:
    function: Value = VALUES[value] if value in VALUES else seam.function(value)
    return function


def _check_concave(value: str, low: int, up: int) -> None:
    """Refuse a user's value that marginal gains do not solve."""
    if ":" not in value:
        raise ValueError(
            f"value='{value}' is unknown; allowed: {', '.join(VALUES)}, or my_pkg.my_file:fn"
        )
    n_K, p_N1 = np.arange(low, up + 1), np.linspace(0, 1, 101)[:, None]
    values_NK = np.asarray(_function(value)(n_K / 1.0, p_N1), float)
    if values_NK.shape != (len(p_N1), len(n_K)) or not np.isfinite(values_NK).all():
        raise ValueError(
            f"value='{value}': fn(n, p) must give finite numbers, one for each n [{len(n_K)}] and "
            f"p [{len(p_N1)}, 1] broadcast; got shape {list(values_NK.shape)}"
        )
    gains_NK, noise = np.diff(values_NK, axis=1), 1e-9 * np.abs(values_NK).max()
    if (gains_NK < -noise).any() or (np.diff(gains_NK, axis=1) > noise).any():
        raise ValueError(
            f"value='{value}': between low={low} and up={up} rollouts it must not fall, and each "
            "must add no more than the one before; use a concave fn, or raise low"
        )
