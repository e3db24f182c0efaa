"""Where DeepSpeed keeps the truth of what is trained: float32 weights and optimiser states.

Each rank holds them in flat buffers that look different at every stage (DeepSpeed 0.19.8):

| ZeRO | float32 | bfloat16 |
|---|---|---|
| 0 | the weights themselves, in torch's optimiser | a copy of each (FP16_UnfusedOptimizer) |
| 1 | this rank's stretch of each parameter group | likewise (BF16_Optimizer) |
| 2 | likewise | likewise |
| 3 | this rank's part of each parameter, padded to equal sizes | likewise |

Muon's momentum of ZeRO 1 and 2 is that of whole matrices, on every rank that has a part of one;
but a stretch like the weights in BF16_Optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer import zero
from trainer.state.fragments import Span, shares

MASTER = "master"
"""Key of the float32 weights; other keys are the optimiser's."""
STEP = "step"
"""Key of AdamW's count of steps: one number a parameter."""


@dataclass(frozen=True)
class Part:
    """Some elements of one state of one trained parameter, in the engine's own memory."""

    name: str
    """Of the parameter."""
    key: str
    span: Span
    """Which elements of the flattened parameter (or, of `STEP`, of its one number)."""
    values: Tensor
    """These elements; to write here is to set them."""
    own: Span
    """What of it this rank saves: over all ranks, every element once."""


def parts(engine: Any) -> Iterator[Part]:
    """All that this rank holds. Optimiser states that the first step would make are made."""
    optimizer = engine.optimizer
    named = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return _partitioned(optimizer, named)
    if hasattr(optimizer, "fp32_groups_flat_partition"):
        return _stretches(optimizer, named, optimizer.fp32_groups_flat_partition)
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return _stretches(optimizer, named, optimizer.single_partition_of_fp32_groups)
    return _copies(optimizer, named)


def _copies(optimizer: Any, named: dict[str, Any]) -> Iterator[Part]:
    """ZeRO-0: every rank has everything."""
    groups = [group["params"] for group in optimizer.param_groups]
    names = {id(parameter): name for name, parameter in named.items()}
    trained = getattr(optimizer, "fp16_groups", groups)  # bfloat16: those of `groups` are masters
    everyone = shares({n: p.numel() for n, p in named.items()}, torch.distributed.get_world_size())
    mine = everyone[torch.distributed.get_rank()]
    for i, group in enumerate(groups):
        for weight, master in zip(trained[i], group, strict=True):
            name, whole = names[id(weight)], Span(0, master.numel())
            own = mine.get(name, Span(0, 0))
            for key, state in _states(optimizer, i, master).items():
                yield _part(name, key, whole, state.view(-1), own)


def _stretches(optimizer: Any, named: dict[str, Any], flats: list[Tensor]) -> Iterator[Part]:
    """ZeRO 1 and 2: a stretch of each group's parameters laid end to end."""
    whole_momentum = hasattr(optimizer, "params_in_partition")
    for name, parameter in named.items():
        fragment = parameter._hp_mapping
        if fragment is None:
            continue  # all of it lies on other ranks
        group, flat = fragment.param_group_index, flats[fragment.param_group_index]
        lies, counted = fragment.lp_fragment_address, fragment.hp_fragment_address
        span = Span(lies.start, lies.start + lies.numel)
        matrices = optimizer.params_in_partition[group] if whole_momentum else None
        for key, state in _states(optimizer, group, flat, matrices).items():
            if key == "momentum_buffer" and matrices is not None:
                before = next(i for i, p in enumerate(matrices) if p is parameter)
                begin = sum(p.numel() for p in matrices[:before])
                values = state.narrow(0, begin, parameter.numel())
                yield Part(name, key, Span(0, parameter.numel()), values, span)
            elif key == STEP:
                yield _part(name, key, span, state.view(-1), span)
            else:
                values = state.narrow(0, counted.start, counted.numel)
                yield _part(name, key, span, values, span)


def _partitioned(optimizer: Any, named: dict[str, Any]) -> Iterator[Part]:
    """ZeRO-3: a part of each parameter; the last ranks' end in padding."""
    for name, parameter in named.items():
        position = optimizer.grad_position[optimizer.get_param_id(parameter)]
        sub_group, offset, length = position
        start = length * torch.distributed.get_rank()
        count = max(0, min(length, zero.numel(parameter) - start))
        if not count:
            continue
        span = Span(start, start + count)
        flat = optimizer.fp32_partitioned_groups_flat[sub_group]
        group = optimizer.sub_group_to_group_id[sub_group]
        for key, state in _states(optimizer, group, flat).items():
            values = state.view(-1) if key == STEP else state.narrow(0, offset, count)
            yield _part(name, key, span, values, span)


def _part(name: str, key: str, span: Span, values: Tensor, own: Span) -> Part:
    """The count of steps is saved by who saves a parameter's first element."""
    if key != STEP:
        return Part(name, key, span, values, own)
    return Part(name, key, Span(0, 1), values, Span(0, int(own.size > 0 and own.start == 0)))


def _states(
    optimizer: Any, group: int, master: Tensor, matrices: list[Any] | None = None
) -> dict[str, Tensor]:
    """The float32 weights and the optimiser's states of them, made if there are none yet.

    `matrices`: whose whole momentum belongs to `master`; None: the momentum is like `master`.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    settings, state = inner.param_groups[group], inner.state[master]
    if settings.get("use_muon"):
        if "momentum_buffer" not in state:
            size = master.shape if matrices is None else (sum(p.numel() for p in matrices),)
            state["momentum_buffer"] = master.new_zeros(size, requires_grad=False)
    elif not state:  # as torch's AdamW does at its first step
        step_on = master.device if settings.get("fused") else torch.device("cpu")
        state[STEP] = torch.zeros((), dtype=torch.float32, device=step_on)
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.zeros_like(master, requires_grad=False)
    return {MASTER: master.detach()} | {k: v for k, v in state.items() if torch.is_tensor(v)}


@torch.no_grad()
def settle(engine: Any) -> None:
    """Make the model's weights follow from the float32 ones. Collective."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        optimizer.checkpoint_event_prologue()  # else small parameters, kept whole, stay the old
        for i in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(i)
        optimizer.checkpoint_event_epilogue()
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp16_groups"):
        for masters, weights in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
            for master, weight in zip(masters, weights, strict=True):
                weight.copy_(master)
