"""What is said of a model before it is loaded is what it is once it is loaded."""

from __future__ import annotations

import json
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer
from trainer import checkpoint
from trainer.modelfolder import ModelFolder, fetch, locate


def saved(folder: Path, arch: str = "qwen3", **sizes: Any) -> tuple[ModelFolder, Any]:
    """A model on disk, and the model."""
    model = tiny_model(arch, **sizes)
    model.save_pretrained(folder)
    return ModelFolder(folder), model


def weights(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_exactly(tmp_path: Path, arch: str, tied: bool) -> None:
    folder, model = saved(tmp_path, arch, tied=tied)
    assert folder.parameters == weights(model)


def test_parameters_of_several_files(tmp_path: Path) -> None:
    model = tiny_model(tied=False)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert ModelFolder(tmp_path).parameters == weights(model)


@pytest.mark.parametrize("tied", [True, False])
def test_without_weights_they_are_estimated_from_the_configuration(
    tmp_path: Path, tied: bool
) -> None:
    folder, model = saved(tmp_path, "llama", tied=tied)
    (tmp_path / "model.safetensors").unlink()
    assert folder.parameters == weights(model)


def test_a_family_with_other_names_is_not_guessed_at(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, "gpt2")
    (tmp_path / "model.safetensors").unlink()
    assert folder.parameters is None


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_cache_of_a_token_and_context(tmp_path: Path, arch: str) -> None:
    import torch

    folder, model = saved(tmp_path, arch)
    cache = model(torch.tensor([[3, 4, 5]])).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert folder.kv_bytes_per_token(4) == held / 3
    assert folder.context == 256


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
        assert folder.parameters


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_chat_template_wherever_it_is(tmp_path: Path, file: str) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert ModelFolder(tmp_path).chat_template is None
    if file.endswith(".jinja"):
        (tmp_path / file).write_text(CHAT_TEMPLATE)
    else:
        fields = json.loads((tmp_path / file).read_text())
        (tmp_path / file).write_text(json.dumps(fields | {"chat_template": CHAT_TEMPLATE}))
    assert ModelFolder(tmp_path).chat_template == CHAT_TEMPLATE


def test_markers_are_known_only_as_one_token(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    folder = ModelFolder(tmp_path)
    assert folder.knows("<think>")
    assert folder.knows("w")
    assert not folder.knows("</done>")
    assert folder.tokens("</done>") == 7
    assert not folder.knows("~~")


def test_a_run_folder_stands_for_its_newest_complete_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        locate(str(tmp_path))
    for step in (5, 10):
        checkpoint.save(root, step, lambda folder: (folder / "model").mkdir(), {}, keep=2)
    (root / "step-000020" / "model").mkdir(parents=True)  # cut off while it was written
    assert locate(str(tmp_path)) == root / "step-000010" / "model"


@pytest.mark.parametrize(
    ("name", "hub"),
    [("org/name", True), ("base/find", False), ("base/fnd", False), ("a/b/c", False)],
)
def test_what_may_be_a_hub_name(name: str, hub: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("trainer.modelfolder._cached", lambda name, download: asked.append(name))
    folder = (Path(__file__).parent.parent / "recipes" / name).is_dir()
    refused = pytest.raises(ValueError, match="no folder")
    with nullcontext() if hub or folder else refused:
        locate(name)
    assert bool(asked) == hub


@pytest.mark.parametrize(
    ("weights", "got"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin"], None),
        ([], None),
    ],
)
def test_weights_of_a_hub_model_are_never_drawn_at_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: list[str], got: list[str] | None
) -> None:
    """A folder without weights would be: it is refused, and so are pickled ones."""

    def download(name: str, allow_patterns: list[str], **_: Any) -> str:
        for file in ("config.json", *weights):
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with nullcontext() if got else pytest.raises(ValueError, match=r"'org/old' holds no"):
        fetch("org/old")
    if got:
        assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", *got]
