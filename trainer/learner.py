"""One data-parallel rank of the learner: optimiser steps, scores, saved states.

A plain class; `launch/fleet.py` wraps it in a Ray actor. Every public method is collective: all
ranks call it together, in one order.

Shape suffixes: N scored tokens of a micro-batch.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from samplers.seam import Component
from trainer.losses import LossConfig, needs, policy_loss
from trainer.optim import OptimConfig, set_rates
from trainer.ports import free_port
from trainer.types import Floats, MicroBatch

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.gradnorms import Scope
    from trainer.lora import LoraConfig
    from trainer.reference import Reference
    from trainer.tally import Tally

Update = Sequence[MicroBatch]
"""The micro-batches of one optimiser step on one rank; equally many on every rank."""


class LearnerConfig(Component):
    """How the learners are spread and what they keep in memory."""

    ranks: int = Field(1, ge=1)
    """Data-parallel ranks, one process each."""
    zero: Literal[0, 1, 2, 3] = 0
    """What DeepSpeed partitions over the ranks: nothing, optimiser state, gradients, weights."""
    clip_grad: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 turns clipping off."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, a third more time."""
    head_elements: int = Field(2**25, ge=1)
    """Largest logits tensor, in elements (tokens x vocabulary); more is done in chunks."""
    threads: int = Field(1, ge=1)
    """CPU threads of a rank. On a CPU more ranks gain more than more threads."""
    timeout: float = Field(1800.0, gt=0)
    """Seconds a rank waits for the others before it gives up."""


