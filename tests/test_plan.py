"""`laconic plan`: what it prints is what would run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from launch.cli import main
from launch.hardware import Cluster, Hardware, Node, described, node, size
from launch.plan import Plan
from launch.plan import plan as make
from trainer.config import RECIPES, load, shipped

GRPO = ["rollout.max_tokens=150", "prompts_per_step=6", "rollouts_per_prompt=4"]


def made_for(name: str) -> tuple[int, int] | None:
    """Nodes, and GPUs of each, that a full-scale recipe is made for: its name ends with them."""
    found = re.search(r"-(?:(\d+)x)?(\d+)gpu$", name)
    return found and (int(found[1] or 1), int(found[2]))


FULL = {name: gpus for name in shipped() if (gpus := made_for(name))}
SHOWN = [name for name in FULL if name.startswith("grpo/")]
"""Those whose memory is in a README."""


def plan(name: str, settings: Sequence[str] = (), hardware: Hardware | None = None) -> str:
    return str(make(name, settings, hardware))


def full(name: str, *settings: str, gpus: int | None = None, memory: str = "80GB") -> Plan:
    nodes, most = FULL[name]
    return make(name, settings, described(nodes, gpus or most, size(memory)))


def line(text: str, start: str) -> str:
    """The one line of `text` that begins so."""
    lines = [" ".join(part.split()) for part in text.splitlines()]
    (found,) = [part for part in lines if part.startswith(start)]
    return found


@pytest.mark.parametrize("name", shipped())
def test_the_resolved_recipe_is_a_recipe_that_resolves_to_itself(name: str, tmp_path: Path) -> None:
    made = full(name) if name in FULL else make(name)
    resolved = str(made).split("# Stage 0")[0]
    file = tmp_path / "resolved.yaml"
    file.write_text(resolved)
    assert load(file) == load(name)


def test_sizes_of_a_step() -> None:
    text = plan("grpo/find", [*GRPO, "updates_per_batch=3", "epochs=2"])
    assert line(text, "rollouts ") == "rollouts 24 (4 per prompt)"
    assert line(text, "response tokens") == "response tokens at most 3,600 (150 per rollout)"
    assert line(text, "optimiser steps") == "optimiser steps 6"


@pytest.mark.parametrize(
    ("allocation", "most"),
    [
        ("{name: oversample, samples: 32}", 6 * 32),
        ("{name: reinforce_ada, rounds: 3, per_round: 8}", 6 * 24),
        ("{name: dynamic, surplus: drop}", 10 * 24),
        ("{name: gvm, every: 5, pilot: 2}", 5 * 6 * 2 + 5 * 24),
        ("{name: gvm, every: 5, pilot: 2, most: 6}", 5 * 6 * 2 + 6 * 6),
        ("{name: gvm, every: 5, pilot: 2, count_pilot: true}", 5 * 6 * 2 + 5 * 12),
    ],
)
def test_the_most_that_an_allocator_may_sample(allocation: str, most: int) -> None:
    made = make("grpo/find", [*GRPO, f"allocation={allocation}"])
    text = str(made)
    assert line(text, "rollouts ") == f"rollouts up to {most} (4 per prompt train)"
    tokens = f"response tokens at most {most * 150:,} (150 per rollout)"
    assert line(text, "response tokens") == tokens
    step = json.loads(made.json())["stages"][0]["step"]
    assert (step["rollouts"], step["response_tokens"]) == (most, most * 150)


@pytest.mark.parametrize(
    "allocation", ["uniform", "knapsack", "{name: gvm, every: 1, pilot: 2, reuse: true}"]
)
def test_as_many_as_train_is_not_up_to(allocation: str) -> None:
    settings = [*GRPO, f"allocation={allocation}", "data.limit=64"]
    assert line(plan("grpo/find", settings), "rollouts ") == "rollouts 24 (4 per prompt)"


def test_processes_and_logical_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["learner.ranks=2", "rollout.workers=3", "grader.workers=1"]
    text = plan("grpo/find", settings)
    assert line(text, "learner 2") == "learner 2 x (1 CPU) on node 0"
    assert line(text, "rollout 3") == "rollout 3 x (1 CPU) on node 0"
    assert "Ray's logical CPUs: 6; cores here:" in text
    monkeypatch.setattr("launch.doctor.gpus", lambda: ["H100, 81559 MiB"] * 5)
    text = plan("grpo/find", settings)
    assert line(text, "learner 2") == "learner 2 x (1 CPU, 1 GPU of kind H100) on node 0"
    monkeypatch.setattr("launch.doctor.gpus", lambda: ["H100, 81559 MiB"])
    with pytest.raises(ValueError, match=r"learner.ranks=2 .* has 1; set learner.ranks=1 or less"):
        plan("grpo/find", settings)
    text = plan("grpo/find")
    assert line(text, "learner 1 x") == "learner 1 x (1 CPU, 0.5 GPU of kind H100) on node 0"
    assert line(text, "rollout 1 x") == "rollout 1 x (1 CPU, 0.5 GPU) on node 0"
    assert line(text, "on GPUs of learner ranks") == "on GPUs of learner ranks: engine 0"


@pytest.mark.parametrize("target", ["quickstart", "from-scratch", "test", "test-slow"])
def test_tiny_models_hide_the_gpus(target: str) -> None:
    """The recipe of the target is replaced by one that prints what it was given."""
    root = Path(__file__).parents[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    asks = f"include Makefile\n{target}:\n\t@echo gpus=[$$CUDA_VISIBLE_DEVICES]\n"
    done = subprocess.run(
        ["make", "-s", "-f", "-", "-o", ".venv/.core", "-o", ".venv/.test", target],
        input=asks, cwd=root, capture_output=True, text=True,
        env={**env, "CUDA_VISIBLE_DEVICES": "0,1"},
    )  # fmt: skip
    assert "gpus=[]" in done.stdout, done.stderr


def test_warnings_are_part_of_the_plan() -> None:
    assert plan("grpo/find").endswith("# Warnings\nnone")
    crowded = plan("grpo/find", ["rollout.workers=999"])
    assert "rollout.workers" in crowded.split("# Warnings\n")[1]
    idle = plan("grpo/find", ["rollout.in_flight_updates=true"])
    assert "in_flight_updates has no effect" in idle.split("# Warnings\n")[1]


def test_a_hub_model_that_is_not_here_is_planned_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.modelfolder._cached", lambda name, download: None)
    text = plan("grpo/find", ["model.path=some-org/some-model"])
    assert "memory: unknown until 'some-org/some-model' is here" in text
    assert "not on this machine yet" in text.split("# Warnings\n")[1]


def test_a_plan_starts_nothing_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert yaml.safe_load(plan("grpo/find").split("# Stage 0")[0])["name"] == "grpo/find"
    assert list(tmp_path.iterdir()) == []


# Clusters that are described


@pytest.mark.parametrize("name", FULL)
def test_full_scale_recipes_fit_what_they_are_made_for(name: str) -> None:
    made = full(name)
    assert made.deficits == ()
    for part in made.stages:
        assert all(one.has == size("80GB") for one in part.fit.loads)
        if part.stage.kind == "sft":
            continue  # without engines, and fewer learners may do
        gpus = sum(made.hardware.cluster.gpus)
        assert len(part.fit.loads) == gpus, "no GPU is idle"
        assert part.fit.cached is not None, "the model's sizes ship"
        assert part.fit.cached > 20 * part.fit.length, "an engine batches"


def test_the_seven_billion_keep_learners_and_engines_apart() -> None:
    text = str(full("grpo/r1-2x8gpu"))
    assert line(text, "node 0 GPU").startswith("node 0 GPU 0-7 learner 0-7")
    assert line(text, "node 1 GPU").startswith("node 1 GPU 0-7 engine 0-7")
    assert line(text, "weights travel") == "weights travel by nccl"
    assert line(text, "rollouts ") == "rollouts 2048 (16 per prompt)"
    assert "7,615,616,512 parameters" in text


def test_what_does_not_fit_is_said_with_numbers_and_ways_out() -> None:
    made = full("grpo/r1-8gpu", "learner.gradient_checkpointing=false", memory="24GiB")
    learner, ways = made.deficits  # engines take their share of whatever there is
    found = re.match(
        r"node 0 GPU 0-1 needs ([\d.]+) GiB and has 24.00 GiB: ([\d.]+) GiB missing", learner
    )
    assert found
    assert float(found[1]) - 24 == pytest.approx(float(found[2]), abs=0.02)
    freed = re.search(r"learner.gradient_checkpointing=true ([\d.]+) GiB", ways)
    assert freed
    with_it = full("grpo/r1-8gpu", memory="24GiB").stages[0].fit.loads[0].needs
    assert float(freed[1]) == pytest.approx(float(found[1]) - with_it / 2**30, abs=0.02)


def test_each_way_out_frees_what_it_says() -> None:
    settings = ["learner.gradient_checkpointing=false", "tokens_per_micro_batch=65536"]
    made = full("grpo/r1-8gpu", *settings)
    before = max(one.needs for one in made.stages[0].fit.loads)
    ways = re.findall(r"(\S+=\S+) ([\d.]+) GiB", made.deficits[-1])
    assert len(ways) >= 3
    assert [float(f) for _, f in ways] == sorted((float(f) for _, f in ways), reverse=True)
    for change, freed in ways:
        if not change.startswith("learner.ranks"):  # moves processes about
            after = full("grpo/r1-8gpu", *settings, change).stages[0].fit.loads[0].needs
            assert (before - after) / 2**30 == pytest.approx(float(freed), abs=0.01), change


@pytest.mark.parametrize(
    ("settings", "gpus", "memory", "told"),
    [
        ([], 1, "80GB", r"learner.ranks=2 need a GPU each .* has 1; set learner.ranks=1"),
        (
            ["rollout.engine.tensor_parallel=4"],
            8,
            "80GB",
            r"rollout.workers=6 engines of tensor_parallel=4 need 24 GPUs .* room for 1",
        ),
        (["rollout.engine.tensor_parallel=4"], 2, "80GB", r"=4 does not fit on a node of 2 GPUs"),
        (["rollout.engine.tensor_parallel=12"], 16, "80GB", r"8960 MLP features; set one of 1, 2"),
        (["rollout.engine.tensor_parallel=8"], 16, "80GB", r"=8 does not divide .* 12 attention"),
        (["rollout.max_tokens=200000"], 8, "80GB", r"max_tokens=200000: .* context of 131072"),
    ],
)
def test_what_cannot_be_placed_is_one_line(
    settings: list[str], gpus: int, memory: str, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        full("grpo/r1-8gpu", *settings, gpus=gpus, memory=memory)


def test_an_engine_must_hold_a_whole_response() -> None:
    made = full("grpo/r1-8gpu", "rollout.engine.gpu_memory=0.05")
    assert any("its KV cache of" in one and "rollout.engine.gpu_memory" in one
               for one in made.deficits)  # fmt: skip
    small = full("grpo/r1-8gpu", "rollout.max_tokens=3000", "evaluation=null",
                 "rollout.engine.kv_cache_mb=90")  # fmt: skip
    assert any("raise rollout.engine.kv_cache_mb=90" in one for one in small.deficits)


def test_engines_that_sleep_take_turns_with_the_learner() -> None:
    awake = full("grpo/r1-1gpu", "rollout.engine.sleep=false").stages[0].fit
    turns = full("grpo/r1-1gpu").stages[0].fit
    whole = {role: sum(parts.values()) for role, parts in turns.parts.items()}
    assert awake.loads[0].needs == pytest.approx(sum(whole.values()))
    assert max(whole.values()) < turns.loads[0].needs < sum(whole.values())


@pytest.mark.parametrize(
    ("text", "value"),
    [("80GB", 80e9), ("80", 80e9), ("79.6GiB", 79.6 * 2**30), ("81559MiB", 81559 * 2**20)],
)
def test_sizes_are_read(text: str, value: float) -> None:
    assert size(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "much", "80TB", "-1GB", "0"])
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"write e\.g\. 80GB"):
        size(text)


def test_a_described_cluster_is_described_whole() -> None:
    with pytest.raises(ValueError, match="--gpus-per-node"):
        described(2, None, None)
    with pytest.raises(ValueError, match="--gpu-memory 80GB"):
        described(2, 8, None)
    assert described(2, 8, 80e9).cluster == Cluster((Node(8, gpu_bytes=80e9),) * 2)
    assert described(None, 0, None) == Hardware(Cluster.of(0))
    assert described(None, None, None).here
    mixed = described(1, 8, 80e9, [Node(4)])
    assert mixed.cluster.gpus == (8, 4)
    assert not mixed.here
    assert described(None, None, None, [Node(4)]) == Hardware(Cluster.of(4))


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("8xH100-80GB", [Node(8, "H100", gpu_bytes=80e9)]),
        ("2x4xA100-40GiB", [Node(4, "A100", gpu_bytes=40 * 2**30)] * 2),
        ("8x80GB", [Node(8, gpu_bytes=80e9)]),
        ("1xGeForce-RTX-5090-32GB", [Node(1, "GeForce-RTX-5090", gpu_bytes=32e9)]),
    ],
)
def test_nodes_are_read(text: str, nodes: list[Node]) -> None:
    assert node(text) == nodes


@pytest.mark.parametrize("text", ["", "8", "8xH100", "0x80GB", "0x8x80GB", "8xH100-80TB"])
def test_no_node(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"write e\.g\."):
        node(text)
    assert main(["plan", "grpo/find", "--node", text]) == 2
    assert "argument --node: " in capsys.readouterr().err


def test_gpus_of_each_node_count_with_their_own_memory() -> None:
    nodes = [*node("8xH100-80GB"), *node("2xA100-40GB")]
    made = make("grpo/r1-8gpu", ["learner.ranks=7", "rollout.workers=3"],
                described(None, None, None, nodes))  # fmt: skip
    assert made.deficits == ()
    *_, large, small, _ = fits = made.stages[0].fit.loads
    assert [one.has for one in fits] == [80e9] * 8 + [40e9] * 2
    assert large.processes == ("rollout 0",)
    assert small.needs < large.needs / 1.8, "an engine takes its share of what is there"
    whole = described(None, None, None, [*node("8xH100-24GB"), *node("2xA100-80GB")])
    tight = make("grpo/r1-8gpu", ["learner.gradient_checkpointing=false", "learner.ranks=7"], whole)
    assert tight.deficits[0].startswith("node 0 GPU 0-6 needs")


def test_what_shares_a_gpu_and_does_not_fit_is_told_node_by_node() -> None:
    settings = ["learner.ranks=16", "rollout.workers=16", "rollout.engine.sleep=false"]
    made = make("grpo/r1-8gpu", [*settings, "max_staleness=0"], described(2, 8, 80e9))
    assert re.match(
        r"node 0-1 GPU 0-7 needs [\d.]+ GiB and has 74.51 GiB: [\d.]+ GiB missing "
        r"\(learner 0, engine 0, \.\.\.\)",
        made.deficits[0],
    )
    assert "rollout.engine.sleep=true" in made.deficits[1]


HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "flash_attn", "datasets", "peft")


@pytest.mark.parametrize("name", SHOWN)
def test_planning_needs_neither_gpus_nor_network_nor_the_heavy_packages(
    name: str, tmp_path: Path
) -> None:
    """In a process in which they cannot be imported, no name resolves, and no model is cached."""
    nodes, gpus = FULL[name]
    code = f"""
