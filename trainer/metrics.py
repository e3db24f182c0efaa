"""What a step amounts to: figures of its groups, of its optimiser steps, and of its time.

Keys that start with `time/`, `memory/` or `faults/` depend on the machine, all others on
recipe and seed alone. Shape suffixes as in samplers/types.py.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.verdict import UNKNOWN
from samplers.allocation.base import mixed, units
from samplers.types import Group, Rollout
from trainer.rows import trainable

MACHINE = ("time/", "memory/", "faults/", "system/")
"""Prefixes of the metrics that differ between two runs of one recipe and seed."""
LEVELS = 16
"""Difficulties that are told apart at most."""
UNLIKELY = 1e-6
"""Probability below which a repeated rollout is no chance."""
FINISHES = ("stop", "length", "abort", "repetition")
Number = float | int


class Clock:
    """Time per phase, of all threads. Phases may nest: a thread counts in its innermost alone.

    The thread that makes the clock owns the step: its phases and the rest (`other`) sum to it.
    Phases of other threads run beside it and are told as `overlapped`, so that the same rest is
    still known. A phase that two threads are in at once is counted once.

    Phases that throughput is read from: `generate`, `train`. `lap` is called once a step.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._owned = 0.0
        self._owner = threading.get_ident()
        self._stacks: dict[int, list[str]] = {}
        self._lock = threading.Lock()
        self._began = self._mark = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        thread = threading.get_ident()
        with self._lock:
            self._charge()
            self._stacks.setdefault(thread, []).append(name)
        try:
            yield
        finally:
            with self._lock:
                self._charge()
                self._stacks[thread].pop()
                if not self._stacks[thread]:  # threads come and go
                    del self._stacks[thread]

    def lap(self) -> dict[str, float]:
        """Seconds per phase since the last lap, and `step`: the owner's phases and the rest.

        `overlapped`, where there is any: seconds of the phases that are not the owner's.
        """
        with self._lock:
            self._charge()
            seconds = dict(self._seconds)
            overlapped = sum(seconds.values()) - self._owned
            if overlapped > 1e-9:
                seconds["overlapped"] = overlapped
            seconds["step"] = self._mark - self._began
            self._seconds.clear()
            self._owned, self._began = 0.0, self._mark
        return seconds

    def _charge(self) -> None:
        """The time since the last change goes to the phases that threads were in."""
        now = time.perf_counter()
        passed, self._mark = now - self._mark, now
        for name in {stack[-1] for stack in self._stacks.values()}:
            self._seconds[name] += passed
        if self._owner in self._stacks:
            self._owned += passed


def summarise(
    groups: Sequence[Group],
    batch: Mapping[str, Number] | None = None,
    timings: Mapping[str, float] | None = None,
    discarded: Sequence[Group] = (),
    apart: bool = False,
) -> dict[str, Number]:
    """One step as flat figures.

    Of everything that was sampled for it, whether it trains or not; rewards, of groups that train.

    Args:
        groups: what trains, verified and rewarded.
        batch: metrics of the optimiser steps (loss, entropy, kl, clip fractions, engine gap, ...);
            they pass through under their own names. `tokens` among them gives training tokens/s.
        timings: `Clock.lap()`.
        discarded: what an allocator sampled, and does not train.
        apart: only rollouts of a mode are compared with each other.
    """
    out: dict[str, Number] = {}
    every = [*groups, *discarded]
    if every:
        out |= _outcomes(every) | _gradient(groups, every, apart) | _rewards(groups)
        out |= _spent(groups, every) | _given(every)
        if there := _made(every):
            rollouts = [r for group in there for r in group.rollouts]
            out |= _lengths(rollouts) | _finishes(rollouts) | _apart(there) | _suspicious(there)
    out |= dict(batch or {})
    if timings:
        out |= _times(timings, out)
        out |= _memory()
    return out


def _made(groups: Sequence[Group]) -> list[Group]:
    """Without rollouts that no engine survived: they have no length, and did not end."""
    out = []
    for group in groups:
        pairs = zip(group.rollouts, group.verdicts, strict=True)
        if made := [pair for pair in pairs if not pair[0].unmade]:
            rollouts, verdicts = zip(*made, strict=True)
            out.append(replace(group, rollouts=rollouts, verdicts=verdicts))
    return out


