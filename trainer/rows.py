"""Rollouts become training rows.

Shape suffixes: T tokens of a row, G rollouts of a group, C cuts, A answers per cut. Forced tokens
and the prompt are never trained on: mask False, behaviour NaN, version -1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samplers.types import Answer, Group, Rollout, Tokens
from trainer.types import Floats, Ints, TrainSequence

Bools = NDArray[np.bool_]


def rows(group: Group) -> list[TrainSequence]:
    """One plain row per trainable rollout, in order, with zero advantages.

    Annotations 'old' and 'ref' (one array per rollout, aligned with its row; empty where it was
    not scored) are placed in `old_T` and `ref_T`.
    """
    return [_annotated(plain_row(group, int(g)), group) for g in np.flatnonzero(trainable(group))]


def trainable(group: Group) -> Bools:
    """[G]: kept, and known (no loss where not)."""
    known_G = known(group)
    return known_G if group.kept_G is None else known_G & group.kept_G


def known(group: Group) -> Bools:
    """[G]: the final answer's verdict and reward are known, as far as they have been made."""
    known_G = np.ones(len(group), dtype=bool)
    if group.verdicts:
        known_G &= group.known_GCA[:, -1, 0]
    if group.rewards:
        known_G &= ~np.isnan(group.total_GCA[:, -1, 0])
    return known_G


def plain_row(group: Group, g: int) -> TrainSequence:
    """Prompt, the thought as far as the final answer saw it, final answer."""
    rollout = group.rollouts[g]
    final = rollout.final
    return _row(group, g, _head(rollout.thought, final.after), [final])


def tree_row(group: Group, g: int) -> TrainSequence:
    """Prompt, thought, and every answer of every cut as a fork from the thought (BRPO).

    An answer whose verdict is unknown is not trained on.
    """
    rollout = group.rollouts[g]
    forks = [answer for cut in rollout.answers for answer in cut]
    row = _row(group, g, _head(rollout.thought, rollout.final.after), forks)
    if not group.verdicts:
        return row
    known = [verdict.known for cut in group.verdicts[g] for verdict in cut]
    mask_T = row.mask_T.copy()
    at = len(row) - sum(len(answer.tokens) for answer in forks)
    for answer, is_known in zip(forks, known, strict=True):
        mask_T[at : at + len(answer.tokens)] &= is_known
        at += len(answer.tokens)
    return replace(row, mask_T=mask_T)


def branches(tree: TrainSequence) -> list[TrainSequence]:
    """A tree row as plain rows, one per answer: every trained token is trained in one of them.

    The first row holds the last answer, and the thought as far as that saw it. Rows that would
    train nothing are left out, but for the first.
    """
    starts = np.append(0, np.flatnonzero(tree.parent_T != np.arange(len(tree)) - 1))
    left_T = tree.mask_T.copy()
    out: list[TrainSequence] = []
    for leaf in np.setdiff1d(np.arange(len(tree)), tree.parent_T)[::-1]:
        runs, at = [], int(leaf)
        while at >= 0:
            first = int(starts[np.searchsorted(starts, at, side="right") - 1])
            runs.append(np.arange(first, at + 1))
            at = int(tree.parent_T[first])
        path = np.concatenate(runs[::-1])
        if not out or left_T[path].any():
            out.append(_path(tree, path, left_T))
            left_T[path] = False
    return out


def _path(tree: TrainSequence, path: NDArray[np.integer], mask_T: Bools) -> TrainSequence:
    """The tokens of one branch, root first, as a row that trains what `mask_T` says."""
    values = {field.name: getattr(tree, field.name) for field in fields(tree)}
    own: dict[str, Any] = {
        name: value[path] for name, value in values.items() if isinstance(value, np.ndarray)
    }
    own |= {"parent_T": np.arange(len(path), dtype=np.int32) - 1, "mask_T": mask_T[path]}
    return replace(tree, **own)


