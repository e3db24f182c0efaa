"""Variance of a step's gradient, estimated from the gradients of its groups, on request.

The gradient of a step is the sum of what its P groups contribute, g = sum_k c_k, with the
denominators of the whole step in each. Groups are drawn independently, so
P / (P - 1) sum_k |c_k - mean c|^2 estimates the total variance E|g - E g|^2; its ratio to |E g|^2
is the noise scale of McCandlish et al. 2018 (arXiv:1812.06162). A denominator that depends on the
groups themselves (token_mean) is taken as fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from samplers.seam import Component
from trainer.batching import by_group

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.config import Stage
    from trainer.learner import LearnerConfig
    from trainer.types import MicroBatch, TrainSequence
    from trainer.world import World


class MeasureConfig(Component):
    """What is measured of the training itself, beside what costs nothing."""

    gradient_variance: int = Field(0, ge=0)
    """Every so many steps, the variance of the gradient over groups: once more the step's forward
    and backward passes, in smaller micro-batches, and the memory of two to three gradients in
    float32. 0: never."""

    def suits(self, learner: LearnerConfig) -> None:
        """Raise ValueError where it cannot be measured."""
        if self.gradient_variance and learner.zero == 3:
            raise ValueError(
                f"measure.gradient_variance={self.gradient_variance} with learner.zero=3: no rank "
                "has a whole gradient; set learner.zero to 0, 1 or 2, or "
                "measure.gradient_variance to 0"
            )


def variance(world: World, sequences: Sequence[TrainSequence], stage: Stage) -> dict[str, float]:
    """Figures of the batch that is about to be trained on, at the weights before it.

    `gradient/variance` as above, `gradient/norm2` = |g|^2 before clipping (of one optimiser step
    over the whole batch, however many `updates_per_batch` makes of it), and `gradient/snr`:
    max(0, |g|^2 - variance) / variance, for E|g|^2 = |E g|^2 + variance. Nothing with fewer than
    two groups; no ratio without variance. Groups that have no gradient count as 0.
    """
    groups = len({s.group for s in sequences})
    if groups < 2:
        return {}
    shares = by_group(
        sequences,
        stage.loss,
        tokens_per_micro_batch=stage.tokens_per_micro_batch,
        ranks=stage.learner.ranks,
        packed=stage.model.attention == "flash_attention_2",
    )
    squares, norm2 = world.variance(shares)
    spread = max(0.0, squares - norm2 / groups) * groups / (groups - 1)
    out = {"gradient/variance": spread, "gradient/norm2": norm2}
    if spread > 0:
        out["gradient/snr"] = max(0.0, norm2 - spread) / spread
    return out


def sums(
    model: Any,
    groups: Sequence[Sequence[MicroBatch]],
    loss: Callable[[MicroBatch], Tensor],
) -> tuple[float, float]:
    """(sum of |c_k|^2, |sum of c_k|^2) over the groups of all ranks; the same on every rank.

    Collective, in its last line alone: ranks may have different numbers of groups. One backward
    pass a micro-batch; `.grad` is neither read nor written. Holds the sum and one group's gradient
    in float32, and one micro-batch's as autograd gives it.
    """
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    squares = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    for group in groups:
        mine: dict[int, Tensor] = {}
        for micro in group:
            grads = torch.autograd.grad(loss(micro), parameters, allow_unused=True)
            for i, grad in enumerate(grads):
                if grad is not None:
                    mine[i] = mine[i] + grad if i in mine else grad.float()
            del grads
        for i, grad in mine.items():
            squares += grad.square().sum(dtype=torch.float64)
            total[i] += grad
    for tensor in (*total, squares):
        torch.distributed.all_reduce(tensor)
    norm2 = torch.stack([t.square().sum(dtype=torch.float64) for t in total]).sum()
    return float(squares), float(norm2)
