"""Risk: `laconic resume` goes on with the wrong thing, wrongly, or not where it could."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.run import FRESH
from tests.resuming import made, save, state, write_rows
from tests.tiny import tiny_model, tiny_tokenizer
from trainer import runfolder
from trainer.config import load

Captured = pytest.CaptureFixture[str]


class StartedError(Exception):
    """Everything was accepted: now processes would start."""


@contextmanager
def started(*_: Any, **__: Any) -> Iterator[None]:
    raise StartedError
    yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny_tokenizer().save_pretrained(folder)
    tiny_model().config.save_pretrained(folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a run was started, which stopped after step 2; people stand elsewhere by now."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    recipe = made(home, model)
    recipe.folder.mkdir(parents=True)
    runfolder.settle(recipe, None, FRESH, print)
    save(recipe.folder, state(0, 2))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr("launch.run.cluster", started)
    return home


def run_of(home: Path) -> Path:
    return home / "runs" / "mine-seed0"


def resumes(folder: Path, *settings: str) -> None:
    with pytest.raises(StartedError):
        main(["resume", str(folder), *settings])


def refused(capsys: Captured, folder: Path | str, *settings: str) -> list[str]:
    capsys.readouterr()
    assert main(["resume", str(folder), *settings]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("laconic: ") for line in lines)
    return [line.removeprefix("laconic: ") for line in lines]


def note(folder: Path) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((folder / "resumes.jsonl").read_text().splitlines()[-1])
    return line


def test_nothing_changed(home: Path, capsys: Captured) -> None:
    folder, before = run_of(home), os.getcwd()
    config = (folder / "config.yaml").read_text()
    resumes(folder)
    assert capsys.readouterr().out == f"{folder} goes on from step 2\n"
    assert (folder / "config.yaml").read_text() == config
    line = note(folder)
    assert (line["step"], line["checkpoint"]) == (2, "step-000002")
    assert (line["changes"], line["facts"]) == ({}, {})
    assert os.getcwd() == before


def test_from_python(home: Path) -> None:
    from trainer import resume

    with pytest.raises(StartedError):
        resume(run_of(home), "optim.lr=0.5")
    assert note(run_of(home))["changes"] == {"optim.lr": [1e-6, 0.5]}


def test_a_moved_folder_goes_on_where_it_is(home: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "better-name"
    run_of(home).rename(moved)
    resumes(Path("better-name"))
    assert note(moved)["step"] == 2
    assert not run_of(home).exists()


def test_the_folder_where_it_was_started_is_gone(
    home: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    home.rename(there)
    monkeypatch.chdir(there)
    resumes(Path("runs/mine-seed0"))
    error = capsys.readouterr().err
    assert f"{home}, where the run was started, is gone" in error


def test_own_modules_are_found_from_elsewhere(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    other = home / "other"
    other.mkdir()
    (other / "graded_by_me.py").write_text("def fn(text, gold, meta):\n    return text == gold\n")
    with monkeypatch.context() as there:
        there.chdir(other)
        there.syspath_prepend(str(other))
        recipe = made(other, model, verifier="graded_by_me:fn", evaluation=None)
        recipe.folder.mkdir(parents=True)
        runfolder.settle(recipe, None, FRESH, print)
    save(other / recipe.folder, state(0, 2))
    sys.modules.pop("graded_by_me")
    resumes(other / recipe.folder)
    told = f"runs code that is not Laconic's: graded_by_me:fn ({other / 'graded_by_me.py'})\n"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("inside", ["evil.py", "evil/__init__.py", "evil/__init__.py:"])
def test_code_that_came_with_a_run_is_not_run(home: Path, tmp_path: Path, capsys: Captured,
                                              monkeypatch: pytest.MonkeyPatch,
                                              inside: str) -> None:  # fmt: skip
    """A stranger's folder says what to import, and from where."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder, sign = run_of(home), tmp_path / "sign"
    code = folder / inside.rstrip(":")
    code.parent.mkdir(exist_ok=True)
    code.write_text(f"import os; os.mkdir({str(sign)!r})\ndef fn(text, gold, meta): return True\n")
    if not inside.endswith(":"):  # else what is named is not there, and its package is
        (code.parent / "part.py").write_text("")
    environment = folder / "environment.json"
    environment.write_text(
        json.dumps(json.loads(environment.read_text()) | {"started": {"cwd": str(folder)}})
    )
    text = (folder / "config.yaml").read_text()
    name = "evil:fn" if inside == "evil.py" else "evil.part"
    changed = text.replace("verifier: task", f"verifier: {name}")
    if changed == text:
        changed = text.replace("algorithm: grpo", f"algorithm: {name}")
    assert changed != text
    (folder / "config.yaml").write_text(changed)
    (line,) = refused(capsys, folder)
    assert f"names {name}, which lies in the run's own folder ({code})" in line
    assert not sign.exists()