import socket, sys
sys.modules.update(dict.fromkeys({HEAVY!r}))
def no(*_, **__): raise OSError("no network here")
socket.getaddrinfo = socket.socket.connect = no
from launch.cli import main
sys.exit(main(["plan", {name!r}, "--nodes", "{nodes}", "--gpus-per-node", "{gpus}",
               "--gpu-memory", "80GB", "--json"]))
"""
    env = {**os.environ, "HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    out = json.loads(done.stdout)
    (stage,) = out["stages"]
    assert out["missing"] == []
    assert stage["parameters"] > 1.7e9
    for one in stage["loads"]:
        assert one["needs"] < one["has"] == 80e9
    assert out["recipe"]["name"] == name


def test_this_machine_lacks_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a description it is planned for this machine, and what is not here is said."""
    monkeypatch.setattr("samplers.engines.vllm.build", lambda: None)
    flash = ["model.attention=flash_attention_2", "max_staleness=0"]
    made = make("grpo/r1-8gpu", flash)
    assert any("vLLM is not installed" in one for one in made.deficits)
    assert any("needs the package flash_attn" in one for one in made.deficits)
    assert not any("flash" in one or "not installed" in one
                   for one in full("grpo/r1-8gpu", flash[0]).deficits)  # fmt: skip


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = ["--gpus-per-node", "8", "--gpu-memory"]
    assert main(["plan", "grpo/r1-8gpu", *cluster, "80GB"]) == 0
    assert "weights travel by" in capsys.readouterr().out
    assert main(["plan", "grpo/r1-8gpu", *cluster, "16GB"]) == 1
    told = capsys.readouterr()
    assert "# Missing" in told.out
    assert told.err.startswith("laconic: does not fit: node 0 GPU")
    assert main(["plan", "grpo/r1-8gpu", "--gpus-per-node", "1", "--gpu-memory", "80GB"]) == 2
    assert main(["plan", "grpo/find", *cluster, "a lot"]) == 2
    assert main(["plan", "grpo/find", "--gpus-per-node", "2"]) == 2


@pytest.mark.parametrize("name", SHOWN)
def test_the_readme_shows_what_the_plan_says(name: str) -> None:
    readme = (RECIPES / "grpo" / "README.md").read_text()
    fitted = full(name).stages[0].fit
    for item in {item for parts in fitted.parts.values() for item in parts}:
        (row,) = [line for line in readme.splitlines() if line.startswith(f"| {item} |")]
        for parts in fitted.parts.values():
            assert item not in parts or f"{parts[item] / 2**30:.2f}" in row, (item, row)
    for load_ in fitted.loads:
        assert f"{load_.needs / 2**30:.2f}" in readme
