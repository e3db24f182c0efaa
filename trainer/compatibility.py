"""What goes with what: components say what they need and what they cannot stand.

Any budget policy goes with any algorithm, reward and loss, unless one of them says otherwise in
its own file, by up to three functions of its config:

    provides(config) -> facts that it makes true
    requires(config) -> {fact: why}, without which it makes no sense
    refuses(config)  -> {fact: why}, beside which it makes no sense

The facts are those of `samplers/facts.py`, and that a component is there at all ('loss gspo').
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from samplers import seam
from samplers.facts import FINITE, MARKERS, UPDATES

if TYPE_CHECKING:
    from trainer.config import Stage


ASKED = ("allocate", "observe", "state_dict", "load_state_dict", "metrics")
"""What an allocator is asked for (`samplers.allocation.base.Allocation`)."""


def components(stage: Stage) -> Iterator[tuple[str, Any, Any]]:
    """('budget fixed', module, config) of everything in a stage that may have a say."""
    for kind, package, spec in (
        ("budget", "samplers.budgets", stage.budget_spec),
        ("allocation", "samplers.allocation", stage.allocation),
        ("algorithm", "trainer.algorithms", stage.algorithm),
        *(("shaping", "rewards.shaping", one) for one in stage.shaping),
    ):
        name, _ = seam.split(spec)
        if ":" not in name:  # a user's function has no opinion
            yield f"{kind} {name}", *seam.resolve(package, spec)


def facts(stage: Stage) -> set[str]:
    """Everything that is true of the stage."""
    loss = stage.loss
    found = {f"loss {loss.name}", f"importance {loss.importance}", f"kl {loss.kl}"}
    if stage.markers is not None:
        found.add(MARKERS)
    if stage.data.task is None or stage.data.limit is not None:
        found.add(FINITE)
    if loss.importance_normalize:
        found.add("importance normalized")
    if stage.model.attention == "flash_attention_2":
        found.add("packed rows")
    if stage.updates_per_batch > 1:
        found.add(UPDATES)
    if trains(stage) == 1:
        found.add("one rollout a prompt")
    for name, module, config in components(stage):
        found |= {name, *_said(module, "provides", config)}
    return found


def allocator(stage: Stage) -> Any:
    """The stage's allocator, as it is before the first step.

    Raises:
        ValueError: its settings contradict the stage's sizes.
    """
    module, config = seam.resolve("samplers.allocation", stage.allocation)
    try:
        made = module.Allocator(config, stage.prompts_per_step, stage.rollouts_per_prompt)
    except (TypeError, ValueError) as error:
        raise ValueError(f"allocation: {error}") from None
    lacking = [name for name in ASKED if not callable(getattr(made, name, None))]
    if lacking:
        raise ValueError(
            f"allocation: the Allocator of '{module.__name__}' has no {', '.join(lacking)}; write "
            "it as in samplers/allocation/base.py"
        )
    _, algorithm = seam.resolve("trainer.algorithms", stage.algorithm)
    if getattr(algorithm, "within", None) == "subgroup":
        made.apart = True
    return made


def sizes(stage: Stage) -> tuple[int, int]:
    """Fewest and most rollouts of a prompt that the allocator asks for at once."""
    module, config = seam.resolve("samplers.allocation", stage.allocation)
    n = stage.rollouts_per_prompt
    own = getattr(module, "sizes", None)
    fewest, most = own(config, stage.prompts_per_step, n) if own else (n, n)
    return fewest, most


def trains(stage: Stage) -> int:
    """Fewest rollouts of a group that trains."""
    module, config = seam.resolve("samplers.allocation", stage.allocation)
    own = getattr(module, "trains", None)
    if own is None:
        return sizes(stage)[0]
    return int(own(config, stage.prompts_per_step, stage.rollouts_per_prompt))


def spends(stage: Stage) -> int:
    """The most rollouts that the allocator may ask for in a step."""
    module, config = seam.resolve("samplers.allocation", stage.allocation)
    prompts, n = stage.prompts_per_step, stage.rollouts_per_prompt
    own = getattr(module, "spends", None)
    return int(own(config, prompts, n)) if own else prompts * n


def waits(stage: Stage) -> int:
    """Steps that a complete group may wait in the allocator until it trains."""
    module, config = seam.resolve("samplers.allocation", stage.allocation)
    own = getattr(module, "waits", None)
    return int(own(config)) if own else 0


def check(stage: Stage) -> None:
    """Raise ValueError with the reason, as one line, for what does not go together."""
    allocator(stage)
    true = facts(stage)
    for name, module, config in components(stage):
        field, component = name.split(" ", 1)
        for fact, why in dict(_said(module, "requires", config)).items():
            if fact not in true:
                raise ValueError(f"{field}={component} needs {fact}: {why}")
        for fact, why in dict(_said(module, "refuses", config)).items():
            if fact in true:
                raise ValueError(f"{field}={component} does not go with {fact}: {why}")


def _said(module: Any, what: str, config: Any) -> Any:
    said = getattr(module, what, None)
    return said(config) if said is not None else ()