def effective_gradient_ratio(outcomes: Sequence[ArrayLike]) -> dict[str, float]:
    """Share of prompts, and of responses, in groups that are neither all right nor all wrong.

    `outcomes`: per group an array [G] or [G, C, A] of 0 and 1, NaN where unknown. Nested budgets
    are mixed where any cut is. (Knapsack RL, Li et al. 2025.)
    """
    sizes, teach, right, wrong = [], [], [], []
    for outcome in outcomes:
        scores = np.asarray(outcome, dtype=np.float64)
        scores = scores.reshape(len(scores), scores.shape[1] if scores.ndim > 1 else 1, -1)
        known = ~np.isnan(scores)
        some, none = (known & (scores > 0)).any(), (known & (scores <= 0)).any()
        rights_GC = np.where(known.any(axis=2), _share(scores > 0, known), np.nan)
        sizes.append(len(scores))
        teach.append(mixed(rights_GC))
        right.append(bool(some and not none))
        wrong.append(bool(none and not some))
    return {
        "prompt_level": float(np.mean(teach)),
        "response_level": float(np.average(teach, weights=sizes)),
        "all_positive_ratio": float(np.mean(right)),
        "all_negative_ratio": float(np.mean(wrong)),
    }


def spread(name: str, values: ArrayLike) -> dict[str, float]:
    """Mean, median and 95th percentile, as name/mean, name/median, name/p95."""
    array = np.asarray(values, dtype=np.float64)
    return {
        f"{name}/mean": float(array.mean()),
        f"{name}/median": float(np.median(array)),
        f"{name}/p95": float(np.quantile(array, 0.95)),
    }


def _outcomes(groups: Sequence[Group]) -> dict[str, Number]:
    """Accuracy at the largest budget, reward components, mixed groups, verdicts by status."""
    outcomes = [np.where(g.known_GCA, g.correct_GCA, np.nan) for g in groups]
    final = np.concatenate([o[:, -1].ravel() for o in outcomes])
    out: dict[str, Number] = {"accuracy": _mean(final)}
    out["accuracy/prompts"] = _mean(np.array([_mean(o[:, -1].ravel()) for o in outcomes]))
    if any(len(r.plan.cuts) > 1 for g in groups for r in g.rollouts):
        out["accuracy/cuts"] = _mean(np.concatenate([o.ravel() for o in outcomes]))
    verdicts = [v for g in groups for r in g.verdicts for cut in r for v in cut]
    statuses = Counter(v.status for v in verdicts)
    for status in ("no_answer", "unparseable"):
        out[status] = statuses[status] / len(verdicts)
    out["unknown"] = sum(statuses[status] for status in UNKNOWN) / len(verdicts)
    return out | {f"unknown/{status}": statuses[status] for status in sorted(UNKNOWN)}


def _suspicious(groups: Sequence[Group]) -> dict[str, Number]:
    """What alarms read (trainer/alarms.py) that is no outcome. NaN where nothing says it.

    duplicates: of the rollouts that come after another one of their group, the share whose sampled
    tokens equal an earlier one's; duplicates/unlikely: the same, where the policy itself gives that
    less than one chance in a million.
    forced: share of thoughts that their budget cut and that were closed for the model.
    extraction_failures: share without a readable answer, of what the model ended itself (a
    response that the cap ended is `truncated`) and whose verdict is known.
    answer_leak: share of sampled tokens that stand in answers, of rollouts that answered; and
    answer_tokens/given: sampled tokens of their final answers, mean.
    """
    rollouts = [r for group in groups for r in group.rollouts]
    ended = [
        verdict.status in ("no_answer", "unparseable")
        for group in groups
        for rollout, verdicts in zip(group.rollouts, group.verdicts, strict=True)
        for answers, judged in zip(rollout.answers, verdicts, strict=True)
        for answer, verdict in zip(answers, judged, strict=True)
        if answer.tokens.finish == "stop" and answer.probability is None and verdict.known
    ]
    answered = [r for r in rollouts if r.final.reached]
    leaked = sum(int((~a.tokens.forced_T).sum()) for r in answered for a in r.made)
    return {
        **_duplicates(groups),
        "forced": sum(map(_cut_off, rollouts)) / len(rollouts),
        "extraction_failures": _mean(np.array(ended, dtype=np.float64)),
        "answer_leak": leaked / sum(r.sampled_tokens for r in answered) if leaked else math.nan,
        "answer_tokens/given": _mean(np.array([r.answer_tokens for r in answered], np.float64)),
    }


