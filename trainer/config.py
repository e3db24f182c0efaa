"""Recipes: a YAML file of a few fields, resolved into a list of fully specified stages.

Fields at the top of a recipe hold for every stage; a stage's own fields win. A recipe may
`extends:` another. Components (budget, algorithm, ...) are validated by their own files.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import (
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from samplers import seam
from samplers.data import DataConfig
from samplers.engines import base as engines
from samplers.engines import torch as embedded
from samplers.render import ThinkingConfig
from samplers.seam import Component
from trainer import compatibility, components, secrets, staleness
from trainer.alarms import AlarmConfig
from trainer.checkpoint import CheckpointConfig
from trainer.components import explain
from trainer.eval.budgets import EvalConfig
from trainer.faults import FaultConfig
from trainer.learner import LearnerConfig
from trainer.lora import LoraConfig
from trainer.losses import LossConfig
from trainer.measure import MeasureConfig
from trainer.optim import OptimConfig
from trainer.settings import merge, override
from trainer.supervised import SupervisedConfig
from trainer.sync import SyncConfig
from trainer.tracking import TrackingConfig

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
Spec = str | dict[str, Any]


class ModelConfig(Component):
    path: str
    """A folder, a folder shipped under recipes/ (`base/find`), or a hub name."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False
    """Run code that comes with the model. Off: such a model is refused."""
    add_markers: bool = False
    """Add missing thinking markers to the vocabulary and resize the embeddings."""
    lora: LoraConfig | None = None
    """Train adapters instead of the weights: true, or a mapping of settings."""


class RolloutConfig(Component):
    engine: SerializeAsAny[engines.Config] = embedded.Config()
    """`torch`, `vllm`, or a mapping with `name` and the settings of that engine's file."""
    workers: int = Field(default=1, ge=1)
    """Rollout workers, one engine each."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = Field(default=192, ge=1)
    """Cap of a whole response: thought and answer."""
    in_flight_updates: bool = False
    """With max_staleness: load weights between two steps of an engine, so that a rollout may hold
    tokens of several versions; else engines finish what is at hand before they load."""

    @field_validator("engine", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, engines.Config):
            return value
        whole = {"name": "torch", **value} if isinstance(value, Mapping) else value
        name, settings = seam.split(whole)
        module = seam.find("samplers.engines", name)
        if not (hasattr(module, "Config") and hasattr(module, "start")):
            raise ValueError(f"'{name}' lacks Config or start; see samplers/engines/torch.py")
        try:
            return module.Config(name=name, **settings)
        except ValidationError as error:
            raise ValueError(explain(error, module.Config)) from None

    @model_validator(mode="after")
    def _whole_distribution(self) -> RolloutConfig:
        if self.top_p != 1.0 or self.top_k != 0:
            raise ValueError(
                f"top_p={self.top_p}, top_k={self.top_k}: training samples from the whole "
                "distribution, or its logprobs are wrong; set top_p: 1.0 and top_k: 0"
            )
        return self


class GraderConfig(Component):
    workers: int = Field(default=1, ge=1)
    """Reward workers (Ray actors)."""
    processes: int | None = Field(default=None, ge=0)
    """Killable verifier processes in each; 0 grades inside the worker (only verifiers that cannot
    hang). None: 0 for those, else 2."""
    deadline: float | None = Field(default=None, gt=0)
    """Seconds an answer may take before its process is killed and the verdict is unknown. None:
    what the verifier's own settings come to, else 10."""
    memory_mb: int = Field(default=2048, ge=1)
    """Memory that one answer may take beyond what the verifier's imports took, in MiB."""


class GuardConfig(Component):
    """Bounds above which a run stops instead of going on wrongly."""

    engine_gap: float | None = None
    """Mean |learner - engine| logprob gap; None: 1e-4 in float32, 1e-2 in bfloat16."""
    truncated: float = Field(default=0.95, gt=0, le=1)
    """Share of rollouts that hit the cap in the first step: above it nothing can be learned."""
    bad_steps: int = Field(default=3, ge=1)
    """Steps in a row with a non-finite loss or gradient."""


