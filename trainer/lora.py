"""LoRA: a small trained product beside each frozen weight, through PEFT (Hu et al. 2021,
arXiv:2106.09685).

An adapted linear layer computes W x + scale * B (A x), with scale = alpha / rank. A begins at
random and B at zero, so training begins at the very model. Engines never see the adapter: it is
merged into the copies they load (`trainer/weights.py`).

`LoraConfig`, `check_names` and `trainable` need no torch.
"""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from samplers import seeds
from samplers.seam import Component
from trainer.modelfolder import ModelFolder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.losses import LossConfig
    from trainer.optim import OptimConfig

ADAPTER = "adapter"
"""Folder inside a model's folder that an exported adapter lies in."""
NEW_ROWS = (
    "model.add_markers with model.lora: the rows of new tokens would stay as they are drawn, for "
    "adapters leave embeddings alone; name the model's own markers, or begin with a stage that "
    "trains in full (kind: sft, model: {lora: null})"
)
_NAME = "default"
"""PEFT's name for the only adapter of a model."""


class LoraConfig(Component):
    """Train low-rank adapters and leave the model's own weights as they are."""

    rank: int = Field(16, ge=1)
    """Width of the product B A."""
    alpha: float = Field(32.0, gt=0)
    """The product counts alpha / rank times."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linear modules to adapt, by the end of their name ([q_proj, v_proj]); all-linear: every one
    inside the layers. Embeddings and head stay frozen."""
    dropout: float = 0.0
    """Only 0: engines sample from the merged weights, which no dropout of the learner's matches."""
    export: Literal["merged", "beside"] = "merged"
    """What a model folder holds: the merged weights; or these and, in its subfolder `adapter`, the
    adapter as PEFT loads it, which has lost nothing to the rounding of merged bfloat16 weights."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if value is True:
            return {}
        if not isinstance(value, Mapping | LoraConfig):
            raise ValueError(
                f"{value!r} is neither true nor a mapping of settings (rank, alpha, targets, "
                "export); set null to train in full"
            )
        return value

    @field_validator("targets", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        named = (value,) if isinstance(value, str) else value
        return "all-linear" if isinstance(named, Sequence) and "all-linear" in named else named

    @model_validator(mode="after")
    def _checks(self) -> LoraConfig:
        if self.dropout:
            raise ValueError(
                f"dropout={self.dropout}: engines sample from the merged weights without it, so "
                "the learner's logprobs would be others; set dropout: 0"
            )
        if not self.targets:
            raise ValueError("targets=[]: nothing would be trained; name modules, or all-linear")
        return self

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def suits(self, loss: LossConfig, optim: OptimConfig) -> None:
        """Refuse what does not go with adapters; warn of what is unwise.

        Raises:
            ValueError: a moving-average reference, or Muon.
        """
        if loss.kl != "none" and loss.reference == "ema":
            raise ValueError(
                "loss.reference=ema with model.lora: averages of A and of B do not make the "
                "average of B A; set loss.reference=frozen (the adapter switched off, no copy), or "
                "train in full"
            )
        if optim.name == "muon":
            raise ValueError(
                "optim.name=muon with model.lora: Muon gives a matrix a step of one size in every "
                "direction, and A and B are factors of a matrix; set optim.name=adamw, or train in "
                "full"
            )
        if "lr" not in optim.model_fields_set:
            warnings.warn(
                f"optim.lr is left at {optim.lr:g}, which suits full training; adapters want "
                "several times to ten times that",
                stacklevel=2,
            )


def select(config: LoraConfig, names: Iterable[str]) -> list[str]:
    """Those of the linear modules `names` that are adapted.

    Raises:
        ValueError: a target that fits none of them, with the nearest and the kinds there are.
    """
    names = list(names)
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    if not kinds:
        raise ValueError("model.lora: the model has no linear modules in numbered layers to adapt")
    if config.targets == "all-linear":
        return names
    for target in config.targets:
        if not any(_ends(name, target) for name in names):
            near = difflib.get_close_matches(target.rpartition(".")[2], kinds, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ValueError(
                f"model.lora.targets: '{target}' is no linear module of the model's layers{hint}; "
                f"there are {', '.join(kinds)}, or set all-linear"
            )
    return [name for name in names if any(_ends(name, target) for target in config.targets)]


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _in_layers(name: str) -> bool:
    """Inside a numbered layer: embeddings and head are not."""
    return re.search(r"\.\d+\.", name) is not None


def _matrices(shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Module name -> shape of its matrix, of all in numbered layers."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2 and _in_layers(name)
    }


def adapted(shapes: Mapping[str, Sequence[int]], config: LoraConfig) -> dict[str, Sequence[int]]:
    """Name and shape of each matrix, among weights of these shapes, that gets an adapter.

    Raises:
        ValueError: an unknown target.
    """
    matrices = _matrices(shapes)
    return {name: matrices[name] for name in select(config, matrices)}


def trainable(shapes: Mapping[str, Sequence[int]], config: LoraConfig) -> int:
    """Number of adapter weights beside weights of these shapes (`ModelFolder.shapes`).

    Raises:
        ValueError: an unknown target.
    """
    return config.rank * sum(map(sum, adapted(shapes, config).values()))


def check_names(
    model: ModelFolder, config: LoraConfig, *, build: bool, trust_remote_code: bool = False
) -> None:
    """Raise ValueError for targets that the model of a folder lacks.

    Names come from the weight files' headers. Where the files are not here yet, `build` makes the
    model without weights to ask it: seconds, for transformers has to be imported.
    """
    if (stored := model.stored) is not None:
        select(config, _matrices(stored))
    elif build:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        trust: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        with torch.device("meta"):
            known = AutoConfig.from_pretrained(model.path, **trust)
            shell = AutoModelForCausalLM.from_config(known, **trust)
        select(config, linears(shell))


def linears(model: Any) -> list[str]:
    """Names of a loaded model's linear modules inside its layers."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and _in_layers(f"{name}.")
    ]