def _cut_off(rollout: Rollout) -> bool:
    """Its thought did not end by itself, and an answer was made all the same."""
    return rollout.final.reached and not rollout.ended and rollout.thought.finish != "stop"


def _duplicates(groups: Sequence[Group]) -> dict[str, Number]:
    later = repeated = unlikely = 0
    for group in groups:
        said: set[tuple[bytes, ...]] = set()
        for n, rollout in enumerate(group.rollouts):
            runs = [rollout.thought, *(answer.tokens for answer in rollout.made)]
            says = tuple(run.ids_T[~run.forced_T].tobytes() for run in runs)
            if says in said:
                logprob = sum(float(np.nansum(run.logprobs_T, dtype=np.float64)) for run in runs)
                repeated += 1
                unlikely += math.log(n) + logprob < math.log(UNLIKELY)
            said.add(says)
        later += max(len(group) - 1, 0)
    shares = {"duplicates": repeated, "duplicates/unlikely": unlikely}
    return {name: count / later if later else math.nan for name, count in shares.items()}


def _gradient(groups: Sequence[Group], every: Sequence[Group], apart: bool) -> dict[str, Number]:
    """How much of what was sampled lay where right and wrong ones are compared (Knapsack RL's
    effective gradient ratio; with `apart` each mode of a prompt counts as one), and how much of it
    trains there: what was selected away or discarded teaches at most by a baseline."""
    outcomes, tokens, kept = [], [], []
    trained = {group.key: trainable(group) for group in groups}
    for group in every:
        outcome_GCA = np.where(group.known_GCA, group.correct_GCA, np.nan)
        sampled_G = np.array([r.sampled_tokens for r in group.rollouts])
        kept_G = trained.get(group.key, np.zeros(len(group), dtype=bool))
        for mine in units(group, apart).values():
            outcomes.append(outcome_GCA[mine])
            tokens.append(sampled_G[mine])
            kept.append(kept_G[mine])
    ratio = effective_gradient_ratio(outcomes)
    teach = [effective_gradient_ratio([outcome])["prompt_level"] for outcome in outcomes]
    sizes, sums = [len(k) for k in kept], [int(t.sum()) for t in tokens]
    used = [int(k.sum()) for k in kept]
    paid = [int(t[k].sum()) for t, k in zip(tokens, kept, strict=True)]
    return {
        "gradient/effective_prompts": ratio["prompt_level"],
        "gradient/effective_responses": ratio["response_level"],
        "gradient/effective_tokens": float(np.dot(teach, sums) / max(sum(sums), 1)),
        "gradient/trained_responses": float(np.dot(teach, used) / sum(sizes)),
        "gradient/trained_tokens": float(np.dot(teach, paid) / max(sum(sums), 1)),
        "gradient/all_right": ratio["all_positive_ratio"],
        "gradient/all_wrong": ratio["all_negative_ratio"],
    }


def _share(right_GCA: NDArray[np.bool_], known_GCA: NDArray[np.bool_]) -> NDArray[np.float64]:
    return (right_GCA & known_GCA).sum(axis=2) / np.maximum(known_GCA.sum(axis=2), 1)


def _rewards(groups: Sequence[Group]) -> dict[str, Number]:
    """Means of the reward's components."""
    out: dict[str, Number] = {}
    for name in sorted({name for g in groups for name in g.rewards}):
        parts = [g.rewards[name].ravel() for g in groups if name in g.rewards]
        out[f"reward/{name}"] = _mean(np.concatenate(parts))
    for name in sorted({name for g in groups for name in g.token_rewards}):
        sums = [t.sum() for g in groups for t in g.token_rewards.get(name, ())]
        out[f"reward/{name}"] = float(np.mean(sums))
    if groups and all(g.rewards for g in groups):
        out["reward/total"] = _mean(np.concatenate([g.total_GCA.ravel() for g in groups]))
    return out


def _spent(groups: Sequence[Group], every: Sequence[Group]) -> dict[str, Number]:
    """Rollouts and tokens that were sampled for this step, and how many of them train.

    A rollout that is selected away counts in its group's statistics all the same; one whose
    verdict is unknown does not train. Probes sample nothing: the tokens that were put in at their
    cuts, the gold answer among them, are `tokens/scored`.
    """
    used = [r for g in groups for r, k in zip(g.rollouts, trainable(g), strict=True) if k]
    sampled = sum(r.sampled_tokens for g in every for r in g.rollouts)
    rollouts, tokens = sum(map(len, every)), sum(r.sampled_tokens for r in used)
    answers = (cut[0] for g in every for r in g.rollouts for cut in r.answers)
    probes = [answer for answer in answers if answer.probability is not None]
    scored = {"tokens/scored": sum(len(p.tokens) for p in probes)} if probes else {}
    return {
        "groups": len(groups),
        "rollouts": rollouts,
        "rollouts_kept": len(used),
        "rollouts_discarded": rollouts - len(used),
        "tokens/sampled": sampled,
        "tokens/kept": tokens,
        "tokens/discarded": sampled - tokens,
        **scored,
    }


