"""Risk: a change between a run and its going on is not seen, not told, or accepted wrongly."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import BaseModel

from launch.resume import changed
from trainer import changes
from trainer.changes import At, Change, compare, rules, same_bits, weigh
from trainer.changes.rules import FACTS, RUN, STAGE, Case, rule
from trainer.config import Recipe, Stage, load

README = Path(changes.__file__).parent / "README.md"
HALF = At(0, 10)
"""Ten steps of the first stage, with an allocator and a budget that remember nothing."""
FILES = {"data": {"path": "a.jsonl"}}


def recipe(*settings: str, name: str = "grpo/find") -> Recipe:
    return load(name, settings)


def found(before: Recipe, now: Recipe, at: At = HALF, **facts: str) -> list[Change]:
    """With facts that were `old` and are `new`, or the same."""
    names = {name.replace("__", ".") for name in facts}
    was = dict.fromkeys(names, "old") | {"python": "3", "stages.0.dataset.train": "old"}
    are = was | {name.replace("__", "."): value for name, value in facts.items()}
    return compare(before, now, at, was, are)


def with_one(setting: str, at: At = HALF, *base: str, **facts: str) -> Change:
    """The only change that `setting` makes."""
    before = recipe(*base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (one,) = found(before, changed(before, [setting], 0), at, **facts)
    return one


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = [m for m in (field.annotation, *get_args(field.annotation)) if _is_model(m)]
        if inner:
            yield from leaves(inner[0], f"{path}{name}.")
        yield f"{path}{name}"


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def test_every_field_has_a_rule() -> None:
    """A new field of a recipe needs a line in trainer/changes/rules.py."""
    stage = recipe().stages[0]
    for path in leaves(Stage):
        if path not in ("model", "rollout", "learner"):  # each field of theirs has its own
            assert rule(STAGE, Case(path, 1, 1, HALF, stage, stage)).means
    for path in leaves(Recipe):
        if not path.startswith("stages"):
            assert rule(RUN, Case(path, 1, 1, HALF)).means


@pytest.mark.parametrize("path", ["brand_new", "model.new", "rollout.new", "learner.new"])
def test_a_field_without_a_rule_is_found(path: str) -> None:
    with pytest.raises(LookupError, match=path):
        rule(STAGE, Case(path, 1, 2, HALF))


def test_every_fact_has_a_rule(tmp_path: Path) -> None:
    made = recipe()
    for name in {**changes.versions(), **changes.facts(made)}:
        field = name.removeprefix("stages.0.")
        assert rule(FACTS, Case(field, "a", "b", HALF, made.stages[0], made.stages[0])).means


STATISTICS = At(0, 10, frozenset({"allocation", "statistics"}))
FREE = ("output=elsewhere", "tracking.wandb=offline", "checkpoint.every=3", "faults.restarts=9")
FREE += ("learner.timeout=5",)
TOLD_BITS = (
    *("deterministic=false", "steps=20", "steps=10", "steps=99", "model.attention=eager"),
    *("verifier=numeric", "shaping=[kimi]", "budget={name: fixed, think: 8}", "algorithm=rloo"),
    *(
        "loss.eps_high=0.3",
        "optim.lr=1e-5",
        "optim.schedule=cosine",
        "optim.weight_decay=0.1",
        "prompts_per_step=64",
    ),
    *("rollouts_per_prompt=4", "tokens_per_micro_batch=512", "updates_per_batch=2", "epochs=2"),
    *("rollout.engine.slots=8", "rollout.workers=2", "rollout.temperature=0.7"),
    *("rollout.max_tokens=64", "learner.ranks=2", "learner.zero=1", "learner.clip_grad=2"),
    *("learner.gradient_checkpointing=true", "learner.head_elements=9", "learner.threads=2"),
    "grader.deadline=1",
)
TOLD = (
    *("name=another", "model.path=base/fresh", "model.trust_remote_code=true", "sync.bucket_mb=8"),
    *("evaluation=null", "evaluation.every=9", "guard.bad_steps=9", "alarms.window=9"),
    *("measure.gradient_variance=9", "supervised.pool=9"),
)
REFUSED = (
    *("seed=7", "steps=9", "kind=sft", "model.dtype=bfloat16", "model.add_markers=true"),
    *("model.lora=true", "thinking.start=<t>", "thinking=none", "data.shuffle=false"),
    *("data.limit=9", "data.task={name: find, places: 5}", "data.suffix=now", "optim.name=muon"),
    "loss={kl: k2, reference: ema}",
)


@pytest.mark.parametrize(
    ("setting", "verdict", "bits"),
    [
        *((setting, "free", None) for setting in FREE),
        *((setting, "told", True) for setting in TOLD_BITS),
        *((setting, "told", False) for setting in TOLD),
        *((setting, "refused", None) for setting in REFUSED),
    ],
)
def test_what_a_setting_comes_to(setting: str, verdict: str, bits: bool | None) -> None:
    before = recipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        some = found(before, changed(before, [setting], 0))
    assert some
    assert some[0].verdict == verdict
    assert bits is None or any(change.bits for change in some) == bits
    assert all(change.field.startswith(setting.partition("=")[0]) for change in some)


def test_what_has_a_state_in_the_checkpoint_is_refused() -> None:
    base = ("allocation=knapsack", "data.limit=64")
    assert with_one("allocation.low=3", STATISTICS, *base).verdict == "told"
    before = recipe(*base)
    some = found(before, changed(before, ["allocation=uniform"], 0), STATISTICS)
    assert [(c.field, c.verdict) for c in some] == [("allocation.name", "refused")]
    assert with_one("verifier=numeric", STATISTICS, *base).verdict == "refused"
    assert with_one("allocation=oversample").verdict == "told"
    before = recipe("budget={name: fixed, think: 8}")
    now = changed(before, ["budget={name: elastic, think: [8, 16], answer: 8}"], 0)
    assert found(before, now)[0].verdict == "told"
    remembers = replace(HALF, kept=frozenset({"budget"}))
    assert found(before, now, remembers)[0].verdict == "refused"
    shaped = ("shaping=[{name: memory, explore_min_keys: 9}, kimi]",)
    holds = replace(HALF, kept=frozenset({"shaping.memory"}))
    for now_shaping, verdict in (("[{name: memory, explore_min_keys: 8}, kimi]", "refused"),
                                 ("[kimi]", "refused"),
                                 ("[{name: memory, explore_min_keys: 9}]", "told")):  # fmt: skip
        assert with_one(f"shaping={now_shaping}", holds, *shaped).verdict == verdict


def test_examples_are_counted_or_made_once() -> None:
    (stage,) = recipe(name="warmup/find").stages[:1]
    before = Recipe(name="taught", stages=(stage,))
    for setting, verdict in (("supervised.pool=9", "refused"), ("data.limit=99", "refused")):
        assert found(before, changed(before, [setting], 0))[0].verdict == verdict
    assert facts(before, stages__0__dataset__train="new") == {"dataset.train": "refused"}
    own = recipe(name="shortest/find")
    assert own.stages[0].kind == "sft"
    for setting, verdict in (("stages.0.data.limit=99", "told"), ("stages.0.kind=rl", "refused")):
        assert found(own, changed(own, [setting], 0))[0].verdict == verdict
    assert facts(own, stages__0__dataset__train="new") == {"stages.0.dataset.train": "told"}
    assert facts(own, stages__0__examples="new") == {"stages.0.examples": "refused"}


def test_examples_that_a_stage_made_are_known_by_their_file(tmp_path: Path) -> None:
    own = recipe(f"output={tmp_path}", name="shortest/find")
    assert "stages.0.examples" not in changes.facts(own), "they are not made yet"
    made = own.folder / "traces-0"
    made.mkdir(parents=True)
    row = {"id": "a", "prompt_ids": [1], "response_ids": [2]}
    (made / "examples.jsonl").write_text(json.dumps(row) + "\n")
    print_of = changes.facts(own)["stages.0.examples"]
    state = {"stage": 0, "step": 1, "stream": {"stream": {"fingerprint": print_of}}}
    assert changes.of_state(state) == {"stages.0.examples": print_of}
    (made / "examples.jsonl").write_text(json.dumps(row | {"response_ids": [3]}) + "\n")
    assert changes.facts(own)["stages.0.examples"] != print_of


def test_rollouts_that_go_on_must_not_become_too_old() -> None:
    base = ("deterministic=false", "max_staleness=4")
    goes_on = replace(HALF, kept=frozenset({"rollouts"}))
    assert with_one("max_staleness=2", goes_on, *base).verdict == "refused"
    assert with_one("max_staleness=6", goes_on, *base).verdict == "told"
    assert with_one("max_staleness=2", HALF, *base).verdict == "told"


def test_data_may_lie_elsewhere_and_must_be_the_same() -> None:
    base = ("data.path=a.jsonl", "evaluation=null")
    assert with_one("data.path=b.jsonl", HALF, *base).verdict == "told"
    other = with_one("data.path=b.jsonl", HALF, *base, stages__0__dataset__train="new")
    assert (other.field, other.verdict) == ("data.path", "refused")
    before = recipe(*base)
    (unknown,) = compare(before, changed(before, ["data.path=b.jsonl"], 0), HALF, {}, {})
    assert unknown.verdict == "refused"


def facts(made: Recipe, at: At = HALF, **some: str) -> dict[str, str]:
    return {change.field: change.verdict for change in found(made, made, at, **some)}


def test_facts_that_changed() -> None:
    made = recipe()
    assert facts(made) == {}
    assert facts(made, stages__0__dataset__train="new") == {"dataset.train": "refused"}
    assert facts(made, stages__0__dataset__test="new") == {"dataset.test": "told"}
    assert facts(made, model__tokenizer="new") == {"model.tokenizer": "refused"}
    assert facts(made, model__config="new") == {"model.config": "refused"}
    assert facts(made, stages__0__grader="new") == {"grader": "told"}
    assert facts(made, STATISTICS, stages__0__grader="new") == {"grader": "refused"}
    assert facts(made, stages__0__code__mine="new") == {"code.mine": "told"}
    for name in ("torch", "vllm", "python", "machine", "code", "laconic"):
        assert facts(made, **{name: "new"}) == {name: "told"}
    assert facts(made, revision="new") == {"revision": "free"}


def test_the_first_model_is_needed_where_it_is_still_read() -> None:
    reads = {
        ("loss.kl=k2",): "refused",
        ("loss.kl=k2", "loss.reference=ema"): "told",
        ("model.lora=true",): "refused",
        (): "told",
    }
    for settings, verdict in reads.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = recipe(*settings)
        assert facts(made, model__weights="new") == {"model.weights": verdict}


def test_a_library_that_came_or_went_is_told_and_what_was_not_known_is_not() -> None:
    made = recipe()
    was = {"python": "1", "torch": "1"}
    are = was | {"vllm": "2", "stages.0.grader": "exact/1"}
    (came,) = compare(made, made, HALF, was, are)
    assert str(came).startswith("vllm: none -> 2: ")
    (went,) = compare(made, made, HALF, are, was)
    assert str(went).startswith("vllm: 2 -> none: ")
    assert compare(made, made, HALF, {}, are) == []


@pytest.mark.parametrize(
    ("at", "verdicts"),
    [
        (At(0, 3), ("told", "told", "told")),
        (At(0, 5), ("refused", "told", "told")),
        (At(1, 8), ("refused", "refused", "told")),
        (At(2, 1), ("refused", "refused", "told")),
    ],
)
def test_a_stage_that_is_over_stays_and_a_later_one_may_change(
    at: At, verdicts: tuple[str, ...]
) -> None:
    before = three()
    for index, verdict in enumerate(verdicts):
        now = changed(before, [f"stages.{index}.optim.lr=0.5"], 0)
        (change,) = found(before, now, at)
        assert (change.field, change.verdict) == (f"stages.{index}.optim.lr", verdict)
        assert verdict == "refused" or change.bits == (index == at.stage), "of a later one none is"


def three() -> Recipe:
    raw = recipe().model_dump(mode="json")
    (stage,) = raw["stages"]
    raw["stages"] = [{**stage, "steps": steps} for steps in (5, 8, 9)]
    return Recipe(**raw)


def test_stages_come_and_go_behind_the_one_under_way() -> None:
    before = three()
    fewer = before.model_copy(update={"stages": before.stages[:1]})
    for at, verdict in ((At(0, 3), "told"), (At(1, 1), "refused")):
        (change,) = found(before, fewer, at)
        assert (change.field, change.old, change.new, change.verdict) == ("stages", 3, 1, verdict)
    more = before.model_copy(update={"stages": (*before.stages, before.stages[0])})
    assert [c.verdict for c in found(before, more, At(2, 1))] == ["told"]


def test_the_last_stage_may_be_given_more_steps_when_it_is_over() -> None:
    over = At(0, 30)
    assert with_one("steps=40", over).verdict == "told"
    assert with_one("optim.lr=0.5", over).verdict == "refused"
    before = recipe()
    assert {
        c.verdict for c in found(before, changed(before, ["steps=40", "epochs=2"], 0), over)
    } == {"told"}


def test_refusals_come_first_and_each_line_says_what_to_do() -> None:
    before = recipe()
    now = changed(before, ["optim.lr=0.5", "seed=3"], 0)
    some = found(before, now, stages__0__dataset__train="new")
    with pytest.raises(ValueError) as refused:
        weigh(some, Path("runs/mine"), now)
    first, second, third, last = str(refused.value).splitlines()
    assert {first.split(":")[0], second.split(":")[0]} == {"seed", "dataset.train"}
    assert first.startswith("seed: 0 -> 3: ")
    assert first.endswith("; leave it as it was, or start a new run")
    assert second.endswith("; restore it, or start a new run")
    assert third.startswith("optim.lr: 0.002 -> 0.5: ")
    assert "laconic train runs/mine/config.yaml" in last


def test_lost_bits_are_said_where_they_were_promised() -> None:
    before = recipe()
    for setting, kept in (("optim.lr=0.5", False), ("sync.bucket_mb=9", True)):
        assert same_bits(found(before, changed(before, [setting], 0)), before) == kept
    loose = recipe("deterministic=false")
    assert same_bits(found(loose, changed(loose, ["optim.lr=0.5"], 0)), loose), "none was promised"


@pytest.mark.parametrize("text", ["[]", '{"facts": null}', '{"started": []}', "{", ""])
def test_an_environment_that_cannot_be_read_is_not_known(tmp_path: Path, text: str) -> None:
    (tmp_path / "environment.json").write_text(text)
    assert changes.recorded(tmp_path) == ({}, "")


def test_what_a_checkpoint_holds_a_state_of() -> None:
    state: dict[str, Any] = {"stage": 1, "step": 4, "allocation": {}, "memory": {}, "carried": {}}
    assert At.of(state | {"shaping": {"kimi": None}}) == At(1, 4)
    full = {
        "allocation": {"statistics": {"right": np.zeros((1, 2))}},
        "memory": {"x": 1},
        "carried": {"about": np.zeros(3)},
        "shaping": {"memory": {"a": 1}, "kimi": None},
    }
    kept = {"allocation", "statistics", "budget", "rollouts", "shaping.memory"}
    assert At.of(state | full).kept == kept


def test_facts_see_files_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read by the recipe, and nothing else."""
    rows = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(4)]
    data, module = tmp_path / "train.jsonl", tmp_path / "of_mine.py"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    module.write_text("def fn(text, gold, meta):\n    return text == gold\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = recipe(
        f"data={{path: {{train: {data}, test: {data}}}}}", "verifier=of_mine:fn",
        "data.bad_golds=drop",
    )  # fmt: skip
    before = changes.facts(made)
    assert changes.facts(made) == before
    data.write_text(data.read_text() + json.dumps({"problem": "9+1?", "answer": "10"}) + "\n")
    module.write_text(module.read_text() + "# another\n")
    after = changes.facts(made)
    differ = {name for name in before if before[name] != after[name]}
    of = ("dataset.train", "dataset.test", "code.of_mine")
    assert differ == {f"stages.0.{name}" for name in of}
    assert "model.tokenizer" not in changes.facts(made, first=1)


def test_the_readme_has_every_rule() -> None:
    text = README.read_text()
    for one in (*RUN, *STAGE, *FACTS):
        row = f"| `{one.field}` | {one.verdict} | {one.when or 'always'} | {one.means} |"
        assert row in text, row
    named = {one.when for one in (*RUN, *STAGE, *FACTS) if one.when}
    assert named == set(rules.CONDITIONS), "no condition without a rule"
