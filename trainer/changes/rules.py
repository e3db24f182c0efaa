"""What each change of a run's world means for going on with it: one table, three verdicts.

    free      moves no number
    told      may be, and is said: what is trained from here on is trained otherwise
    refused   would be wrong: prompts skipped, ids that mean other texts, state that does not fit

A rule holds for its field and for all below it; the longest that fits decides, and of several for
one field the first whose condition (`when`) holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from samplers import seam
from trainer.config import Stage

Verdict = Literal["free", "told", "refused"]


@dataclass(frozen=True, slots=True)
class At:
    """Where a run left off."""

    stage: int
    step: int
    """Steps of that stage that are trained."""
    kept: frozenset[str] = frozenset()
    """What its checkpoint holds a state of: allocation, statistics (of prompts, by their
    verdicts), budget, rollouts (that go on), shaping.NAME."""

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> At:
        """Of a checkpoint's driver state."""
        allocation = state.get("allocation") or {}
        kept = {
            "allocation": allocation,
            "statistics": "statistics" in allocation,
            "budget": state.get("memory"),
            "rollouts": state.get("carried"),
        }
        shapers = state.get("shaping") or {}
        kept |= {f"shaping.{name}": own is not None for name, own in shapers.items()}
        return cls(state["stage"], state["step"], frozenset(k for k, v in kept.items() if v))


@dataclass(frozen=True, slots=True)
class Case:
    """One difference, and what there is to judge it by."""

    field: str
    """In the stage, in the run, or of the facts."""
    old: Any
    new: Any
    at: At
    before: Stage | None = None
    now: Stage | None = None
    same_data: bool = False
    """The training prompts come out as they were; False: or nobody knows."""


@dataclass(frozen=True, slots=True)
class Rule:
    field: str
    verdict: Verdict
    means: str
    when: str = ""
    """Key of CONDITIONS; always, without."""
    bits: bool = True
    """Of what is told: the rest of the run is no longer, bit for bit, that of one recipe."""


def _moving(stage: Stage | None) -> bool:
    return stage is not None and stage.loss.kl != "none" and stage.loss.reference == "ema"


def _reads_weights(case: Case) -> bool:
    """Of the model that the stage began with."""
    stage = case.now
    if stage is None or stage.model.lora is not None:
        return stage is not None
    module, config = seam.resolve("trainer.algorithms", stage.algorithm)
    needs = module.needs(config) if hasattr(module, "needs") else ()
    compared = stage.loss.kl != "none" or "ref_logprobs" in needs
    return stage.kind == "rl" and compared and not _moving(stage)


def _holds(case: Case) -> bool:
    parts = case.field.split(".")
    return parts[0] in case.at.kept or ".".join(parts[:2]) in case.at.kept


