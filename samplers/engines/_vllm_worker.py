"""What a vLLM worker process can do besides: take weights by transformers names, score hotter."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from samplers.engines._requests import check_weight
from samplers.ring import Source


class Extension:
    """Mixed into vLLM's worker class (`worker_extension_cls`); each rank has one.

    A load replaces everything or is an error: vLLM fuses parameters, so half of them are none.
    Modules are made anew on the side and copied over the old ones as soon as they are complete.
    """

    # The worker's own, from vLLM
    rank: int
    device: torch.device
    model_runner: Any
    model_config: Any
    vllm_config: Any

    # Of the load under way
    load_shapes: Mapping[str, Sequence[int]]
    load_missing: set[str]

    def load_begin(self, shapes: Mapping[str, Sequence[int]], needed: Iterable[str]) -> None:
        """Start a load of a model with such parameters, of which `needed` must all come."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self.load_shapes, self.load_missing = shapes, set(needed)
        with torch.device(self.device):
            initialize_layerwise_reload(self.model_runner.get_model())

    def load_some(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Take some of the weights; anything wrong puts back what is not complete."""
        from vllm.config import set_current_vllm_config

        try:
            with (
                torch.no_grad(),
                torch.device(self.device),
                set_current_vllm_config(self.vllm_config),
            ):
                self.model_runner.get_model().load_weights(self._load_checked(weights))
        except BaseException:
            self.load_abandon()
            raise

    def _load_checked(self, weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for name, value in weights:
            # vLLM keeps a tensor until its module is complete, and the sender's memory is used
            # again before that. Arrays of Ray's object store are read-only: torch warns of those.
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            check_weight(name, tensor.shape, self.load_shapes)
            self.load_missing.discard(name)
            copied = tensor is not value and self.device.type == "cpu"
            yield name, tensor if copied else tensor.to(self.device, copy=True)

    def load_end(self) -> None:
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        if self.load_missing:
            self.load_abandon()
            raise ValueError(
                f"weights: {len(self.load_missing)} parameters are missing, among them "
                f"'{min(self.load_missing)}'; vllm loads all or none"
            )
        model = self.model_runner.get_model()
        # A tied head is never loaded itself. On a CPU it multiplies by a packed copy of its weight,
        # which vLLM leaves as it was.
        tied = [
            module
            for module in model.modules()
            if hasattr(module, "cpu_linear") and get_layerwise_info(module).can_load()
        ]
        with torch.no_grad(), torch.device(self.device), set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(model, self.model_config)
            for module in tied:
                if module.weight.numel():
                    module.quant_method.process_weights_after_loading(module)

    def load_abandon(self) -> None:
        """Put the old tensors back where the new ones are not complete."""
        from vllm.model_executor.model_loader.reload.layerwise import (
            _place_kernel_tensors,
            get_layerwise_info,
        )

        for module in self.model_runner.get_model().modules():
            info = get_layerwise_info(module)
            if info.can_load() and info.kernel_tensors is not None:
                _place_kernel_tensors(module, info)
            info.reset()

    def load_from(
        self, source: Source, shapes: Mapping[str, Sequence[int]], needed: Iterable[str]
    ) -> None:
        """Take all weights from a learner; an error here is one of the learner's, too."""
        from samplers import ring
        from samplers.engines import _vllm_cpu

        if source.kind in ("nccl", "ipc"):
            from samplers.engines import _vllm_transfer

            _vllm_transfer.receive(self, source.of(self.rank))
            return
        beside = _vllm_cpu.packing() if self.device.type == "cpu" else contextlib.nullcontext()
        with ring.read(source.of(self.rank)) as weights, beside:
            self.load_begin(shapes, needed)
            self.load_some(weights)
            self.load_end()

    def score_at(self, temperature: float) -> None:
        """Logprobs of prompts after temperature from now on; vLLM itself gives them before it."""
        runner = self.model_runner
        if hasattr(runner, "prompt_logprobs_worker"):  # model runner V2 (GPUs)
            worker = runner.prompt_logprobs_worker
            if worker is not None:
                compute = type(worker).compute_prompt_logprobs
                worker.compute_prompt_logprobs = functools.partial(
                    _cooled, functools.partial(compute, worker), temperature
                )
            return
        runner._get_prompt_logprobs_dict = functools.partial(
            _scaled, runner, type(runner)._get_prompt_logprobs_dict, temperature
        )


def _cooled(compute: Any, temperature: float, logits: Any, *args: Any, **kwargs: Any) -> Any:
    return compute(lambda hidden: logits(hidden) / temperature, *args, **kwargs)


def _scaled(runner: Any, compute: Any, temperature: float, *args: Any) -> Any:
    """Greedy rows are sampled with the same function: it is exchanged for this call alone."""
    sampler = runner.sampler
    plain = sampler.compute_logprobs
    sampler.compute_logprobs = lambda logits: plain(logits / temperature)
    try:
        return compute(runner, *args)
    finally:
        del sampler.compute_logprobs
