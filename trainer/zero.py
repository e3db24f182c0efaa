"""DeepSpeed, and what one has to know about it: start an engine, gather weights, take a step.

Every trap here was measured (DeepSpeed 0.19.8) and has a test; the comments say which.
"""

from __future__ import annotations

import math
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer import optim
from trainer.optim import OptimConfig

if TYPE_CHECKING:
    from trainer.learner import LearnerConfig


def connect(
    rank: int, world_size: int, local_rank: int, address: str, port: int, timeout: float
) -> torch.device:
    """Join the process group; the device this rank computes on."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "DEEPSPEED_LOG_LEVEL": "error",
    }
    gpu = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
    # torch's advice to DeepSpeed about names of collectives, once per call
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed
    from deepspeed.comm import comm

    if not gpu:
        # Would be compiled at first use: 40 s and a C++ compiler. Likewise Muon's kernels.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        torch.compiler.set_stance("force_eager")
    else:
        torch.cuda.set_device(local_rank)
    if not torch.distributed.is_initialized():
        comm.cdb = None  # left over from an engine that was closed in this process
        backend, patience = "nccl" if gpu else "gloo", timedelta(seconds=timeout)
        store = meet(rank, world_size, address, port, patience)
        torch.distributed.init_process_group(
            backend, timeout=patience, world_size=world_size, rank=rank, store=store
        )
        deepspeed.init_distributed(
            dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=patience
        )
    return torch.device("cuda", local_rank) if gpu else torch.device("cpu")


def meet(rank: int, world_size: int, address: str, port: int, timeout: timedelta) -> Any:
    """Where ranks find each other. Left to itself it would listen at every address there is."""
    if address.startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    fd = None
    if rank == 0:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        fd = socket.create_server((address, port), family=family).detach()
    return torch.distributed.TCPStore(
        address, port, world_size, rank == 0, timeout, master_listen_fd=fd
    )


def settings(config: LearnerConfig, optimiser: OptimConfig, dtype: str) -> dict[str, Any]:
    """DeepSpeed's configuration. One micro-batch a call; accumulation is ours."""
    bfloat16 = dtype == "bfloat16"
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Left out it means 1.0. ZeRO-0 in float32 is clipped by `apply`, which needs the norm.
        "gradient_clipping": 0.0 if by_hand(config, dtype) else config.clip_grad,
        "bf16": {"enabled": bfloat16, **({"check_grad_overflow": True} if bfloat16 else {})},
        "zero_optimization": {"stage": config.zero},
        # Else micro-batches are added up in bfloat16, and the later ones round away. ZeRO-0 cannot:
        # DeepSpeed has no optimiser for that mix without partitions and adds up in bfloat16.
        **({"data_types": {"grad_accum_dtype": "fp32"}} if bfloat16 and config.zero else {}),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        **optim.deepspeed_section(optimiser),
    }


def by_hand(config: LearnerConfig, dtype: str) -> bool:
    """ZeRO-0 in float32: DeepSpeed hands the bare optimiser over; it takes no norm."""
    return config.zero == 0 and dtype == "float32"


def start(model: Any, config: LearnerConfig, optimiser: OptimConfig, dtype: str) -> Any:
    """A DeepSpeed engine around `model`.

    Raises:
        ValueError: Muon where it does not work.
    """
    optim.check(optimiser, config.zero, config.clip_grad)
    import deepspeed

    whole = settings(config, optimiser, dtype)
    if config.zero == 3:  # keep vectors (norms, biases) whole, and no matrix, however small
        hidden = model.config.get_text_config().hidden_size
        whole["zero_optimization"]["stage3_param_persistence_threshold"] = 10 * hidden
    client = None if optimiser.name == "muon" else optim.adamw(optimiser, model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with redirect_stdout(None):  # ZeRO-1 in bfloat16 prints its memory
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=client,
            model_parameters=None if client else optim.parameter_groups(optimiser, model),
            config=whole,
            dist_init_required=False,
        )
    if config.zero == 0 and dtype == "bfloat16":
        _as_if_new(engine.optimizer)
    # In bfloat16 ZeRO-3 rounds buffers too, rotary frequencies among them (see policy.load).
    for name, buffer in buffers.items():
        owner, _, last = name.rpartition(".")
        module = engine.module.get_submodule(owner)
        module._buffers[last] = buffer.to(module._buffers[last].device)
    return engine


def _as_if_new(wrapper: Any) -> None:
    """Undo the step without gradients that DeepSpeed allocates with at ZeRO-0 in bfloat16.

    It decays the weights once, and Adam counts it: real steps would begin at 0.74 of their size.
    """
    wrapper.optimizer.state.clear()
    for masters, weights in zip(wrapper.fp32_groups, wrapper.fp16_groups, strict=True):
        for master, weight in zip(masters, weights, strict=True):
            master.data.copy_(weight.data)


def apply(engine: Any, clip_grad: float, measure: bool) -> float:
    """Take the optimiser step; the global gradient norm before clipping.

    Not finite: no rank took the step and the gradients are gone. ZeRO 1-3 and bfloat16 see to
    that themselves; `measure` says that we have to.
    """
    if measure:
        parameters = [p for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if not torch.isfinite(norm):
            engine.zero_grad()
            return math.nan
        if clip_grad:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm)
        engine.step()
        return float(norm)
    engine.step()
    return float(engine.get_global_grad_norm()) if engine.was_step_applied() else math.nan


def discard(engine: Any) -> None:
    """Forget the gradients of an optimiser step that was broken off, at ZeRO-0."""
    engine.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def release(engine: Any) -> None:
    """After a backward pass that did not go through the engine: ZeRO-3 lets go of the weights of
    modules that it went through only in part."""
    offload = getattr(engine.optimizer, "parameter_offload", None)
    if offload is not None:
        offload.release_backward_leftovers()


def out_of_memory(error: RuntimeError) -> bool:
    """Of the GPU, or of the host (which says it in words only)."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in words)


def whole(parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
    """Inside, ZeRO-3 parameters are whole, to read; every rank enters. Else nothing happens."""
    if not any(hasattr(p, "ds_id") for p in parameters):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
        parameters, modifier_rank=None
    )
    return gathered


def numel(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter, partitioned or not."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole parameter, partitioned or not."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, value)
    return everyone


def groups(
    parameters: Iterator[tuple[str, nn.Parameter]], size: int
) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Consecutive named parameters, at most `size` bytes together (or one alone)."""
    group: list[tuple[str, nn.Parameter]] = []
    used = 0
    for name, parameter in parameters:
        cost = numel(parameter) * parameter.element_size()
        if group and used + cost > size:
            yield group
            group, used = [], 0
        group.append((name, parameter))
        used += cost
    if group:
        yield group


def close(engine: Any, leave: bool) -> None:
    """Free the engine's hooks and buffers; with `leave`, the process group too."""
    from deepspeed import comm

    engine.destroy()
    if leave:
        comm.destroy_process_group()  # DeepSpeed's: it also forgets the groups it keeps


def rng_state() -> dict[str, Tensor]:
    """torch's random state of this rank."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