CONDITIONS: dict[str, Callable[[Case], bool]] = {
    "fewer than are trained": lambda case: case.new < case.at.step,
    "the same training prompts": lambda case: case.same_data,
    "the checkpoint has statistics of verdicts": lambda case: "statistics" in case.at.kept,
    "the checkpoint has a state of it, and it gets another name": lambda case: (
        case.field.endswith(".name") and _holds(case)
    ),
    "the checkpoint has a state of it": _holds,
    "LoRA, or a frozen reference": _reads_weights,
    "examples of its own": lambda case: (
        case.before is not None
        and case.before.kind == "sft"
        and case.before.supervised.traces is not None
    ),
    "kind rl": lambda case: case.before is not None and case.before.kind == "rl",
    "a moving average begins": lambda case: _moving(case.now) and not _moving(case.before),
    "lowered, while rollouts go on": lambda case: (
        case.new < case.old and "rollouts" in case.at.kept
    ),
}
REST = "the rest of the run trains with it: the run is no longer what one recipe gives"
ROUNDS = "the last bits of sums differ"
MEASURED = "figures before and after are not of the same measurement; training does not see it"
SPEED = "how fast, and in how much memory, changes; numbers do not"
RUN = (
    Rule("name", "told", "the folder stays; reports and W&B show the new name", bits=False),
    Rule("seed", "refused", "what is sampled, in which order, follows from it"),
    Rule("deterministic", "told", "promised, or not, from here on; not of what is trained already"),
    Rule("output", "free", "the run goes on in the folder that was named"),
    Rule("tracking", "free", "training does not see it"),
    Rule("checkpoint", "free", "training does not see it"),
    Rule("faults", "free", "training does not see it"),
)
"""Fields of the run."""
STAGE = (
    Rule("kind", "refused", "data, credit and state are of the other kind"),
    Rule("steps", "refused", "so many are trained already", when="fewer than are trained"),
    Rule(
        "steps",
        "told",
        "the stage ends elsewhere, and so do schedules and curricula that count on its end",
    ),
    Rule(
        "model.path",
        "told",
        "another place; whether the files are others is told by themselves",
        bits=False,
    ),
    Rule("model.dtype", "refused", "every number would be computed in the other type"),
    Rule("model.attention", "told", ROUNDS),
    Rule("model.trust_remote_code", "told", "code of the model's folder runs, or not", bits=False),
    Rule("model.add_markers", "refused", "the vocabulary was made with the other"),
    Rule("model.lora.export", "told", "what a model folder holds from here on", bits=False),
    Rule("model.lora", "refused", "the checkpoint's adapters have the other shape or weight"),
    Rule("thinking", "refused", "the model was trained to open and close thoughts by the others"),
    Rule("data.shuffle", "refused", "prompts would be skipped or repeated"),
    *(
        Rule(f"data.{name}", "told", "they come out the same", "the same training prompts", False)
        for name in ("path", "hub", "subset", "split", "revision", "columns", "bad_golds")
    ),
    Rule("data", "told", "its examples are made already", "examples of its own", bits=False),
    Rule("data", "refused", "prompts would be skipped or repeated"),
    Rule(
        "verifier",
        "refused",
        "rates of success that prompts are chosen by are the other verifier's",
        when="the checkpoint has statistics of verdicts",
    ),
    Rule("verifier", "told", f"right and wrong are judged otherwise; {REST}"),
    Rule(
        "shaping",
        "refused",
        "what it remembers was made with it as it was",
        when="the checkpoint has a state of it",
    ),
    Rule("shaping", "told", REST),
    Rule(
        "budget",
        "refused",
        "what it remembers means nothing to another policy",
        when="the checkpoint has a state of it, and it gets another name",
    ),
    Rule("budget", "told", REST),
    Rule(
        "allocation",
        "refused",
        "what it remembers means nothing to another allocator",
        when="the checkpoint has a state of it, and it gets another name",
    ),
    Rule("allocation", "told", REST),
    Rule("algorithm", "told", REST),
    Rule(
        "loss",
        "refused",
        "the checkpoint has no average of the weights so far",
        when="a moving average begins",
    ),
    Rule("loss", "told", REST),
    Rule("optim.name", "refused", "the checkpoint has the moments of the other one"),
    Rule("optim", "told", REST),
    Rule("prompts_per_step", "told", REST),
    Rule("rollouts_per_prompt", "told", REST),
    Rule("tokens_per_micro_batch", "told", "sums are taken in another order (1e-6)"),
    Rule("updates_per_batch", "told", f"schedules count optimiser steps; {REST}"),
    Rule("epochs", "told", f"schedules count optimiser steps; {REST}"),
    Rule(
        "max_staleness",
        "refused",
        "rollouts that go on would be too old to be trained",
        when="lowered, while rollouts go on",
    ),
    Rule("max_staleness", "told", REST),
    Rule("rollout.engine", "told", "what is computed beside what changes: bits may differ"),
    Rule("rollout.workers", "told", "what is computed beside what changes: bits may differ"),
    Rule("rollout.temperature", "told", REST),
    Rule("rollout.top_p", "told", REST),
    Rule("rollout.top_k", "told", REST),
    Rule("rollout.max_tokens", "told", REST),
    Rule("rollout.in_flight_updates", "told", REST),
    Rule("learner.ranks", "told", f"the learners' state is converted; {ROUNDS}"),
    Rule("learner.zero", "told", f"the learners' state is converted; {ROUNDS}"),
    Rule("learner.clip_grad", "told", REST),
    Rule("learner.gradient_checkpointing", "told", ROUNDS),
    Rule("learner.head_elements", "told", ROUNDS),
    Rule("learner.threads", "told", ROUNDS),
    Rule("learner.timeout", "free", "training does not see it"),
    Rule("sync", "told", SPEED, bits=False),
    Rule("grader", "told", "an answer may, or may not, run into its deadline"),
    Rule("evaluation", "told", MEASURED, bits=False),
    Rule("guard", "told", "where the run stops by itself; training does not see it", bits=False),
    Rule("alarms", "told", "what is warned of; training does not see it", bits=False),
    Rule("measure", "told", MEASURED, bits=False),
    Rule("supervised", "told", "rollouts are trained on, not examples", "kind rl", bits=False),
    Rule("supervised", "refused", "examples would be skipped or repeated"),
)
"""Fields of the stage under way. Of a finished one none may change; of a later one all may."""
FACTS = (
    Rule(
        "model.config",
        "refused",
        "config.json or generation_config.json: shapes of weights, or where texts end",
    ),
    Rule("model.tokenizer", "refused", "its ids, or its chat template, mean other texts now"),
    Rule(
        "model.weights",
        "refused",
        "adapters or the reference read them: both would be of another model",
        when="LoRA, or a frozen reference",
    ),
    Rule("model.weights", "told", "the checkpoint has weights of its own", bits=False),
    Rule(
        "dataset.train", "told", "its examples are made already", "examples of its own", bits=False
    ),
    Rule("dataset.train", "refused", "other training data: prompts would be skipped or repeated"),
    Rule("examples", "refused", "those that the stage made: some would be skipped or repeated"),
    Rule(
        "dataset.test", "told", "curves before and after are not of the same problems", bits=False
    ),
    Rule(
        "grader",
        "refused",
        "rates of success that prompts are chosen by are the other grader's",
        when="the checkpoint has statistics of verdicts",
    ),
    Rule("grader", "told", "right and wrong may be judged otherwise from here on"),
    Rule("code", "told", "what is computed may differ, in bits or in more"),
    Rule("revision", "free", "whether the code is other is told by itself"),
    *(
        Rule(name, "told", "bits may differ")
        for name in ("torch", "transformers", "deepspeed", "ray", "peft", "vllm", "numpy")
    ),
    Rule("laconic", "told", "bits may differ, and defaults that config.yaml leaves open"),
    Rule("python", "told", "bits may differ"),
    Rule("machine", "told", "bits may differ"),
)
"""What stands in environment.json: of the run, or of the stage under way."""


def rule(rules: tuple[Rule, ...], case: Case) -> Rule:
    """The one that decides.

    Raises:
        LookupError: none is for that field.
    """
    fits = [
        one
        for one in rules
        if (case.field == one.field or case.field.startswith(f"{one.field}."))
        and (not one.when or CONDITIONS[one.when](case))
    ]
    if not fits:
        raise LookupError(f"no rule for {case.field}")
    return max(fits, key=lambda one: len(one.field))  # the first of the longest