class Learner:
    """Weights, optimiser and reference of one rank.

    Args:
        path: a model folder that transformers loads.
        total_steps: optimiser steps of the stage; the schedule ends there.
        temperature: the sampling temperature; logprobs are those after it.
        lora: train adapters, first drawn from `seed`, and leave the model's own weights alone.
        max_bad_steps: non-finite steps in a row before `step` raises.

    Raises:
        ValueError: a combination of settings, or a model, that would train wrongly.
    """

    def __init__(
        self,
        path: str | Path,
        config: LearnerConfig,
        optim: OptimConfig,
        loss: LossConfig,
        *,
        total_steps: int,
        rank: int = 0,
        local_rank: int = 0,
        address: str = "127.0.0.1",
        port: int | None = None,
        temperature: float = 1.0,
        dtype: Literal["float32", "bfloat16"] = "float32",
        attention: str = "sdpa",
        trust_remote_code: bool = False,
        lora: LoraConfig | None = None,
        seed: int = 0,
        max_bad_steps: int = 3,
    ) -> None:
        import torch

        from samplers import seeds
        from trainer import policy, zero
        from trainer.logprobs import Scorer

        assert port is not None or config.ranks == 1, "several ranks need a port to meet at"
        self.path, self.config, self.optim, self.loss = str(path), config, optim, loss
        self.lora, self.seed = lora, seed
        self.rank, self.dtype, self.temperature = rank, dtype, temperature
        self.total_steps, self.max_bad_steps = total_steps, max_bad_steps
        self.updates, self.bad_steps = 0, 0
        self._notes: list[str] = []
        self._load: dict[str, Any] = {"dtype": dtype, "attention": attention}
        self._load["trust_remote_code"] = trust_remote_code
        self._joined = not torch.distributed.is_initialized()
        self.device = zero.connect(
            rank, config.ranks, local_rank, address, port or free_port(), config.timeout
        )
        torch.set_num_threads(config.threads)
        torch.manual_seed(seeds.key(seed, rank))
        settings = zero.settings(config, optim, dtype) if config.zero == 3 else None
        model = policy.load(self.path, zero3=settings, lora=lora, seed=seed, **self._load)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.engine = zero.start(model, config, optim, dtype)
        self.model = self.engine.module
        self.scorer = Scorer(self.model, temperature, config.head_elements)
        self.engine.train()
        self.scorer.check(self.engine)
        self._reference: Reference | None = None
        self.moving = loss.kl != "none" and loss.reference == "ema"

    def step(self, updates: Sequence[Update], epochs: int = 1) -> dict[str, Any]:
        """Take the optimiser steps of one batch, `epochs` times over.

        The loss is the plain sum over all micro-batches and ranks: `weights_N` hold every
        denominator. Where a batch is used more than once, `old` logprobs are those before its
        first update (computed here if the batch lacks them), and likewise `ref`.

        Returns:
            Means over the batch, the same on every rank: the loss's metrics, `loss` (per optimiser
            step), `grad_norm` (before clipping), `lr` (of the last step), `tokens` trained on,
            `steps` taken, `skipped_steps` and, with those, `bad_prompts`; `notes`, lines that the
            user should read, of all ranks. Of this rank: `seconds` and `peak_memory_mb`.

        Raises:
            FloatingPointError: `max_bad_steps` steps in a row had no finite loss or gradient.
        """
        from trainer import zero
        from trainer.tally import Tally, peak_memory_mb

        started, self._notes = time.perf_counter(), []
        updates = self._annotated(updates, epochs)
        tally = Tally(self.device)
        for _ in range(epochs):
            for update in updates:
                if update:  # a step that nothing is trained on has no micro-batches, on any rank
                    self._update(update, tally)
        metrics = tally.means()
        everyone = zero.gather_objects(self._notes)
        metrics["notes"] = list(dict.fromkeys(note for notes in everyone for note in notes))
        metrics["lr"] = self.optim.lr * self.optim.factor(
            max(0, self.updates - 1), self.total_steps
        )
        metrics["seconds"] = time.perf_counter() - started
        metrics["peak_memory_mb"] = peak_memory_mb(self.device)
        return metrics

    def _update(self, update: Update, tally: Tally) -> None:
        """One optimiser step, or none where something is not finite: then on no rank."""
        import torch

        from trainer import zero

        set_rates(self.optim, self.engine.optimizer, self.updates, self.total_steps)
        update, losses, metrics = self._accumulate(update)
        measure = zero.by_hand(self.config, self.dtype)
        norm = zero.apply(self.engine, self.config.clip_grad, measure)
        if math.isfinite(norm):
            self.bad_steps = 0
            self.updates += 1
            if self.moving:
                self.reference.follow(self.model, self.loss.reference_decay)
            tokens = sum(int((m.weights_N > 0).sum()) for m in update)
            tally.add(losses, metrics, norm, tokens)
        else:
            prompts = self._bad_step(update, torch.stack(losses).isfinite().tolist())
            tally.skip(prompts)
            self._notes.append(
                f"loss or gradient not finite: an optimiser step was skipped; its prompts {prompts}"
            )

    def _accumulate(self, update: Update) -> tuple[Update, list[Tensor], list[dict[str, Tensor]]]:
        """Forward and backward of all micro-batches: the same, their losses and metrics.

        One that does not fit into memory is halved, once, and the step begun anew, for the
        gradient may already hold a part of it.
        """
        from trainer import zero

        uncut = {id(micro) for micro in update}
        while True:
            losses, metrics = [], []
            try:
                for i, micro in enumerate(update):
                    # Without it ZeRO 1 and 2 silently keep the last micro-batch's gradient alone.
                    self.engine.set_gradient_accumulation_boundary(i == len(update) - 1)
                    loss, sums = self._forward(micro)
                    # DeepSpeed averages over the ranks; ours is a sum.
                    self.engine.backward(loss * self.config.ranks)
                    losses.append(loss.detach())
                    metrics.append(sums)
                return update, losses, metrics
            except RuntimeError as error:
                reason = str(error)
                if not zero.out_of_memory(error):
                    raise
            # Out of the handler: its traceback held on to the tensors that did not fit.
            update = self._halved(update, len(losses), uncut, reason)

    def _halved(self, update: Update, at: int, uncut: set[int], reason: str) -> Update:
        """The update with micro-batch `at` in two halves and no gradient left of it."""
        from trainer import zero
        from trainer.batching import halve

        micro = update[at]
        size = f"a micro-batch of {len(micro.ids_BT)} x {micro.ids_BT.shape[1]} tokens"
        if self.config.zero or id(micro) not in uncut:
            # Beyond ZeRO-0 the ranks talk in the middle of it: one cannot start over alone.
            raise RuntimeError(
                f"out of memory in {size}; lower tokens_per_micro_batch, or set "
                f"learner.gradient_checkpointing ({reason})"
            )
        first, second = halve(micro)
        zero.discard(self.engine)
        self._notes.append(
            f"rank {self.rank}: out of memory in {size}: halved and tried again; lower "
            "tokens_per_micro_batch to save the time"
        )
        warnings.warn(self._notes[-1], stacklevel=2)
        return [*update[:at], first, second, *update[at + 1 :]]

    def _forward(self, micro: MicroBatch, module: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Its part of the loss, and its metrics; of the bare `module` if backward is our own."""
        import torch

        from trainer import policy

        def put(array: Any) -> Tensor | None:
            return None if array is None else policy.tensor(array, self.device)

        module = module or self.engine
        current_N, entropy_N = policy.score(self.scorer, module, micro, self.device)
        loss, metrics = policy_loss(
            self.loss,
            current_N,
            entropy_N if self.loss.entropy_coef else entropy_N.detach(),
            weights_N=put(micro.weights_N),
            advantages_N=put(micro.advantages_N),
            behaviour_N=put(micro.behaviour_N),
            row_N=policy.tensor(micro.row_N, self.device).long(),
            rows=len(micro.lengths_B),
            old_N=put(micro.old_N),
            ref_N=put(micro.ref_N),
        )
        # A loss that is not finite may have a finite gradient. Then spoil it, without waiting for
        # the device: every rank sees the global norm, and skips the step.
        health = torch.where(loss.detach().isfinite(), 1.0, math.nan)
        current_N.register_hook(lambda grad_N: grad_N * health)
        return loss, metrics

    def _bad_step(self, update: Update, finite: list[bool]) -> list[int]:
        """Prompts of the micro-batches to blame, on any rank; raises after too many in a row."""
        from trainer.tally import blamed

        self.bad_steps += 1
        prompts = blamed(update, finite)
        if self.bad_steps >= self.max_bad_steps:
            raise FloatingPointError(
                f"loss or gradient not finite in {self.bad_steps} optimiser steps in a row; the "
                f"last held prompts {prompts}; lower optim.lr, or raise guard.bad_steps"
            )
        return prompts

    def score(
        self, micro_batches: Update, which: Literal["policy", "reference"] = "policy"
    ) -> list[tuple[Floats, Floats]]:
        """(logprobs_N, entropy_N) of each micro-batch under the current or the reference policy."""
        import torch

        from trainer import lora, policy

        assert which in ("policy", "reference"), which
        scorer, module = self.scorer, self.engine
        switch: AbstractContextManager[None] = nullcontext()
        if which == "reference" and self.lora:  # without its adapter the policy is the reference
            switch = lora.switched_off(self.model)
        elif which == "reference":
            module, scorer = self.reference.model, self.reference.scorer
        with torch.no_grad(), switch:
            scored = (policy.score(scorer, module, m, self.device) for m in micro_batches)
            return [(logp.cpu().numpy(), entropy.cpu().numpy()) for logp, entropy in scored]

    def norms(self, micro_batches: Update, scope: Scope) -> list[Floats]:
        """[B] of each micro-batch: see `trainer.gradnorms`."""
        from trainer import gradnorms

        return [gradnorms.norms(self, micro, scope) for micro in micro_batches]

    def variance(self, groups: Sequence[Update]) -> tuple[float, float]:
        """Of the gradients of `groups`, each in micro-batches of its own: see `trainer.measure`."""
        from trainer import measure

        filled = [update for group in groups for update in self._annotated([group], 1)]
        return measure.sums(self.model, filled, lambda m: self._forward(m, self.model)[0])

    def _annotated(self, updates: Sequence[Update], epochs: int) -> Sequence[Update]:
        """Fill in the `old` and `ref` logprobs that the loss reads and the batch lacks."""
        wanted = needs(self.loss, len(updates) * epochs)
        fields = {"old_logprobs": ("old_N", "policy"), "ref_logprobs": ("ref_N", "reference")}
        for need, (field, which) in fields.items():
            if need in wanted and any(getattr(m, field) is None for u in updates for m in u):
                updates = [self._filled(update, field, which) for update in updates]
        return updates

    def _filled(self, update: Update, field: str, which: Any) -> Update:
        scores = self.score(update, which)
        fill: Any = dataclasses.replace  # mypy cannot see which field
        return [
            m if getattr(m, field) is not None else fill(m, **{field: logp_N})
            for m, (logp_N, _) in zip(update, scores, strict=True)
        ]

    @property
    def reference(self) -> Reference:
        """Loaded when first asked for."""
        from trainer.reference import Reference

        if self._reference is None:
            settings = (self.temperature, self.config.head_elements, self.moving)
            self._reference = Reference(self.path, self.device, *settings, **self._load)
        return self._reference

    def save(self, folder: str | Path) -> None:
        """Weights, optimiser, moving-average reference, random state, counters.

        Raises:
            OSError: on all ranks, where writing failed on one.
        """
        from trainer import state

        state.save(self, Path(folder))

    def load(self, folder: str | Path) -> None:
        """Go on exactly where `save` left off; with any number of ranks and any ZeRO stage.

        Raises:
            ValueError: files are missing or damaged, or another model or optimiser was saved.
        """
        from trainer import state

        state.load(self, Path(folder))

    def export(self, folder: str | Path) -> None:
        """A folder that transformers loads: safetensors, config, tokenizer files.

        With `lora.export` beside, its subfolder `adapter` is one that PEFT loads.
        """
        from trainer import weights

        beside = self.lora is not None and self.lora.export == "beside"
        weights.export(self.model, Path(self.path), Path(folder), beside)

    def buckets(self, bucket_bytes: int = 2**28, into: Any = None) -> Any:
        """The current weights for the engines: see `trainer.weights.buckets`."""
        from trainer import weights

        return weights.buckets(self.model, bucket_bytes, into)

    def close(self) -> None:
        """Free the engine, and leave the process group if this learner joined it."""
        from trainer import zero

        zero.close(self.engine, leave=self._joined)
