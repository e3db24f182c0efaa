"""gvm: rollouts where the variance of the gradient is, as a pilot has measured it.

GVM-RAFT, Yao et al. 2025 (arXiv:2505.02391; code: RLHFlow/GVM). At the first step of a block every
prompt of its steps is sampled `pilot` times. Where p of a prompt's rollouts are right and the
gradients of their log likelihoods have the norm G, the variance of n rollouts' mean is about
G^2 / (p n): least in sum where n grows as G / sqrt(p). With `algorithm: raft` this is GVM-RAFT++
(loss ppo_clip), with `grpo` GVM-GRPO.

A rollout is right or not by its final answer: that is the row whose gradient is measured.

Shape suffixes: N prompts of a block, G rollouts of a group.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from samplers.allocation._apportion import apportion
from samplers.allocation.base import (
    Annotate,
    Ask,
    Asks,
    Discard,
    Finish,
    PutBack,
    Receive,
    Sample,
    Stream,
    units,
)
from samplers.facts import CHUNKS, UPDATES
from samplers.seam import Component
from samplers.types import Group, Prompt

Floats = NDArray[np.float64]
Draw = tuple[int, Prompt]


class Config(Component):
    """What the pilot takes and how it is used. The defaults are the released script's, but `least`
    (there 1)."""

    every: int = Field(10, ge=1)
    """Steps of a block: between pilots. The last block of a stage is measured whole too: let
    `steps` be a multiple of it."""
    pilot: int = Field(8, ge=1)
    """Rollouts of every prompt by which it is measured, at the first step of its block."""
    alpha: float = Field(1e-3, ge=0)
    """With beta: keeps prompts that are almost never right from taking everything."""
    beta: float = Field(2.0, ge=1)
    """n grows as G / sqrt(p + alpha / p^(beta - 1))."""
    filter_threshold: float = Field(1.0, ge=0, le=1)
    """Prompts that are right more often than this get nothing; 0 and 1: no such filter."""
    filter_insufficient: float = Field(0.0, ge=0)
    """Prompts of which fewer right rollouts than this are to be expected get nothing; 0: off."""
    least: int = Field(2, ge=1)
    """A prompt that is sampled at all gets at least so many: a rollout alone teaches nothing where
    rollouts of a prompt are compared. Where that is too much for all, those with the least to gain
    get none. With `reuse` no prompt gets fewer. Published, for RAFT: 1."""
    most: int | None = Field(None, ge=1)
    """A prompt gets at most so many; what is then left over is not sampled, and reported. None: no
    bound, so that a single prompt may get all of a block."""
    scope: Literal["embedding", "last_layer", "full"] = "embedding"
    """The parameters whose gradient is measured: of the input embedding as released (with tied
    embeddings the head's as well), of the output head (no backward pass), or of everything."""
    weights: Literal["rollouts", "prompts"] = "rollouts"
    """Every rollout weighs the same [code], by which a prompt with more of them weighs more; or
    every prompt that is sampled weighs the same in its step."""
    count_pilot: bool = False
    """Take the pilot out of the rollouts: a block then samples every x prompts_per_step x
    rollouts_per_prompt in all, as many as uniform allocation, instead of training that many and
    sampling the pilot beside them [paper]."""
    reuse: bool = False
    """Train on the pilot too, as a group of its own; needs every=1, and rollouts_per_prompt counts
    it. What is sampled of a prompt after the pilot depends on the pilot, so the two are not pooled:
    each has its own baseline, and every prompt's later rollouts weigh the same together, whatever
    their number. Unbiased with algorithm rloo or raft; with a mean that includes the rollout itself
    but for the factor (n - 1) / n of each group."""

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.most is not None and self.most < self.least:
            raise ValueError(
                f"most={self.most} is below least={self.least}; raise the one or lower the other"
            )
        if self.reuse and self.every != 1:
            raise ValueError(
                f"reuse=true with every={self.every}: the pilot of later steps would train on "
                "weights that did not sample it; set every=1, or reuse=false"
            )
        for name in ("weights", "count_pilot"):
            value = getattr(self, name)
            if self.reuse and value != Config.model_fields[name].default:
                warnings.warn(
                    f"{name}={value} has no effect with reuse=true, which weighs prompts alike and "
                    "counts the pilot",
                    stacklevel=2,
                )
        return self

    def later(self, rollouts: int) -> int:
        """Mean rollouts of a prompt after the pilot."""
        return rollouts - self.pilot if self.reuse or self.count_pilot else rollouts


def weights_of(
    grad_norms: ArrayLike, accept_rates: ArrayLike, alpha: float = 1e-3, beta: float = 2.0
) -> Floats:
    """[N] G / sqrt(p + alpha / p^(beta - 1)); 0 where nothing was right or has a gradient.

    Args:
        grad_norms: [N] mean norm of the gradients of what was right.
        accept_rates: [N] share that was right.
    """
    norms_N, rates_N = np.asarray(grad_norms, float), np.asarray(accept_rates, float)
    on_N = (norms_N > 0) & (rates_N > 0)
    rates_N = np.where(on_N, rates_N, 1.0)
    return np.where(on_N, norms_N / np.sqrt(rates_N + alpha / rates_N ** (beta - 1)), 0.0)


def shares_of(
    weights_N: Floats,
    rates_N: Floats,
    total: int,
    filter_threshold: float = 0.0,
    filter_insufficient: float = 0.0,
) -> Floats:
    """[N] what part of the rollouts each prompt gets.

    All alike where every weight is 0 (the released code divides by zero); all 0 where the filters
    leave nothing.
    """
    if not weights_N.any():
        weights_N = np.ones_like(weights_N)
    shares_N = weights_N / weights_N.sum()
    if filter_threshold > 0:
        shares_N = np.where(rates_N <= filter_threshold, shares_N, 0.0)
    if filter_insufficient > 0:
        shares_N = np.where(rates_N * shares_N * total >= filter_insufficient, shares_N, 0.0)
    left = shares_N.sum()
    return shares_N / left if left else shares_N


def sizes_of(
    grad_norms: ArrayLike,
    accept_rates: ArrayLike,
    total: int,
    alpha: float = 1e-3,
    beta: float = 2.0,
    filter_threshold: float = 0.0,
    filter_insufficient: float = 0.0,
) -> NDArray[np.int64]:
    """[N] rollouts of each prompt, as the released code has them."""
    weights_N = weights_of(grad_norms, accept_rates, alpha, beta)
    rates_N = np.asarray(accept_rates, float)
    return apportion(
        shares_of(weights_N, rates_N, total, filter_threshold, filter_insufficient), total
    )


class Measured(NamedTuple):
    """What a pilot says of its prompt. NaN: nothing."""

    rate: float = np.nan
    """Share of its known final answers that are right."""
    norm: float = np.nan
    """Mean gradient norm of the right ones."""
    weight: float = 0.0


class Allocator:
    """Blocks of `every` steps, each of which draws `prompts` prompts and trains those that get
    rollouts: a block trains every x prompts x rollouts, less the pilot where that counts.

    The draws of a block's later steps are put back, and come first then. What they are to get is
    all that is remembered.

    Metrics of the step: allocation/pilot_rollouts, allocation/zero (prompts that get no rollouts);
    with a pilot, over its prompts, allocation/accept_rate, allocation/grad_norm (of the prompts
    that have one), allocation/unspent (rollouts of the block that bounds or filters forbid).
    """

    refills = False

    def __init__(self, config: Config, prompts: int, rollouts: int) -> None:
        """
        Raises:
            ValueError: the pilot or the bounds do not fit into the rollouts.
        """
        later = config.later(rollouts)
        self.config, self.prompts, self.rollouts, self.later = config, prompts, rollouts, later
        self.total = config.every * prompts * later
        _check(config, rollouts, self.total)
        self.apart = False
        self.sizes: dict[int, int] = {}
        """Rollouts that the draws of the block's later steps are to get."""
        self._figures: dict[str, float] = {}

    def allocate(self, stream: Stream) -> Asks:
        self._figures = {"allocation/pilot_rollouts": 0.0}
        if self.sizes:
            draws = [stream.next() for _ in range(self.prompts)]
        else:
            block = [stream.next() for _ in range(self.config.every * self.prompts)]
            yield from self._pilot(block)
            draws = block[: self.prompts]
            for one in block[self.prompts :]:
                yield PutBack(*one)
        sizes = {draw: self.sizes.pop(draw) for draw, _ in draws}
        asked = [n for n in sizes.values() if n]
        self._figures["allocation/zero"] = float(len(sizes) - len(asked))
        for draw, prompt in draws:
            if sizes[draw]:
                yield Sample(draw, prompt, sizes[draw])
        while (group := (yield Receive())) is not None:
            yield Finish(group, weights_G=self._weights(group, asked))

    def _pilot(self, draws: Sequence[Draw]) -> Generator[Ask, Any, None]:
        """Sample and measure `draws`; their sizes are known then."""
        for draw, prompt in draws:
            yield Sample(draw, prompt, self.config.pilot)
        pilots: dict[int, Group] = {}
        while (group := (yield Receive())) is not None:  # no earlier step leaves any: no chunks
            pilots[group.serial] = group
        # by draw: the order in which they came is not to change what is measured together
        with_right = tuple(g for _, g in sorted(pilots.items()) if _verdicts(g)[0].any())
        if with_right:
            for group in (yield Annotate(with_right, f"grad_norm:{self.config.scope}")):
                pilots[group.serial] = group
        self._allot([draw for draw, _ in draws], pilots)
        for _, group in sorted(pilots.items()):
            yield Finish(group) if self.config.reuse else Discard(group)

    def _allot(self, draws: Sequence[int], pilots: Mapping[int, Group]) -> None:
        config = self.config
        measured = [self.measure(pilots[d]) if d in pilots else Measured() for d in draws]
        rates_N, norms_N, weights_N = np.array(measured).T
        filters = (config.filter_threshold, config.filter_insufficient)
        shares_N = shares_of(weights_N, np.nan_to_num(rates_N), self.total, *filters)
        sizes_N = apportion(shares_N, self.total, config.least, config.most, config.reuse)
        self.sizes = dict(zip(draws, sizes_N.tolist(), strict=True))
        self._figures = {
            "allocation/pilot_rollouts": float(sum(map(len, pilots.values()))),
            "allocation/unspent": float(self.total - sizes_N.sum()),
            **_mean("allocation/accept_rate", rates_N),
            **_mean("allocation/grad_norm", norms_N),
        }

    def measure(self, group: Group) -> Measured:
        """Rate, norm and weight of an annotated pilot. Unknown verdicts and rollouts that were not
        measured count for nothing.

        With modes that are compared apart each has its own rate and norm, and the squares of their
        weights are added up by their share of the rollouts: so the variances add up.
        """
        right_G, known_G = _verdicts(group)
        norms_G = _norms(group)
        norms_G[~right_G] = np.nan
        square = 0.0
        for mine in units(group, self.apart).values():
            if known_G[mine].any() and np.isfinite(norms_G[mine]).any():
                rate = right_G[mine].sum() / known_G[mine].sum()
                found = weights_of(
                    np.nanmean(norms_G[mine]), rate, self.config.alpha, self.config.beta
                )
                square += len(mine) / len(group) * float(found) ** 2
        rate = right_G.sum() / known_G.sum() if known_G.any() else np.nan
        norm = np.nanmean(norms_G) if np.isfinite(norms_G).any() else np.nan
        return Measured(float(rate), float(norm), square**0.5)

    def _weights(self, group: Group, asked: Sequence[int]) -> Floats | None:
        """[G], or None: all 1.

        With `reuse` they must not depend on the pilot but by the number of the prompt's own
        rollouts: a mean of what was asked for would, where a bound leaves some of it unspent.
        """
        if not self.config.reuse and self.config.weights == "rollouts":
            return None
        mean = float(self.later) if self.config.reuse else float(np.mean(asked or [len(group)]))
        return np.full(len(group), mean / len(group))

    def observe(self, groups: list[Group]) -> None:
        """What counts is measured by the pilot."""

    def state_dict(self) -> dict[str, Any]:
        return {"sizes": [[draw, n] for draw, n in self.sizes.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sizes = {int(draw): int(n) for draw, n in state["sizes"]}

    def metrics(self) -> dict[str, float]:
        return dict(self._figures)


def _check(config: Config, rollouts: int, total: int) -> None:
    """Raise ValueError where pilot, bounds and total contradict each other."""
    counts = "reuse=true" if config.reuse else "count_pilot=true" if config.count_pilot else ""
    if config.pilot > rollouts:
        raise ValueError(
            f"pilot={config.pilot} is more than rollouts_per_prompt={rollouts}: prompts would be "
            f"measured with more rollouts than they are trained with; set pilot={rollouts} or less"
        )
    later = config.later(rollouts)
    needed = config.least if config.reuse else 1
    if later < needed:
        raise ValueError(
            f"pilot={config.pilot} with {counts} leaves {later} of rollouts_per_prompt={rollouts}, "
            f"and {needed} or more are needed; lower pilot or raise rollouts_per_prompt"
        )
    if config.least > total:
        raise ValueError(
            f"least={config.least} is more than the {total} rollouts of a block; set "
            f"least={total} or less"
        )
    if config.most is not None and config.most < later:
        raise ValueError(
            f"most={config.most} is below the {later} rollouts that a prompt gets on average, so "
            f"they could never be spent; set most={later} or more"
        )


def _verdicts(group: Group) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[G] final answers that are known to be right, and those that are known at all."""
    known_G = group.known_GCA[:, -1, 0]
    return group.correct_GCA[:, -1, 0] & known_G, known_G


def _norms(group: Group) -> Floats:
    """[G] measured gradient norms; NaN where there is none."""
    norms_G = np.full(len(group), np.nan)
    for g, found in enumerate(group.annotations.get("grad_norm", ())):
        if len(found) and np.isfinite(found[0]):
            norms_G[g] = found[0]
    return norms_G


def _mean(name: str, values_N: Floats) -> dict[str, float]:
    """A figure of what is known; none where nothing is."""
    known = values_N[~np.isnan(values_N)]
    return {name: float(known.mean())} if len(known) else {}


def sizes(config: Config, prompts: int, rollouts: int) -> tuple[int, int]:
    """Rollouts of a prompt: the fewest and the most that are asked for at once, or train."""
    total = config.every * prompts * config.later(rollouts)
    most = total if config.most is None else min(config.most, total)
    return min(config.pilot, config.least), max(config.pilot, most)


def spends(config: Config, prompts: int, rollouts: int) -> int:
    """The most rollouts of a step: a block's first, with its pilot, if its own prompts get all."""
    total = config.every * prompts * config.later(rollouts)
    own = total if config.most is None else min(config.most * prompts, total)
    return config.every * prompts * config.pilot + own


def expects(config: Config, prompts: int, rollouts: int) -> float:
    """Rollouts of a step, mean over a block."""
    return float(prompts * (config.pilot + config.later(rollouts)))


def trains(config: Config, prompts: int, rollouts: int) -> int:
    """Fewest rollouts of a group that trains: a pilot does only with `reuse`."""
    return min(config.pilot, config.least) if config.reuse else config.least


def refuses(config: Config) -> dict[str, str]:
    found = {CHUNKS: "a block is shared out when all of its pilot has been judged"}
    if config.reuse or config.weights == "prompts":
        names = ("reuse", "true", "false") if config.reuse else ("weights", "prompts", "rollouts")
        field, value, other = names
        found[UPDATES] = (
            f"{field}={value} makes the prompts of a step count alike under one denominator, and "
            f"each update has its own; set updates_per_batch=1, or {field}={other}"
        )
    return found