def test_settings_are_told_and_kept(home: Path, capsys: Captured) -> None:
    folder = run_of(home)
    resumes(folder, "optim.lr=0.5", "checkpoint.keep=7")
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("optim.lr: 1e-06 -> 0.5: ")
    assert said[2] == "from step 2 on the run is no longer, bit for bit, that of one recipe"
    assert len(said) == 3, "what moves no number is not worth a line"
    kept = runfolder.stored(folder)
    assert (kept.stages[0].optim.lr, kept.checkpoint.keep) == (0.5, 7)
    assert note(folder)["changes"] == {"optim.lr": [1e-6, 0.5], "checkpoint.keep": [2, 7]}
    resumes(folder)
    assert note(folder)["changes"]["optim.lr"] == [1e-6, 0.5], "the checkpoint is that of before"
    save(folder, state(0, 3))
    resumes(folder)
    assert note(folder)["changes"] == {}


def test_an_edited_configuration_is_as_good_as_settings(home: Path, capsys: Captured) -> None:
    config = run_of(home) / runfolder.CONFIG
    text = config.read_text()
    config.write_text(text.replace("lr: 1.0e-06", "lr: 0.5"))
    resumes(run_of(home))
    assert "optim.lr: 1e-06 -> 0.5: " in capsys.readouterr().out
    config.write_text(text.replace("seed: 0", "seed: 4"))
    assert refused(capsys, run_of(home))[0].startswith("seed: 0 -> 4: ")