class Stage(Component):
    """Everything one stage of a run needs. Three sizes; the rest follows from them."""

    known_beside: ClassVar[tuple[str, ...]] = ()
    """Fields of the run, which stand beside those of a stage in a recipe."""

    kind: Literal["rl", "sft"] = "rl"
    steps: int = Field(default=30, ge=1)
    """Optimisation steps of this stage (batches; see updates_per_batch)."""
    model: ModelConfig
    thinking: ThinkingConfig | Literal["none"] = ThinkingConfig()
    data: DataConfig
    verifier: Spec = "exact"
    shaping: tuple[Spec, ...] = ()
    """Reward components added to `correct`."""
    budget: Spec = "unlimited"
    allocation: Spec = "uniform"
    algorithm: Spec = "grpo"
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    prompts_per_step: int = Field(default=32, ge=1)
    rollouts_per_prompt: int = Field(default=8, ge=1)
    tokens_per_micro_batch: int = Field(default=4096, ge=1)
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimiser steps a batch is split into."""
    epochs: int = Field(default=1, ge=1)
    """How often each of them is used."""
    max_staleness: int = Field(default=0, ge=0)
    """Versions that weights may be ahead of a token when it is trained: engines sample so many
    steps ahead while learners train, less those that chunked rollouts go on over (max_tokens /
    chunk, rounded up). 0: on-policy, by turns. From 1 on loss.importance is `token` unless set; a
    run that samples ahead cannot be deterministic."""
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    sync: SyncConfig = SyncConfig()
    grader: GraderConfig = GraderConfig()
    evaluation: EvalConfig | None = None
    guard: GuardConfig = GuardConfig()
    alarms: AlarmConfig = AlarmConfig()
    measure: MeasureConfig = MeasureConfig()
    """What costs time to know, and is only measured on request."""
    supervised: SupervisedConfig = SupervisedConfig()
    """How an sft stage makes batches of its data."""

    @model_validator(mode="before")
    @classmethod
    def _corrected(cls, data: Any) -> Any:
        return staleness.corrected(data)

    @field_validator("verifier", "budget", "allocation", "algorithm", mode="before")
    @classmethod
    def _of_the_default(cls, value: Any, info: ValidationInfo) -> Any:
        """Settings without a name are the default component's."""
        if not isinstance(value, Mapping) or "name" in value:
            return value
        return {"name": cls.model_fields[str(info.field_name)].default, **value}

    @field_validator("thinking", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "none" if value is None else value

    @property
    def markers(self) -> ThinkingConfig | None:
        return None if isinstance(self.thinking, str) else self.thinking

    @model_validator(mode="after")
    def _sizes(self) -> Stage:
        if self.prompts_per_step % self.updates_per_batch:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} does not divide into "
                f"updates_per_batch={self.updates_per_batch} equal updates; make it a multiple"
            )
        if self.rollout.engine.dtype not in ("float32", self.model.dtype):
            warnings.warn(
                f"rollout.engine.dtype={self.rollout.engine.dtype} has no effect: engines compute "
                f"in model.dtype={self.model.dtype}, as learners do",
                stacklevel=2,
            )
        if self.model.dtype == "bfloat16" and self.learner.zero == 0:
            warnings.warn(
                "learner.zero=0 with model.dtype=bfloat16 adds micro-batches' gradients up in "
                "bfloat16 (percents of rounding); learner.zero=1 adds them up in float32",
                stacklevel=2,
            )
        if self.model.add_markers and self.markers is None:
            warnings.warn("model.add_markers has no effect with thinking: none", stacklevel=2)
        self.measure.suits(self.learner)
        if self.model.lora is not None:
            self.model.lora.suits(self.loss, self.optim)
        for kind, package in components.COMPONENTS.items():
            spec = self.budget_spec if kind == "budget" else getattr(self, kind)
            for one in spec if isinstance(spec, tuple) else (spec,):
                components.check(kind, package, one)
        if self.kind == "rl":
            compatibility.check(self)
        return self

    @property
    def budget_spec(self) -> dict[str, Any]:
        """The budget with the response cap filled in where the recipe leaves it out."""
        name, settings = seam.split(self.budget)
        takes = getattr(seam.find("samplers.budgets", name), "Config", Component).model_fields
        cap = {"max_tokens": self.rollout.max_tokens} if "max_tokens" in takes else {}
        return {"name": name, **cap, **settings}


