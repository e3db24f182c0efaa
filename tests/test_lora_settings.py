"""LoRA's settings: told before anything is loaded, counted exactly, and where exports lie."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_model, tiny_tokenizer
from trainer import preflight
from trainer.config import Recipe, Stage, load, resolve
from trainer.lora import LoraConfig, check_names, trainable
from trainer.modelfolder import ModelFolder, fetch, locate

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def recipe(**lora: Any) -> Recipe:
    settings = [f"model.lora.{name}={value}" for name, value in lora.items()]
    return load("grpo/find", settings or ["model.lora=true"])


def adapted(folder: Path, config: LoraConfig) -> int:
    from trainer import policy

    model = policy.load(str(folder), dtype="float32", attention="sdpa", lora=config)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gpt2"])
def test_trainable_weights_are_counted_exactly(tmp_path: Path, arch: str) -> None:
    tiny_model(arch, tied=False).save_pretrained(tmp_path)
    folder = ModelFolder(tmp_path)
    one = ("q_proj", "mlp.down_proj") if arch != "gpt2" else ("attn.c_proj",)
    for config in (LoraConfig(), LoraConfig(rank=3, targets=one)):
        assert folder.shapes is not None
        assert trainable(folder.shapes, config) == adapted(tmp_path, config)


def test_they_are_counted_without_weights_too(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    there = ModelFolder(tmp_path)
    expected = {name: list(shape) for name, shape in (there.shapes or {}).items()}
    (tmp_path / "model.safetensors").unlink()
    assert ModelFolder(tmp_path).shapes == expected


def test_targets_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    line = r"model\.lora\.targets: 'qproj' .* did you mean 'q_proj'\?; there are .*k_proj"
    unknown = LoraConfig(targets=("v_proj", "qproj"))
    with pytest.raises(ValueError, match=line):
        check_names(ModelFolder(tmp_path), unknown, build=False)
    (tmp_path / "model.safetensors").unlink()
    check_names(ModelFolder(tmp_path), unknown, build=False)  # nothing here knows better yet
    with pytest.raises(ValueError, match=line):
        check_names(ModelFolder(tmp_path), unknown, build=True)
    check_names(ModelFolder(tmp_path), LoraConfig(targets=KINDS), build=True)
    with pytest.raises(ValueError, match="targets: 'lm_head' is no linear module"):
        preflight.check_all(recipe(targets="[q_proj, lm_head]"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.lora.dropout=0.05"], r"model\.lora: dropout=0\.05: .* set dropout: 0"),
        (["model.lora.targets=[]"], "nothing would be trained"),
        (["model.lora=8"], r"model\.lora: 8 is neither true nor a mapping .*set null"),
        (["model.lora=false"], r"model\.lora: False is neither .*set null"),
        (["model.lora.rank=0"], "model.lora.rank: .* greater than or equal to 1"),
        (["model.lora.ranks=8"], "model.lora.ranks: unknown field; did you mean 'rank'"),
        (["model.lora=true", "optim.name=muon"], "optim.name=muon with model.lora: .*adamw"),
        (
            ["model.lora=true", "loss.kl=k2", "loss.reference=ema"],
            r"loss\.reference=ema with model\.lora: .*frozen",
        ),
    ],
)
def test_what_does_not_combine_is_one_line(settings: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        load("grpo/find", settings)
    assert "\n" not in str(caught.value)


def test_ways_to_write_it() -> None:
    assert recipe().stages[0].model.lora == LoraConfig(rank=16, alpha=32.0)
    one = recipe(targets="q_proj").stages[0].model.lora
    assert one is not None
    assert one.targets == ("q_proj",)
    for whole in ("all-linear", "[all-linear]", "[q_proj, all-linear]"):
        assert recipe(targets=whole) == recipe()
    assert load("grpo/find").stages[0].model.lora is None


def test_the_rate_of_full_training_is_warned_of() -> None:
    stage = load("grpo/find").stages[0].model_dump()
    stage["model"]["lora"] = {}
    rate = stage["optim"].pop("lr")
    with pytest.warns(UserWarning, match="optim.lr is left at 1e-06, .* ten times"):
        Stage(**stage)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Stage(**stage | {"optim": {"lr": rate}})


def test_new_tokens_are_refused_with_adapters(tmp_path: Path) -> None:
    """Their rows would never be trained."""
    from trainer.fresh import start_model

    tiny_model().save_pretrained(tmp_path / "plain")
    tiny_tokenizer(markers=False).save_pretrained(tmp_path / "plain")
    tiny_model().save_pretrained(tmp_path / "marked")
    tiny_tokenizer().save_pretrained(tmp_path / "marked")
    raw = {"path": str(tmp_path / "plain"), "add_markers": True, "lora": {}}
    stage = {"model": raw, "data": {"task": "find"}, "optim": {"lr": 1e-3}}
    wanted = resolve({"name": "new", **stage})
    said = r"model\.add_markers with model\.lora: .* begin with a stage that trains in full"
    with pytest.raises(ValueError, match=said):
        preflight.check_all(wanted)
    with pytest.raises(ValueError, match=said):
        start_model(tmp_path / "plain", tmp_path / "made", wanted.stages[0], 0)
    has = wanted.stages[0].model_copy(
        update={"model": wanted.stages[0].model.model_copy(update={"path": "marked"})}
    )
    assert start_model(tmp_path / "marked", tmp_path / "made", has, 0) == tmp_path / "marked"
    # a stage in full that adds them first makes it right
    first = stage | {"kind": "sft", "model": raw | {"lora": None}, "loss": {"name": "ce"}}
    preflight.check_all(resolve({"name": "two", "stages": [first, stage]}))


def test_an_adapter_stands_for_the_merged_model_around_it(tmp_path: Path) -> None:
    (tmp_path / "model" / "adapter").mkdir(parents=True)
    tiny_model().save_pretrained(tmp_path / "model")
    config = '{"base_model_name_or_path": "org/base"}'
    (tmp_path / "model" / "adapter" / "adapter_config.json").write_text(config)
    assert locate(str(tmp_path / "model" / "adapter")) == tmp_path / "model"
    assert fetch(str(tmp_path / "model" / "adapter")) == tmp_path / "model"
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "adapter_config.json").write_text(config)
    with pytest.raises(ValueError, match=r"an adapter of 'org/base' and no model; merge it first"):
        locate(str(tmp_path / "alone"))
