"""What `laconic plan` says of cost, against closed forms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import costs
from launch.cli import main
from launch.costs import SHORT, TRAINED, Estimate, Units
from launch.fits import fit
from launch.hardware import Cluster, Hardware, Node
from launch.throughputs import Row, Span, Table
from trainer import memory
from trainer.config import Stage, load
from trainer.memory import Shape
from trainer.modelfolder import ModelFolder, facts, locate

RATE = 1000.0
SMALL = ["prompts_per_step=4", "rollouts_per_prompt=8", "rollout.max_tokens=160", "steps=10"]


def stage(*settings: str, recipe: str = "grpo/find") -> Stage:
    return load(recipe, [*SMALL, "evaluation=null", *settings]).stages[0]


def row(what: str, parameters: float, **more: Any) -> Row:
    name = "bytes_per_s" if what == "sync" else "tokens_per_s"
    fields: dict[str, Any] = {"engine": "torch", "hardware": "cpu", "dtype": "float32"}
    fields |= {"what": what, "parameters": parameters, name: RATE, "source": "a test"}
    return Row(**fields | more)


def shape(one: Stage) -> Shape:
    found = fit(one, ModelFolder(locate(one.model.path)), Hardware(Cluster()), 31).shape
    assert found is not None
    return found


def made(one: Stage, *rows: Row, engines: int = 1, learners: int = 1) -> Estimate:
    """With rates of 1000 for exactly this model."""
    size = shape(one)
    table = Table((rows, tuple(row(w, size.parameters) for w in ("generate", "train", "sync"))))
    units = Units({"cpu": engines}, learners, "cpu", 3.0)
    return Estimate(one, size, units, table, costs.sizes(one, 20, 100), engines, False)


def seconds(one: Estimate, phase: str) -> tuple[float, float]:
    found = one.phases[phase].seconds
    assert found is not None
    return found.low, found.high


def test_a_step_and_a_run() -> None:
    one = made(stage())
    sampled, trained = 32 * 100, 32 * (20 + 100)
    assert seconds(one, "generate") == (sampled / RATE,) * 2
    low, high = (share * trained / RATE for share in (TRAINED.low, TRAINED.high))
    assert seconds(one, "train") == (low, high)
    sync = 4 * one.shape.parameters / RATE
    assert seconds(one, "sync") == (sync, sync)
    step = (sampled / RATE + low + sync, sampled / RATE + high + sync)
    assert one.step is not None
    assert (one.step.low, one.step.high) == pytest.approx(step)
    assert one.run is not None
    assert (one.run.low, one.run.high) == pytest.approx((10 * step[0], 10 * step[1]))
    assert one.hours is not None
    assert one.hours.high == pytest.approx(10 * step[1] * 3 / 3600)


def test_lengths_that_nobody_knows_are_a_range() -> None:
    found = costs.sizes(stage(), 20)
    assert found.response == Span(SHORT * 160, 160)
    assert found.rows == Span(TRAINED.low * 32, TRAINED.high * 32)
    known = costs.sizes(stage(), 20, 70.0)
    assert known.response == Span(70, 70)


def test_answers_at_cuts_are_sampled_too() -> None:
    one = load("brpo/find").stages[0]
    most = one.rollout.max_tokens + memory.forks(one)
    assert memory.forks(one) > 0
    assert costs.sizes(one, 20).response == Span(SHORT * most, most)


@pytest.mark.parametrize(
    ("settings", "flops"),
    [
        ([], 6),
        (["learner.gradient_checkpointing=true"], 8),
        (["model.lora=true"], 4),
        (["epochs=2", "loss.name=ppo_clip"], 2 * 6 + 2),
        (["updates_per_batch=2"], 6 + 2),
        (["loss.kl=k3", "loss.kl_coef=0.1"], 6 + 2),
        (["loss.kl=k3", "loss.kl_coef=0.1", "updates_per_batch=2"], 6 + 2 + 2),
    ],
)
def test_what_a_learner_does_with_a_token(settings: list[str], flops: int) -> None:
    """Forwards of its own for the logprobs that the loss reads count too."""
    one = stage(*settings)
    assert costs.passes(one) == flops
    size = shape(one).parameters
    plain = made(one, row("train", size))
    assert seconds(plain, "train")[1] == pytest.approx(32 * 120 / RATE * flops / 6)
    alike = made(one, row("train", size, gradient_checkpointing=True))
    assert seconds(alike, "train")[1] == pytest.approx(32 * 120 / RATE * flops / 8)


def test_logprobs_for_the_algorithm_are_scored_before_the_step() -> None:
    one = load("t1/find", [*SMALL, "evaluation=null"]).stages[0]
    assert costs.scored(one) == {"old_logprobs", "ref_logprobs"}
    trained = costs.sizes(one, 20, 100).rows.high * 120
    assert seconds(made(one), "score")[1] == pytest.approx(trained / RATE * 2 * 2 / 6)
    own = made(one, row("score", shape(one).parameters))
    assert seconds(own, "score")[1] == pytest.approx(trained / RATE * 2)


def test_logprobs_are_scored_once() -> None:
    """To normalise importance weights they are wanted before the batch is packed."""
    normalised = ["loss.importance=token", "loss.importance_normalize=true"]
    one = stage(*normalised, "updates_per_batch=2")
    assert costs.scored(one) == {"old_logprobs"}
    assert costs.passes(one) == 6, "the learner does not tell them again"


def test_engines_beside_learners() -> None:
    by_turns = made(stage())
    beside = made(stage("deterministic=false", "max_staleness=1"))
    assert not by_turns.overlaps
    assert beside.overlaps
    assert by_turns.step is not None
    assert beside.step is not None
    generated = seconds(beside, "generate")
    both = zip(seconds(beside, "train"), seconds(beside, "sync"), strict=True)
    rest = tuple(map(sum, both))
    assert (beside.step.low, beside.step.high) == tuple(map(max, zip(generated, rest, strict=True)))
    assert (by_turns.step.low, by_turns.step.high) == pytest.approx(
        tuple(map(sum, zip(generated, rest, strict=True)))
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12))
def test_evaluations_are_those_of_the_loop(steps: int, every: int) -> None:
    one = stage(f"steps={steps}", f"evaluation={{every: {every}, problems: 4, budgets: []}}")
    due = sum(step >= steps or step % every == 0 for step in range(1, steps + 1))
    assert made(one).evaluations == 1 + due


def test_an_evaluation_thinks_once_and_answers_at_each_budget() -> None:
    one = made(stage("evaluation={every: 5, problems: 7, samples: 2, budgets: [8, 64, 150]}"))
    answers = (160 - 8) + (160 - 64) + (160 - 150)
    most = 14 * (100 + answers) / RATE
    assert seconds(one, "evaluate") == pytest.approx((14 * (100 + SHORT * answers) / RATE, most))
    short = made(stage("evaluation={every: 5, problems: 7, budgets: [8, 64], answer_tokens: 4}"))
    assert seconds(short, "evaluate")[1] == pytest.approx(7 * (100 + 8) / RATE)
    assert one.step is not None
    assert one.run is not None
    assert one.run.high == pytest.approx(10 * one.step.high + 3 * most)


@pytest.mark.parametrize(
    ("allocation", "low", "high"),
    [
        ("uniform", 32, 32),
        ("{name: oversample, samples: 32}", 32, 128),
        ("{name: dynamic, surplus: drop, max_rounds: 3}", 32, 96),
        ("{name: gvm, every: 5, pilot: 2}", 4 * (2 + 8), 4 * (2 + 8)),
        ("{name: gvm, every: 1, pilot: 2, reuse: true}", 32, 32),
        ("{name: gvm, every: 5, pilot: 2, count_pilot: true}", 32, 32),
    ],
)
def test_rollouts_of_a_step(allocation: str, low: int, high: int) -> None:
    one = stage(f"allocation={allocation}", "data.limit=64")
    assert costs.rollouts(one) == Span(low, high)


def test_supervised_stages_only_train() -> None:
    one = load("warmup/find", ["supervised.batch_tokens=5000", "evaluation=null"]).stages[0]
    found = made(one)
    assert list(found.phases) == ["train"]
    assert seconds(found, "train") == (5000 / RATE,) * 2


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 16),
    st.integers(1, 16),
    st.floats(1, 1e4),
    st.floats(1, 1e4),
    st.sampled_from([None, 1, 8, 64]),
    st.sampled_from(["float32", "other"]),
)
def test_more_hardware_is_never_slower_and_longer_never_cheaper(
    engines: int, learners: int, length: float, longer: float, rows: int | None, beside: str
) -> None:
    one = STAGES[beside]
    size = SHAPES[beside]
    table = Table(((row("generate", size.parameters, rows=rows), row("train", size.parameters)),))

    def run(engines: int, learners: int, response: float) -> Span:
        units = Units({"cpu": engines}, learners, "cpu", 1.0)
        found = Estimate(one, size, units, table, costs.sizes(one, 20, response), engines).run
        assert found is not None
        return found

    here = run(engines, learners, length)
    for other in (run(engines + 1, learners, length), run(engines, learners + 1, length)):
        assert other.low <= here.low * 1.000001
        assert other.high <= here.high * 1.000001
    more = run(engines, learners, length + longer)
    assert more.low >= here.low
    assert more.high >= here.high


STAGES = {
    "float32": stage("evaluation={every: 5, problems: 7}"),
    "other": stage("deterministic=false", "max_staleness=1"),
}
SHAPES = {name: shape(one) for name, one in STAGES.items()}


def test_few_rows_may_be_slower_in_proportion_at_worst() -> None:
    one = stage()
    full = row("generate", shape(one).parameters, rows=256)
    found = made(one, full)
    assert seconds(found, "generate") == pytest.approx((3.2, 3.2 * 256 / 32))
    spread = made(one, full, engines=4)
    assert seconds(spread, "generate") == pytest.approx((0.8, 0.8 * 256 / 8))
    enough = made(one, row("generate", shape(one).parameters, rows=16))
    assert seconds(enough, "generate") == pytest.approx((3.2, 3.2))


def test_the_length_that_was_not_told_covers_every_length() -> None:
    one = made(stage())
    unknown = replace(one, sizes=costs.sizes(one.stage, 20))
    assert unknown.run is not None
    for length in (40.0, 100.0, 160.0):
        known = replace(one, sizes=costs.sizes(one.stage, 20, length)).run
        assert known is not None
        assert unknown.run.low <= known.low <= known.high <= unknown.run.high


# on clusters


def on(recipe: str, nodes: tuple[Node, ...], table: Table, *settings: str) -> Estimate:
    one = load(recipe, settings).stages[0]
    model = ModelFolder(locate(one.model.path) or facts(one.model.path))
    found = costs.estimate(one, fit(one, model, Hardware(Cluster(nodes)), 512), 512, table, 4000.0)
    assert found is not None
    return found


def gpu(what: str, kind: str, rate: float) -> Row:
    return row(what, 1.777e9, engine="vllm", hardware=kind, dtype="bfloat16", tokens_per_s=rate)


def test_gpus_of_several_kinds_generate_together() -> None:
    table = Table(((gpu("generate", "H100", 300.0), gpu("generate", "A100", 100.0)),))
    nodes = (Node(4, "H100", gpu_bytes=80e9), Node(4, "A100", gpu_bytes=80e9))
    one = on("grpo/r1-8gpu", nodes, table)
    kinds = dict(one.units.engines)
    assert sum(kinds.values()) == 6
    assert kinds["A100"] == 4
    rate = 300 * kinds["H100"] + 100 * kinds["A100"]
    assert seconds(one, "generate")[0] == pytest.approx(1024 * 4000 / rate, rel=0.01)
    assert one.units.paid == 8


def test_engines_on_the_learners_gpus_take_turns_on_them() -> None:
    table = Table(((gpu("generate", "H100", 300.0), gpu("train", "H100", 300.0)),))
    one = on("grpo/r1-1gpu", (Node(1, "H100", gpu_bytes=80e9),), table)
    assert one.units == Units({"H100": 1}, 1, "H100", 1)
    assert not one.overlaps
    assert one.step is not None
    crowded = on("grpo/r1-1gpu", (Node(1, "H100", gpu_bytes=80e9),), table, "rollout.workers=2")
    assert crowded.units == one.units
    assert crowded.engines == 2
    low = seconds(one, "generate")[0] + seconds(one, "train")[0]
    assert one.step.low == pytest.approx(low), "weights by no measured row count nothing"


def test_a_missing_row_is_told_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "grpo/r1-8gpu", "--node", "8xB999-80GB"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("cost: "))
    assert line.startswith("cost: no measurement for generate by vllm on B999 (1.78B parameters")
    assert "step time unknown; put a row into a file for --throughputs FILE" in line
    main(["plan", "grpo/r1-8gpu", "--gpus-per-node", "8", "--gpu-memory", "80GB"])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("cost: "))
    assert "on unnamed GPUs" in line
    assert "say which GPUs they are, as --node 8xH100-80GB" in line


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.yaml"
    fields = "engine: vllm, hardware: H100, parameters: 1.777e9, dtype: bfloat16, source: mine"
    own.write_text(
        f"- {{what: generate, tokens_per_s: 1000, {fields}}}\n"
        f"- {{what: train, tokens_per_s: 1000, {fields}, gradient_checkpointing: true}}\n"
    )
    given = ["--node", "8xH100-80GB", "--throughputs", str(own), "--response-tokens", "1000"]
    assert main(["plan", "grpo/r1-8gpu", *given]) == 0
    out = capsys.readouterr().out
    line = next(x for x in out.splitlines() if x.startswith("cost: "))
    assert line.startswith("cost: step 387-774 s (generate 171, train 387-774, sync unknown, ")
    assert "engines beside learners), 300 steps and 16 evaluations: 33-65 h, x 8 GPUs = " in line
    assert "  generate vllm on H100, 1.78B parameters: mine" in out
    assert "without  sync: no measurement for sync by vllm on H100" in out
    assert main(["plan", "grpo/r1-8gpu", *given, "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["stages"][0]["cost"]
    assert cost["phases"]["generate"] == pytest.approx([1024 * 1000 / 6000] * 2, rel=0.01)
    assert cost["phases"]["sync"] is None
    assert cost["response_tokens"] == [1000, 1000]
    assert cost["unit"] == "GPU"
    assert cost["hours"] == pytest.approx([x * 8 / 3600 for x in cost["run"]])
    own.write_text("- {what: fly}")
    assert main(["plan", "grpo/find", "--throughputs", str(own)]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith(f"laconic: --throughputs {own}: row 1: what: ")
    assert "\n" not in told


def test_on_a_cpu_cores_are_paid_for() -> None:
    one = stage("rollout.workers=3", "learner.ranks=2")
    placed = fit(one, ModelFolder(locate(one.model.path)), Hardware(Cluster()), 31).placement
    assert costs.units(placed) == Units({"cpu": 3}, 2, "cpu", 6.0)
    assert costs.units(placed, cores=2) == Units({"cpu": 2}, 2, "cpu", 6.0)


def test_the_tiny_recipe_has_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "grpo/find"]) == 0
    out = capsys.readouterr().out
    line = next(x for x in out.splitlines() if x.startswith("cost: "))
    assert "unknown" not in line
    assert "30 steps and 7 evaluations" in line
    assert line.endswith("core-hours")
