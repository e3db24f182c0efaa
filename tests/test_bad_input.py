"""Bad input: exit code 2 and one line that names the field, the value and the fix; nothing starts.

Every case goes through `laconic train` with the cluster taken away: what is not refused before
it would be a test that fails.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from launch.cli import main
from tests.tiny import tiny_model, tiny_tokenizer
from trainer import runfolder
from trainer.config import load

ROWS = [{"id": i, "problem": f"{i}+1?", "answer": str(i + 1)} for i in range(8)]


@dataclass
class Case:
    """A recipe file with its model and data, all good until a test spoils one of them."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "mine.yaml"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def data(self) -> Path:
        return self.folder / "train.jsonl"

    def write(self, rows: list[Any]) -> None:
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(self, **changes: Any) -> None:
        file = self.model / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders without weights: nothing here may want to load them."""
    kinds = {
        "good": tiny_tokenizer(),
        "no markers": tiny_tokenizer(markers=False),
        "no template": tiny_tokenizer(template=None),
    }
    folders = {}
    for kind, tokenizer in kinds.items():
        folders[kind] = tmp_path_factory.mktemp("tokenizer") / "model"
        tokenizer.save_pretrained(folders[kind])
        tiny_model().config.save_pretrained(folders[kind])
    return folders


@pytest.fixture
def case(tmp_path: Path, tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Case:
    made = Case(tmp_path)
    put_model(made, tokenizers["good"])
    made.write(ROWS)
    made.recipe.write_text(
        yaml.safe_dump(
            {
                "name": "mine",
                "output": str(tmp_path / "runs"),
                "model": {"path": str(made.model)},
                "data": {"path": {"train": str(made.data), "test": str(made.data)}},
                "steps": 1,
                "prompts_per_step": 4,
                "rollouts_per_prompt": 4,
                "rollout": {"max_tokens": 32},
                "evaluation": {"budgets": [0, 8]},
            }
        )
    )
    monkeypatch.setattr("launch.run.cluster", started)
    return made


class StartedError(Exception):
    """Everything was accepted: now processes would start."""


@contextmanager
def started(*_: Any, **__: Any) -> Iterator[None]:
    raise StartedError
    yield


def put_model(case: Case, source: Path) -> None:
    case.model.mkdir(exist_ok=True)
    for file in source.iterdir():
        (case.model / file.name).write_bytes(file.read_bytes())


def test_the_case_itself_is_good(case: Case) -> None:
    """Else every refusal below might have another reason."""
    with pytest.raises(StartedError):
        main(["train", str(case.recipe)])


SETTINGS: dict[str, tuple[list[str], list[str]]] = {
    "unknown field": (["optm.lr=1"], ["optm", "did you mean 'optim'"]),
    "unknown nested field": (["optim.lrr=1"], ["optim.lrr", "did you mean 'lr'"]),
    "unknown component": (["algorithm=grop"], ["algorithm", "'grop'", "did you mean 'grpo'"]),
    "unknown field of a component": (
        ["algorithm={name: grpo, sdt: group}"],
        ["algorithm", "sdt", "did you mean 'std'"],
    ),
    "bad value of a component": (
        ["algorithm={name: grpo, std: most}"],
        ["algorithm.std", "'most'", "'group'"],
    ),
    "wrong type": (["steps=many"], ["steps", "'many'", "integer"]),
    "below the least": (["rollouts_per_prompt=0"], ["rollouts_per_prompt", "0", "1"]),
    "no equals sign": (["steps"], ["'steps'", "key=value"]),
    "broken value": (["optim={lr: [}"], ["'optim={lr: [}'", "not a YAML value"]),
    "no such stage": (["stages.3.steps=5"], ["stages.3.steps=5", "1 stage"]),
    "sizes that do not divide": (
        ["updates_per_batch=3"],
        ["prompts_per_step=4", "updates_per_batch=3", "multiple"],
    ),
    "a group of one": (["rollouts_per_prompt=1"], ["rollouts_per_prompt=1", "grpo", "2 or more"]),
    "cap above the context": (
        ["rollout.max_tokens=400"],
        ["rollout.max_tokens=400", "context of 256", "or less"],
    ),
    "cap and prompt above the context": (
        ["rollout.max_tokens=254"],
        ["rollout.max_tokens=254", "up to 4 tokens", "rollout.max_tokens=252 or less"],
    ),
    "budget above the cap": (["budget={name: fixed, think: 64}"], ["think", "64", "32"]),
    "evaluation budget above the cap": (
        ["evaluation.budgets=[8, 64]"],
        ["evaluation.budgets", "64", "32", "rollout.max_tokens"],
    ),
    "evaluation budget twice": (["evaluation.budgets=[8, 8]"], ["budgets", "[8, 8]", "different"]),
    "top_p in training": (["rollout.top_p=0.9"], ["top_p=0.9", "top_p: 1.0"]),
    "marker of several tokens": (
        ["thinking.end=</done>"],
        ["thinking.end", "'</done>'", "7 tokens", "model.add_markers=true"],
    ),
    "unknown verifier function": (
        ["verifier=nowhere.grade:fn"],
        ["nowhere.grade:fn", "PYTHONPATH"],
    ),
    "missing data file": (["data.path.train=nowhere.jsonl"], ["data.path", "nowhere.jsonl"]),
    "two sources of data": (
        ["data={task: find, path: x}"],
        ["data", "exactly one of task, path and hub"],
    ),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings(case: Case, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assignments, said = SETTINGS[kind]
    refused(case, capsys, said, *assignments)


def _rows(rows: list[Any]) -> Callable[[Case, dict[str, Path]], None]:
    return lambda case, _: case.write(rows)


def _text(text: str) -> Callable[[Case, dict[str, Path]], None]:
    return lambda case, _: (case.data.write_text(text), None)[1]


def _folder(kind: str) -> Callable[[Case, dict[str, Path]], None]:
    def spoil(case: Case, tokenizers: dict[str, Path]) -> None:
        for file in case.model.iterdir():
            file.unlink()
        put_model(case, tokenizers[kind])

    return spoil


def _config(**changes: Any) -> Callable[[Case, dict[str, Path]], None]:
    return lambda case, _: case.config(**changes)


def _recipe(text: str) -> Callable[[Case, dict[str, Path]], None]:
    return lambda case, _: (case.recipe.write_text(text), None)[1]


Spoil = Callable[[Case, dict[str, Path]], None]
FILES: dict[str, tuple[Spoil, list[str]]] = {
    "empty dataset": (_text(""), ["train.jsonl", "empty"]),
    "row without answer": (
        _rows([*ROWS[:2], {"problem": "9+9?"}]),
        ["train.jsonl", "train.jsonl:3", "no answer", "skip_unanswered"],
    ),
    "duplicate ids": (_rows([*ROWS, ROWS[3]]), ["train.jsonl:9", "'3'", "train.jsonl:4", "unique"]),
    "broken JSON": (
        _text(json.dumps(ROWS[0]) + '\n{"problem": \n'),
        ["train.jsonl:2", "broken JSON"],
    ),
    "no config.json": (lambda c, _: (c.model / "config.json").unlink(), ["config.json"]),
    "broken config.json": (
        lambda c, _: ((c.model / "config.json").write_text("{"), None)[1],
        ["config.json", "broken JSON"],
    ),
    "pickled weights": (
        lambda c, _: ((c.model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n"), None)[1],
        ["model.path", "pytorch_model*.bin", "save_pretrained"],
    ),
    "not a causal model": (
        _config(architectures=["BertForMaskedLM"]),
        ["model.path", "BertForMaskedLM", "ForCausalLM"],
    ),
    "an encoder-decoder": (
        _config(architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True),
        ["model.path", "T5ForConditionalGeneration", "ForCausalLM"],
    ),
    "no chat template": (
        _folder("no template"),
        ["model.path", "no chat template", "data.chat=false"],
    ),
    "markers missing": (
        _folder("no markers"),
        ["thinking.start", "'<think>'", "7 tokens", "model.add_markers=true", "thinking=none"],
    ),
    "broken tokenizer": (
        lambda c, _: ((c.model / "tokenizer.json").write_text("{"), None)[1],
        ["tokenizer.json", "save the tokenizer again"],
    ),
    "broken recipe": (_recipe("steps: [1\n"), ["mine.yaml", "broken YAML", "line 2"]),
    "a recipe that is a list": (_recipe("- steps\n"), ["mine.yaml", "mapping", "list"]),
    "a recipe without a model": (_recipe("data: {task: find}\n"), ["model", "required"]),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(
    case: Case, kind: str, tokenizers: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, said = FILES[kind]
    spoil(case, tokenizers)
    refused(case, capsys, said)


def test_missing_model_folder_names_the_nearest(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = case.folder / "modle"
    said = [f"'{missing}'", f"did you mean '{case.model}'"]
    refused(case, capsys, said, f"model.path={missing}")


def test_gold_that_the_verifier_rejects(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.write([*ROWS[:2], {"id": "odd", "problem": "x?", "answer": "no number"}])
    refused(
        case,
        capsys,
        ["row odd", "'no number'", "not a number", "another verifier"],
        "verifier=numeric",
    )


def test_recipe_that_is_not_there_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "grpo/fnd"]) == 2
    error = capsys.readouterr().err
    assert "'grpo/fnd'" in error
    assert "did you mean 'grpo/find'" in error


def test_run_folder_in_use(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    folder = load(case.recipe).folder
    said = [str(folder), "in use by process", "output="]
    refused(case, capsys, said, holding=runfolder.claim(folder))


def test_folder_of_another_finished_run(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load(case.recipe)
    recipe.folder.mkdir(parents=True)
    (recipe.folder / runfolder.CONFIG).write_text(runfolder.resolved(recipe))
    (recipe.folder / runfolder.DONE).touch()
    assert main(["train", str(case.recipe)]) == 0  # the same run: nothing to do
    capsys.readouterr()
    said = [str(recipe.folder), "steps is 1 there, 2 here", "output="]
    refused(case, capsys, said, "steps=2")


def test_a_run_may_go_on_with_other_fields_that_move_no_number(case: Case) -> None:
    recipe = load(case.recipe)
    recipe.folder.mkdir(parents=True)
    (recipe.folder / runfolder.CONFIG).write_text(runfolder.resolved(recipe))
    (recipe.folder / runfolder.DONE).touch()
    settings = ["checkpoint.every=1", "checkpoint.keep=5", "tracking.wandb=offline"]
    assert main(["train", str(case.recipe), *settings]) == 0
    recipe.folder.parent.rename(case.folder / "moved")
    assert main(["train", str(case.recipe), f"output={case.folder}/moved"]) == 0


def test_flash_attention_names_all_that_it_lacks(
    case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    half, package, gpu = "model.dtype=bfloat16 (it is float32)", "the package flash_attn", "GPU"
    flash = "model.attention=flash_attention_2"
    monkeypatch.setattr("trainer.preflight._sees_gpu", lambda: False)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    refused(case, capsys, [flash, half, package, gpu, "model.attention=sdpa"], flash)
    module = ModuleType("flash_attn")
    module.__spec__ = ModuleSpec("flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    bf16 = ("model.dtype=bfloat16", "learner.zero=1")
    refused(case, capsys, [f"{flash} needs a visible GPU; or"], flash, *bf16)
    monkeypatch.setattr("trainer.preflight._sees_gpu", lambda: True)
    refused(case, capsys, [f"{flash} needs {half}; or"], flash)
    with pytest.raises(StartedError):
        main(["train", str(case.recipe), flash, "model.dtype=bfloat16"])


def test_the_stage_is_named_where_there_are_several(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    text = case.recipe.read_text() + "stages: [{}, {rollout: {max_tokens: 400}}]\n"
    case.recipe.write_text(text)
    refused(case, capsys, ["stages.1", "rollout.max_tokens=400"])


def test_every_mistake_has_its_line(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(case.recipe), "steps=many", "optm=1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [any(field in line for line in lines) for field in ("steps", "optm")] == [True, True]
    assert len(lines) == 2


def refused(
    case: Case,
    capsys: pytest.CaptureFixture[str],
    said: list[str],
    *assignments: str,
    holding: AbstractContextManager[Any] | None = None,
) -> None:
    """`laconic train` ends with 2 and one line that says all of `said`."""
    with holding or nullcontext():
        assert main(["train", str(case.recipe), *assignments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("laconic: ")
    assert error.count("\n") == 1, error
    for part in said:
        assert part in error