class Recipe(Component):
    """One run: its stages in order, and what belongs to the run as a whole."""

    name: str
    seed: int = 0
    deterministic: bool = True
    """Same recipe and seed, same metrics (times excepted): plans go to engines by index. Off: to
    the engine that will be done first."""
    output: str = "runs"
    """Folder of run folders."""
    tracking: TrackingConfig = TrackingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultConfig = FaultConfig()
    stages: tuple[Stage, ...]

    @model_validator(mode="after")
    def _by_turns(self) -> Recipe:
        for stage in (s for s in self.stages if s.kind == "rl"):
            ahead, most = staleness.depth(stage), stage.max_staleness
            if self.deterministic and ahead:
                raise ValueError(
                    f"deterministic=true with max_staleness={most}: which weights sample a token "
                    "then depends on time; set deterministic=false, or "
                    f"max_staleness={most - ahead}"
                )
            if stage.rollout.in_flight_updates and not ahead:
                warnings.warn(
                    f"rollout.in_flight_updates has no effect with max_staleness={most}: nothing "
                    "is sampled ahead",
                    stacklevel=2,
                )
        return self

    _folder: Path | None = PrivateAttr(None)

    def within(self, folder: Path) -> Recipe:
        """The same run in `folder`, whatever its output and name say: it was moved there."""
        moved = self.model_copy()
        moved._folder = folder
        return moved

    @property
    def folder(self) -> Path:
        """This run's folder: output/name-seed (`/` in a name becomes `-`)."""
        return (
            self._folder
            or Path(self.output).expanduser() / f"{self.name.replace('/', '-')}-seed{self.seed}"
        )


Stage.known_beside = tuple(Recipe.model_fields)


def shipped() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(str(p.relative_to(RECIPES).with_suffix("")) for p in RECIPES.glob("*/*.yaml"))


def read(name: str | Path) -> dict[str, Any]:
    """A recipe's own fields with what it extends merged below them.

    Raises:
        ValueError: no such recipe, or its YAML is broken (with the line).
    """
    path = Path(name)
    if not path.is_file():
        path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(str(name), shipped(), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(
            f"recipe '{name}' is neither a file nor shipped. Shipped: {', '.join(shipped())}{hint}"
        )
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: broken YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: a recipe is a mapping of fields; got {type(raw).__name__}")
    if "extends" in raw:
        parent = read(raw.pop("extends"))
        return merge(parent, raw)
    return raw


def resolve(raw: Mapping[str, Any]) -> Recipe:
    """Check every field and fill in every default.

    Raises:
        ValueError: one line per mistake: field, value, what is allowed, the nearest known field.
    """
    secrets.check(raw)
    run = {k: v for k, v in raw.items() if k in Recipe.model_fields and k != "stages"}
    shared = {k: v for k, v in raw.items() if k not in Recipe.model_fields}
    stages = [merge(shared, stage) for stage in raw.get("stages") or [{}]]
    try:
        return Recipe(**run, stages=tuple(stages))
    except ValidationError as error:
        raise ValueError(explain(error, Recipe)) from None


def load(name: str | Path, assignments: Sequence[str] = ()) -> Recipe:
    """The recipe `name` (a file, or shipped) with settings applied."""
    raw = read(name)
    raw.setdefault("name", Path(name).with_suffix("").as_posix().removeprefix("./"))
    return resolve(override(raw, assignments))
