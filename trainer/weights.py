"""Weights on their way to the engines: copies in bounded buckets, every rank in one order."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainer import lora, policy, together, zero
from trainer.lora import Adapter

Room = Callable[[str, tuple[int, ...], Any], Tensor]
"""(name, shape, dtype) -> where a copy is to be written: `samplers.ring.Writer.room`, say."""


def sizes(model: Any) -> list[tuple[str, Any, tuple[int, ...]]]:
    """(name, dtype, shape) of all that `buckets` gives, in its order; nothing is gathered."""
    pairs = _own(model, lora.adapters(model))
    return [(lora.own_name(name), p.dtype, zero.shape(p)) for name, p in pairs]


def buckets(
    model: Any, bucket_bytes: int = 2**28, into: Room | None = None
) -> Iterator[list[tuple[str, Tensor]]]:
    """Copies of the parameters as (name, tensor), about `bucket_bytes` at a time.

    Collective: every rank must exhaust it. Rank 0 gets the data, and so does a rank that says what
    it goes `into` (else fresh memory); the others get as many empty lists. Under ZeRO-3 one bucket
    is gathered, copied and released before the next, so no rank holds more than one bucket beside
    its partition. A tied weight comes once, under the name it has first in the module, which is
    the one that transformers saves. A parameter larger than `bucket_bytes` gets a bucket of its
    own.

    Of a model with adapters: the merged weights under the model's own names, each gathered with
    its adapter. The model itself stays as it is.
    """
    import torch

    adapted = lora.adapters(model)
    for group in zero.groups(_own(model, adapted), bucket_bytes):
        bucket = []
        with zero.whole([p for name, weight in group for p in _needed(weight, adapted.get(name))]):
            for name, p in group if _leads() or into else []:
                own, adapter = lora.own_name(name), adapted.get(name)
                room = into(own, tuple(p.shape), p.dtype) if into else torch.empty_like(p)
                bucket.append((own, room.copy_(adapter.merged(p) if adapter else p.detach())))
        yield bucket


def _own(model: Any, adapted: Mapping[str, Adapter]) -> Iterator[tuple[str, nn.Parameter]]:
    """The model's parameters without those of adapters."""
    added = _added(adapted)
    return ((name, p) for name, p in model.named_parameters() if id(p) not in added)


def _added(adapted: Mapping[str, Adapter]) -> set[int]:
    return {id(p) for adapter in adapted.values() for p in adapter.parameters}


def _needed(weight: nn.Parameter, adapter: Adapter | None) -> list[nn.Parameter]:
    return [weight, *(adapter.parameters if adapter else ())]


def _leads() -> bool:
    import torch

    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def adapter(model: Any, bucket_bytes: int = 2**28) -> dict[str, Tensor]:
    """The adapters' weights, on the CPU of rank 0 (elsewhere empty). Collective."""
    added = _added(lora.adapters(model))
    pairs = ((name, p) for name, p in model.named_parameters() if id(p) in added)
    out: dict[str, Tensor] = {}
    for group in zero.groups(pairs, bucket_bytes):
        with zero.whole([parameter for _, parameter in group]):
            out |= {name: p.detach().cpu().clone() for name, p in group if _leads()}
    return out


def state(model: Any, bucket_bytes: int = 2**28) -> dict[str, Tensor]:
    """Everything transformers saves, on the CPU of rank 0 (elsewhere empty). Collective."""
    whole = {name: t.cpu() for bucket in buckets(model, bucket_bytes) for name, t in bucket}
    if whole:
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        entries = model.state_dict().items()
        whole |= {name: t.detach().cpu() for name, t in entries if name not in parameters}
    return whole


def export(model: Any, source: Path, folder: Path, beside: bool) -> None:
    """`folder` as transformers loads it, with the tokenizer files of `source`; with `beside` the
    adapter in a subfolder, as PEFT loads it onto `source`. Collective.

    Raises:
        OSError: on all ranks, where rank 0 cannot write.
    """
    whole, added = state(model), adapter(model) if beside else {}

    def write() -> None:
        with policy.quiet():
            model.save_pretrained(folder, state_dict=whole)
        _copy_tokenizer(source, folder)
        if beside:
            lora.write(model, added, folder / lora.ADAPTER, str(source))

    together.everywhere(write if _leads() else lambda: None)


def _copy_tokenizer(source: Path, target: Path) -> None:
    """What a model folder holds beside its weights and configuration, as it was."""
    kinds = {".json", ".jinja", ".model", ".txt", ".py"}
    for file in source.iterdir():
        wanted = file.suffix in kinds and not file.name.endswith(".index.json")
        if wanted and not (target / file.name).exists():
            shutil.copy2(file, target / file.name)