def _given(every: Sequence[Group]) -> dict[str, Number]:
    """How the rollouts were spread over prompts, and over their difficulties (few, or none)."""
    draws: Counter[int] = Counter()
    levels: dict[Any, dict[int, int]] = {}
    for group in every:
        draws[group.serial] += len(group)
        difficulty = group.prompt.meta.get("difficulty")
        if isinstance(difficulty, int | str):
            at = levels.setdefault(difficulty, {})
            at[group.serial] = at.get(group.serial, 0) + len(group)
    counts = list(draws.values())
    out: dict[str, Number] = dict(spread("rollouts_per_prompt", counts))
    out |= {"rollouts_per_prompt/min": min(counts), "rollouts_per_prompt/max": max(counts)}
    if len(levels) <= LEVELS:
        for level in sorted(levels, key=str):
            mean = float(np.mean(list(levels[level].values())))
            out[f"rollouts_per_prompt/difficulty={level}"] = mean
    return out


def _apart(groups: Sequence[Group]) -> dict[str, Number]:
    """Accuracy and thinking tokens of each mode or announced budget, where rollouts have one."""
    right: dict[str, list[float]] = {}
    think: dict[str, list[int]] = {}
    for group in groups:
        final_G = np.where(group.known_GCA, group.correct_GCA, np.nan)[:, -1, 0]
        for rollout, correct in zip(group.rollouts, final_G, strict=True):
            right.setdefault(rollout.plan.subgroup, []).append(float(correct))
            think.setdefault(rollout.plan.subgroup, []).append(rollout.think_tokens)
    named = [key for key in sorted(right) if key]
    return {f"accuracy/{key}": _mean(np.array(right[key])) for key in named} | {
        f"think_tokens/{key}": float(np.mean(think[key])) for key in named
    }


def _lengths(rollouts: Sequence[Rollout]) -> dict[str, Number]:
    return spread("think_tokens", [r.think_tokens for r in rollouts]) | spread(
        "answer_tokens", [r.answer_tokens for r in rollouts]
    )


def _finishes(rollouts: Sequence[Rollout]) -> dict[str, Number]:
    """Shares by finish reason of the last sampled run, and of thoughts that closed themselves."""
    last = [r.final.tokens if len(r.final.tokens) else r.thought for r in rollouts]
    counts: Counter[str] = Counter(tokens.finish for tokens in last)
    shares: dict[str, Number] = {f"finish/{f}": counts[f] / len(rollouts) for f in FINISHES}
    for name in ("truncated", "closed"):
        shares[name] = sum(getattr(r, name) for r in rollouts) / len(rollouts)
    return shares


def _times(timings: Mapping[str, float], figures: Mapping[str, Number]) -> dict[str, Number]:
    out: dict[str, Number] = {f"time/{name}": seconds for name, seconds in timings.items()}
    step = timings.get("step", 0.0)
    if step > 0:
        apart = ("step", "overlapped")
        inside = sum(seconds for name, seconds in timings.items() if name not in apart)
        inside -= timings.get("overlapped", 0.0)
        out["time/other_share"] = max(0.0, 1 - inside / step)
    for phase, tokens in (("generate", "tokens/sampled"), ("train", "tokens")):
        if timings.get(phase) and tokens in figures:
            out[f"time/{phase}_tokens_per_s"] = figures[tokens] / timings[phase]
    return out


def verification(stats: Mapping[str, float]) -> dict[str, Number]:
    """Seconds that an answer takes a verifier process, of the latest ones."""
    quantiles = [name for name in ("p50", "p99") if f"latency_{name}" in stats]
    return {f"time/verdict_{name}": stats[f"latency_{name}"] for name in quantiles}


def _memory() -> dict[str, Number]:
    import psutil

    return {"memory/driver_gb": psutil.Process().memory_info().rss / 2**30}


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what is known; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