def adapt(model: Any, config: LoraConfig, seed: int) -> None:
    """Put adapters into `model`, in place, and freeze everything else.

    The first weights depend on `seed` and the module's place alone: the same bits on every rank
    and at every ZeRO stage (each rank draws them whole; ZeRO-3 partitions them later).
    """
    import peft

    names = select(config, linears(model))
    with warnings.catch_warnings():  # that GPT-2's matrices are transposed: it sees to it
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(
            peft.LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                target_modules=names,
                bias="none",
                task_type="CAUSAL_LM",
            ),
            model,
            _NAME,
        )
    adapted = adapters(model)
    assert len(adapted) == len(names), "PEFT adapted other modules"
    for index, adapter in enumerate(adapted.values()):
        first_weights(adapter, seeds.key(seed, index))


def first_weights(adapter: Adapter, key: int) -> None:
    """A uniform with PEFT's bound 1 / sqrt(inputs), B zero."""
    import torch

    generator = torch.Generator().manual_seed(key)
    bound = 1 / math.sqrt(adapter.a_RI.shape[1])
    with torch.no_grad():
        drawn = torch.empty(adapter.a_RI.shape).uniform_(-bound, bound, generator=generator)
        adapter.a_RI.copy_(drawn)
        adapter.b_OR.zero_()


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is added to one weight. Shape suffixes: R rank, I inputs, O outputs of the layer."""

    a_RI: nn.Parameter
    b_OR: nn.Parameter
    scale: float
    transposed: bool
    """The weight is [I, O] (GPT-2)."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [self.a_RI, self.b_OR]

    def merged(self, weight: Tensor) -> Tensor:
        """weight + scale * B A, summed in float32 and rounded once to the weight's type: a new
        tensor. Under ZeRO-3 all three must be gathered.

        In bfloat16 what is smaller than half a step of the weight (0.2% to 0.4% of it) is rounded
        away until more has come together. Simulated with weights of 0.02, rank 32, scale 2 and B
        moving by 1e-5 a step in one direction: 5% of the change are there after 1 step, 24% after
        5, 74% after 20, 98% after 50. The rounding itself is that of any bfloat16 weight.
        """
        import torch

        left, right = self.b_OR.detach().float(), self.a_RI.detach().float()
        if self.transposed:
            left, right = right.t(), left.t()
        whole = torch.addmm(weight.detach().float(), left, right, alpha=self.scale)
        return whole.to(weight.dtype)


def adapters(model: Any) -> dict[str, Adapter]:
    """Name of each adapted parameter, as the model now calls it -> its adapter."""
    return {
        f"{name}.base_layer.weight": Adapter(
            layer.lora_A[_NAME].weight,
            layer.lora_B[_NAME].weight,
            layer.scaling[_NAME],
            bool(layer.fan_in_fan_out),
        )
        for name, layer in _layers(model)
    }


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """PEFT's layers. A model without any is recognised without importing PEFT."""
    if hasattr(model, "peft_config"):
        from peft.tuners.lora import LoraLayer

        yield from ((n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer))


def own_name(name: str) -> str:
    """The name that the model itself gives to a parameter."""
    return name.replace(".base_layer.", ".")


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """Inside, the model is the one that training began with.

    PEFT's own switch also turns `requires_grad` off and on, and DeepSpeed's hooks are on it.
    """
    layers = [layer for _, layer in _layers(model)]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def write(model: Any, weights: Mapping[str, Tensor], folder: Path, base: str) -> None:
    """The adapter's `weights` as a folder that `peft.PeftModel.from_pretrained` puts on `base`."""
    import copy

    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = copy.copy(model.peft_config[_NAME])
    cached = re.search(r"/models--([^/]+)/snapshots/\w+$", base)  # of the hub: its name there
    config.base_model_name_or_path = cached[1].replace("--", "/") if cached else base
    config.inference_mode, config.target_modules = True, sorted(config.target_modules)
    config.save_pretrained(str(folder))
    named = {
        f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": tensor.contiguous()
        for name, tensor in weights.items()
    }
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
