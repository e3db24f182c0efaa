"""Which checkpoints are kept: the newest, and the best by a metric that their own step has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kept import fill, state
from trainer import checkpoint
from trainer.checkpoint import CheckpointConfig, Keeper
from trainer.checkpoint.keeping import Entry, wanted
from trainer.config import Recipe, load
from trainer.preflight import unmeasured

METRIC = "eval/accuracy"
VALUES = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5]))


@given(
    st.dictionaries(st.integers(1, 40), VALUES, min_size=1),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(["max", "min"]),
    st.booleans(),
    st.data(),
)
def test_what_is_kept_follows_from_manifests(
    values: dict[int, float | None], keep: int, best: int, mode: Any, chosen: bool, data: Any
) -> None:
    config = CheckpointConfig.model_construct(
        keep=keep, best=METRIC if chosen else None, best_mode=mode, keep_best=best
    )
    at = data.draw(st.sampled_from(sorted(values)))
    again = data.draw(st.sets(st.sampled_from(sorted(values))))
    found = []
    for step in sorted(values):
        if step in again:
            found.append(Entry(f"{step}.old", step, 1.0))
        found.append(Entry(str(step), step, values[step]))
    kept = wanted(found, at, config)
    past = [step for step in values if step <= at]
    assert len(set(kept)) == len(kept)
    assert set(kept) <= {str(step) for step in past}, "nothing beyond, nothing replaced"
    newest = {str(step) for step in sorted(past)[-keep:]}
    assert newest <= set(kept)
    known = [step for step in past if values[step] is not None] if chosen else []
    sign = 1 if mode == "max" else -1
    ranked = sorted(known, key=lambda step: (-sign * (values[step] or 0), -step))[:best]
    assert set(kept) == newest | {str(step) for step in ranked}
    assert kept[0] == str(ranked[0] if ranked else max(past))
    left = [entry for entry in found if entry.name in kept]
    assert wanted(left, at, config) == kept, "deciding again drops nothing more"


class Run:
    """A keeper, and what it said."""

    def __init__(self, root: Path, **config: Any) -> None:
        self.said: list[str] = []
        self.log: list[dict[str, Any]] = []
        config.setdefault("keep", 1)
        self.keeper = Keeper(root, CheckpointConfig(**config), self.said.append, steps=self._steps)

    def _steps(self) -> list[dict[str, Any]]:
        return self.log

    def save(self, step: int, **metrics: Any) -> Path | None:
        told = {name.replace("__", "/"): value for name, value in metrics.items()}
        self.log.append({"step": step, **told})
        return self.keeper.save(step, fill, state(step), self.log[-1])


def names(root: Path) -> list[str]:
    return [folder.name for folder in checkpoint.complete(root)]


def test_the_best_is_kept_beside_and_led_to(tmp_path: Path) -> None:
    run, best = Run(tmp_path, best=METRIC), tmp_path / "best"
    run.save(1, eval__accuracy=0.5)
    assert best.readlink() == Path("step-000001")
    run.save(2, eval__accuracy=float("nan"))
    assert names(tmp_path) == ["step-000001", "step-000002"]
    run.save(3, eval__accuracy=0.5)
    assert best.readlink() == Path("step-000003"), "of equal ones the later"
    run.save(4, eval__accuracy=0.25)
    assert names(tmp_path) == ["step-000003", "step-000004"]
    assert checkpoint.manifest(best)["metrics"] == {"step": 3, METRIC: 0.5}
    assert (best / "model" / "model.safetensors").is_file()
    Run(tmp_path).save(5, eval__accuracy=0.1)  # the run goes on without a best
    assert names(tmp_path) == ["step-000005"]
    assert not best.is_symlink()
    assert not run.said


def test_a_link_that_leads_to_one_that_is_kept_stays(tmp_path: Path) -> None:
    Run(tmp_path, best=METRIC).save(1, eval__accuracy=0.5)
    Run(tmp_path, keep=2).save(2)
    assert (tmp_path / "best").readlink() == Path("step-000001")


def test_the_lowest_may_be_best_and_several_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, best="tokens", best_mode="min", keep_best=2)
    for step, tokens in enumerate([30, 10, 20, 40, 50], 1):
        run.save(step, tokens=tokens)
    assert names(tmp_path) == ["step-000002", "step-000003", "step-000005"]
    assert (tmp_path / "best").readlink() == Path("step-000002")


def test_a_metric_that_is_not_there_is_told_once(tmp_path: Path) -> None:
    run = Run(tmp_path, best="eval/acuracy")
    run.save(1, eval__accuracy=0.5, loss=1.0)
    run.save(2, eval__accuracy=0.5)
    assert run.said == [
        "step 1: checkpoint.best=eval/acuracy is no figure of this step; near are eval/accuracy"
    ]
    run = Run(tmp_path, best=METRIC)
    run.log += [{"step": step, METRIC: 0.5} for step in (5, 10)]
    run.save(12, loss=1.0)
    assert run.said == [
        f"step 12: checkpoint.best={METRIC} is no figure of this step; it is there at steps 5, "
        "10: let checkpoint.every meet them"
    ]
    assert names(tmp_path) == ["step-000002", "step-000012"]
    run = Run(tmp_path, best=METRIC)  # figures of another step are not this one's
    run.keeper.save(13, fill, state(13), {"step": 12, METRIC: 0.9})
    assert checkpoint.manifest(tmp_path / "step-000013")["metrics"] == {}
    assert not run.said


def recipe(*settings: str) -> Recipe:
    return load("grpo/find", settings)


def test_a_best_that_evaluations_never_know_is_told_before() -> None:
    best = f"checkpoint.best={METRIC}"
    for said, settings in {
        "nothing is evaluated": [best, "evaluation=null"],
        "nothing is evaluated; set": [best, "evaluation.every=0"],
        "evaluation.every=4 meets checkpoint.every=3": [
            *(best, "evaluation.every=4", "checkpoint.every=3", "steps=12"),
        ],
    }.items():
        made = recipe(*settings)
        assert said in str(unmeasured(made.checkpoint, made.stages))
    for settings in (
        [best, "evaluation.every=4", "checkpoint.every=3", "steps=13"],
        [best, "evaluation.every=4", "checkpoint.every=0"],
        ["checkpoint.best=loss", "evaluation=null"],
    ):
        made = recipe(*settings)
        assert unmeasured(made.checkpoint, made.stages) is None


def test_settings_without_effect_are_told() -> None:
    with pytest.warns(UserWarning, match="keep_best=2 has no effect without checkpoint.best"):
        CheckpointConfig(keep_best=2)
    with pytest.warns(UserWarning, match="best_mode=min has no effect without checkpoint.best"):
        CheckpointConfig(best_mode="min")


@given(st.integers(0, 9), st.integers(1, 30))
def test_the_next_checkpoint_is_known(every: int, steps: int) -> None:
    due = [s for s in range(1, steps + 1) if s == steps or (every and s % every == 0)]
    config = CheckpointConfig(every=every)
    for step in range(steps):
        assert config.after(step, steps) == min(s for s in due if s > step)