def supervised_row(prompt_ids_T: Ints, target_ids_T: Ints, prompt: int) -> TrainSequence:
    """A row to imitate: every target token is trained on with advantage 1; nobody sampled it."""
    ids_T = np.concatenate([prompt_ids_T, target_ids_T]).astype(np.int32)
    length, start = len(ids_T), len(prompt_ids_T)
    mask_T = np.arange(length) >= start
    return TrainSequence(
        ids_T=ids_T,
        parent_T=np.arange(length, dtype=np.int32) - 1,
        mask_T=mask_T,
        advantages_T=mask_T.astype(np.float32),
        behaviour_T=np.full(length, np.nan, np.float32),
        versions_T=np.full(length, -1, np.int32),
        prompt=prompt,
        group=prompt,
        rollout=-1,
    )


def weighted(rows: Sequence[TrainSequence], groups: Sequence[Group]) -> list[TrainSequence]:
    """Rows with advantages times their rollout's weight (`Group.weights_G`).

    Every policy loss is homogeneous in the advantage, so this weighs the rollout in the loss.
    """
    weights = {group.key: group.weights_G for group in groups if group.weights_G is not None}
    return [
        replace(row, advantages_T=row.advantages_T * np.float32(weights[row.group][row.rollout]))
        if row.group in weights
        else row
        for row in rows
    ]


def annotate(groups: Sequence[Group], name: str, values: Iterable[Floats]) -> list[Group]:
    """Groups with the annotation `name`: one array, aligned with its row, per known rollout.

    The order is that of `rows` of groups whose `kept_G` is None; an unknown rollout has no row and
    gets an empty array.
    """
    left = deque(values)
    assert len(left) == sum(int(known(group).sum()) for group in groups), f"{name}: other rows"
    out = []
    for group in groups:
        arrays = [left.popleft() if k else np.empty(0, np.float32) for k in known(group)]
        out.append(replace(group, annotations={**group.annotations, name: tuple(arrays)}))
    return out


def _annotated(row: TrainSequence, group: Group) -> TrainSequence:
    """The row with what the learners computed for its rollout."""

    def found(name: str) -> Floats | None:
        values = group.annotations.get(name, ())
        if row.rollout >= len(values) or not len(values[row.rollout]):
            return None
        values_T = values[row.rollout]
        assert len(values_T) == len(row), f"{name}: {len(values_T)} values, row of {len(row)}"
        return values_T

    return replace(row, old_T=found("old"), ref_T=found("ref"))


def _row(group: Group, g: int, thought: Tokens, forks: Sequence[Answer]) -> TrainSequence:
    rollout: Rollout = group.rollouts[g]
    prompt_length = len(rollout.prompt_ids_T)
    assert prompt_length, "a row begins with its prompt: the first token has nothing to score it"
    runs = [thought, *(fork.tokens for fork in forks)]
    lengths = [prompt_length, *map(len, runs)]
    starts = np.cumsum([0, *lengths])
    parent_T = np.arange(starts[-1], dtype=np.int32) - 1
    for fork, start in zip(forks, starts[2:-1], strict=True):
        if len(fork.tokens):
            parent_T[start] = prompt_length + fork.after - 1
    blank = np.full(prompt_length, np.nan, np.float32)
    behaviour_T = np.concatenate([blank, *(run.logprobs_T for run in runs)])
    mask_T = ~np.isnan(behaviour_T)
    versions_T = np.concatenate([np.full(prompt_length, -1), *map(_versions, runs)])
    return TrainSequence(
        ids_T=np.concatenate([rollout.prompt_ids_T, *(run.ids_T for run in runs)]),
        parent_T=parent_T,
        mask_T=mask_T,
        advantages_T=np.zeros(starts[-1], np.float32),
        behaviour_T=behaviour_T,
        versions_T=np.where(mask_T, versions_T, -1).astype(np.int32),
        prompt=rollout.prompt,
        group=group.key,
        rollout=g,
    )


def _versions(run: Tokens) -> Ints:
    """Weight version of each token of a run, from its spans."""
    versions_T = np.full(len(run), -1, np.int32)
    for first, version in run.spans:
        versions_T[first:] = version
    return versions_T


def _head(run: Tokens, length: int) -> Tokens:
    if length == len(run):
        return run
    return replace(run, ids_T=run.ids_T[:length], logprobs_T=run.logprobs_T[:length])