def test_a_refusal_leaves_everything_as_it_was(
    home: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_of(home)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    seed, lr, anew = refused(capsys, folder, "optim.lr=0.5", "seed=4")
    assert seed.startswith("seed: 0 -> 4: ")
    assert lr.startswith("optim.lr: ")
    assert anew.startswith("a new run with what is trained: laconic train ")
    now = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    assert now == before
    command = anew.partition("laconic ")[2].split()
    monkeypatch.chdir(home)
    with pytest.raises(StartedError):
        main(command)


def test_changed_data_tokenizer_model_and_versions(home: Path, capsys: Captured) -> None:
    folder, train, template = run_of(home), home / "train.jsonl", home / "model/chat_template.jinja"
    whole, text = train.read_text(), template.read_text()
    train.write_text(whole.replace('"3+1?"', '"2+2?"'))
    line, _ = refused(capsys, folder)
    assert line.startswith("dataset.train: ")
    assert "prompts would be skipped or repeated; restore it" in line
    train.write_text(whole)
    template.write_text(text.replace("<user>", "<user> "))
    line, _ = refused(capsys, folder)
    assert line.startswith("model.tokenizer: ")
    template.write_text(text)
    config = json.loads((home / "model/config.json").read_text())
    (home / "model/config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    line, _ = refused(capsys, folder)
    assert line.startswith("model.config: ")
    (home / "model/config.json").write_text(json.dumps(config))
    line, *_ = refused(capsys, folder)  # the same by meaning, and not by its bytes
    assert line.startswith("model.config: ")


def test_found_changes_that_may_be(home: Path, capsys: Captured) -> None:
    folder = run_of(home)
    write_rows(home / "test.jsonl", 200)
    stored = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(stored | {"torch": "1.0", "peft": "0"}))
    capsys.readouterr()
    resumes(folder)
    said = capsys.readouterr().out
    for name in ("torch: 1.0 -> ", "dataset.test: ", "no longer, bit for bit"):
        assert name in said
    assert set(note(folder)["facts"]) == {"torch", "peft", "dataset.test"}


def test_training_files_may_be_moved(home: Path, capsys: Captured) -> None:
    (home / "train.jsonl").rename(home / "moved.jsonl")
    where = "data.path.train=moved.jsonl"
    lines = refused(capsys, run_of(home))
    assert "train.jsonl" in lines[0]
    resumes(run_of(home), where)
    assert "data.path.train: train.jsonl -> moved.jsonl: they come out the same" in (
        capsys.readouterr().out
    )


def test_no_checkpoint_yet(home: Path, capsys: Captured) -> None:
    folder = run_of(home)
    shutil.rmtree(folder / "checkpoints")
    resumes(folder, "seed=0", "optim.lr=0.5")
    assert capsys.readouterr().out == f"{folder} has no checkpoint yet, and begins anew\n"
    assert runfolder.stored(folder).stages[0].optim.lr == 0.5
    assert note(folder)["checkpoint"] is None


def test_a_finished_run(home: Path, capsys: Captured) -> None:
    folder = run_of(home)
    save(folder, state(0, 5))
    (folder / runfolder.DONE).touch()
    assert main(["resume", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder} is finished\n{folder}\n"
    assert main(["resume", str(folder), "optim.lr=0.5"]) == 0
    assert "optim.lr=0.5: no effect on what is done" in capsys.readouterr().err
    resumes(folder, "steps=7")
    assert not (folder / runfolder.DONE).exists()
    assert runfolder.stored(folder).stages[0].steps == 7


def test_settings_of_stages(home: Path, model: Path, capsys: Captured,
                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(home)
    recipe = load(home / "mine.yaml", ["name=three", "stages=[{steps: 2}, {steps: 3}, {steps: 4}]"])
    recipe.folder.mkdir(parents=True)
    runfolder.settle(recipe, None, FRESH, print)
    save(recipe.folder, state(1, 1, 2))
    (line,) = refused(capsys, recipe.folder, "optim.lr=0.5")
    assert "stages 1 to 2 are left; write stages.1.optim.lr=0.5" in line
    line, anew = refused(capsys, recipe.folder, "stages.0.optim.lr=0.5")
    assert line.startswith("stages.0.optim.lr: 1e-06 -> 0.5: stage 0 is over")
    assert "a recipe of the stages that are left" in anew
    resumes(recipe.folder, "stages.2.optim.lr=0.5")
    assert "no longer" not in capsys.readouterr().out, "as if it had been so from the beginning"
    save(recipe.folder, state(2, 1, 5))
    resumes(recipe.folder, "optim.lr=0.25")
    assert runfolder.stored(recipe.folder).stages[2].optim.lr == 0.25


def test_what_a_later_stage_begins_with_is_of_what_is_trained(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its model and examples stay for a run that was stopped in it, and for no other one."""
    monkeypatch.chdir(home)
    recipe = load(home / "mine.yaml", ["name=two", "stages=[{steps: 2}, {steps: 3}]"])
    folder = recipe.folder.absolute()
    made = [folder / "start-1", folder / "traces-1"]

    def left(*settings: str) -> list[bool]:
        for path in made:
            path.mkdir(exist_ok=True)
            (path / "examples.jsonl").write_text("")
        resumes(folder, *settings)
        return [path.exists() for path in made]

    folder.mkdir(parents=True)
    runfolder.settle(recipe, None, FRESH, print)
    save(folder, state(0, 2))
    assert left() == [True, True]
    assert left("stages.1.optim.lr=0.5") == [True, True], "which does not make them"
    assert left("stages.1.rollout.max_tokens=16") == [False, False]
    (folder / "checkpoints" / "step-000002" / "COMPLETE").unlink()
    save(folder, state(0, 1))
    assert left() == [False, False], "stage 0 is trained again"
    save(folder, state(1, 1, 2))
    assert left() == [True, True], "of the stage under way"


def test_what_is_no_run(home: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = run_of(home)
    save(folder, state(0, 3))
    evaluation, empty = tmp_path / "evaluation", tmp_path / "empty"
    for one in (evaluation, empty):
        one.mkdir()
    (evaluation / "eval.json").write_text("{}")
    for path, words in {
        folder.parent / "mine-seed1": f"does not exist; did you mean '{folder}'?",
        tmp_path / "nothing" / "there": "does not exist",
        evaluation: "is an evaluation: the `laconic eval` command",
        folder.parent: f"holds runs (mine-seed0): resume one of them, as {folder}",
        empty: "has no config.yaml: it is no run folder",
        folder / "checkpoints" / "step-000002": "is not the newest checkpoint",
        folder / "checkpoints": f"is inside of a run: laconic resume {folder}",
        Path("grpo/find"): "'grpo/find' is a recipe: laconic train grpo/find",
    }.items():
        (line,) = refused(capsys, path)
        assert words in line
        assert path.name in line
    resumes(folder / "checkpoints" / "step-000003")


@pytest.mark.parametrize("text", ["stages: [", "a: 1\n", "just words\n", ""])
def test_a_configuration_that_cannot_be_read(home: Path, capsys: Captured, text: str) -> None:
    (run_of(home) / "config.yaml").write_text(text)
    (line,) = refused(capsys, run_of(home))
    assert "config.yaml is not a recipe that this version reads" in line


def test_mistakes_in_settings(home: Path, capsys: Captured) -> None:
    for setting, words in {
        "optm.lr=1": "did you mean 'optim'",
        "optim.lr": "settings are written key=value",
        "stages.3.steps=2": "the recipe has 1 stages",
        "data.path.train=gone.jsonl": "gone.jsonl",
    }.items():
        assert words in refused(capsys, run_of(home), setting)[0]


def test_a_run_in_use(home: Path, capsys: Captured) -> None:
    with runfolder.claim(run_of(home)):
        (line,) = refused(capsys, run_of(home))
    assert "is in use by process" in line


def test_train_names_the_command(home: Path, capsys: Captured,
                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(home)
    for settings, command in {
        ("optim.lr=0.5", "algorithm=rloo"): "optim.lr=0.5 algorithm.name=",
        ("data.suffix=now",): "",
    }.items():
        assert main(["train", "mine.yaml", *settings]) == 2
        error = capsys.readouterr().err
        assert "holds a run with another configuration" in error
        assert ("laconic resume runs/mine-seed0" in error) == bool(command)
        assert command.split()[-1] if command else True
    with pytest.raises(StartedError):
        main(["train", "mine.yaml"])
    assert note(run_of(home))["step"] == 2, "that, too, goes on"
