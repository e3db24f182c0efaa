"""A user's own models, prompts, rewards and modules: what is promised to work, does, in real runs.

Most runs are in this process (`tests/here.py`); those through Ray start where a user starts: in a
folder with a recipe and a few modules beside it, and in a notebook.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.plan import plan
from launch.run import begin
from tests import here
from tests.desk import MINE, fields, furnish, recipe, write_rows
from trainer import checkpoint, preflight
from trainer.config import load, resolve
from trainer.modelfolder import ModelFolder
from trainer.settings import merge, override


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("desk")
    furnish(folder)
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def trained(desk: Path, output: Path, **changes: Any) -> list[dict[str, Any]]:
    """Metrics of a run that must be sound and silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made = recipe(desk, output, **changes)
        steps = here.run(made)
    stage = made.stages[0]
    assert [s["step"] for s in steps] == [0, 1, 2]
    assert "eval/accuracy" in steps[0]
    assert "eval/accuracy" in steps[2]
    for step in steps[1:]:
        assert step["engine_gap"] < (1e-5 if stage.model.dtype == "float32" else 1e-2)
        assert step["steps"] == stage.updates_per_batch * stage.epochs
        assert step["grad_norm"] > 0
        assert step["skipped_steps"] == 0
        assert step["rollouts"] == 16
        assert step["unknown/error"] == step["unknown/timeout"] == 0
        assert 0 < step["accuracy"] < 1, "else the test shows nothing"
        missing = [name for name, value in step.items() if value is None]
        assert set(missing) <= {"eval/tokens_per_solve"}
    return steps


NO_THOUGHT = {"thinking": "none", "evaluation": {"budgets": None}}
RUNS: dict[str, dict[str, Any]] = {
    "gpt2": {"model": {"path": "{desk}/gpt2"}},
    "untied head": {"model": {"path": "{desk}/untied"}},
    "bfloat16": {"model": {"dtype": "bfloat16"}, "learner": {"zero": 1}},
    "zero 3": {"learner": {"zero": 3}},
    "gradient checkpointing": {"learner": {"gradient_checkpointing": True}},
    "muon": {"optim": {"name": "muon", "muon_lr": 0.01}},
    "cosine": {"optim": {"schedule": "cosine", "warmup_steps": 1}},
    "gspo": {"loss": {"name": "gspo"}},
    "cispo": {"loss": {"name": "cispo", "eps_high": 4.0}},
    "gppo, two updates": {
        "loss": {"name": "gppo"},
        "updates_per_batch": 2,
        "prompts_per_step": 4,
        "rollouts_per_prompt": 4,
    },
    "two epochs": {"epochs": 2},
    "dr_grpo": {
        "algorithm": "dr_grpo",
        "loss": {"aggregation": "drgrpo", "norm_length": 24},
    },
    "async verifier": {"verifier": "mine.grade:patient", "grader": {"processes": 1}},
    "TRL verifier": {"verifier": "mine.grade:trl", "grader": {"processes": 1}},
}


@pytest.mark.parametrize("case", RUNS)
def test_two_steps(case: str, desk: Path, tmp_path: Path) -> None:
    sizes = {"prompts_per_step": 2, "rollouts_per_prompt": 8}  # so that no group is all wrong
    trained(desk, tmp_path, **{**sizes, **RUNS[case]})


@pytest.mark.parametrize("reference", ["frozen", "ema"])
def test_a_reference_is_left_behind(reference: str, desk: Path, tmp_path: Path) -> None:
    loss = {"kl": "k2", "kl_coef": 0.1, "reference": reference}
    _, first, second = trained(desk, tmp_path, loss=loss)
    assert first["ref_kl"] == pytest.approx(0, abs=1e-9), "the reference is the model itself"
    assert second["ref_kl"] > 1e-4


def test_importance_of_an_exact_engine_is_one(desk: Path, tmp_path: Path) -> None:
    for step in trained(desk, tmp_path, loss={"importance": "token"})[1:]:
        assert step["importance"] == pytest.approx(1, abs=1e-4)


def test_without_markers_all_is_answer(desk: Path, tmp_path: Path) -> None:
    steps = trained(desk, tmp_path, model={"path": "{desk}/bare"}, **NO_THOUGHT)
    assert not [name for name in steps[0] if name.startswith("eval/accuracy@")]
    for step in steps[1:]:
        assert step["think_tokens/mean"] == 0
        assert step["no_answer"] == 0
        assert step["answer_tokens/mean"] * 16 == pytest.approx(step["tokens/sampled"])


def test_markers_are_added(desk: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    steps = trained(desk, tmp_path, model={"path": "{desk}/bare", "add_markers": True})
    assert steps[1]["think_tokens/mean"] > 0
    assert "eval/accuracy@4" in steps[2]
    folder = next((tmp_path / "mine-seed0" / "checkpoints").glob("step-*")) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert len(tokenizer("<think></think>", add_special_tokens=False)["input_ids"]) == 2
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)
    with pytest.raises(ValueError, match=r"set model\.add_markers=true"):
        preflight.check_all(recipe(desk, model={"path": "{desk}/bare"}))


def test_plain_text_prompts(desk: Path, tmp_path: Path) -> None:
    trained(desk, tmp_path, data={"chat": False}, **NO_THOUGHT)
    shown = (tmp_path / "mine-seed0" / "rollouts" / "step-1.jsonl").read_text().splitlines()
    assert all(json.loads(row)["prompt"].endswith("+1=?") for row in shown)


def test_parquet_as_verl_writes_it(desk: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": f"{i}+1=?"}],
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"split": "train", "index": i},
        }
        for i in range(12)
    ]
    file = tmp_path / "sums.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    data = {"path": {"train": str(file), "test": str(file)}, "columns": {}}
    made = fields(desk, tmp_path) | {"data": data}
    here.run(resolve(made))
    shown = json.loads((tmp_path / "mine-seed0/rollouts/step-1.jsonl").read_text().splitlines()[0])
    assert shown["id"].startswith("sums/train/")
    assert shown["prompt"] == f"{shown['gold']}+1=?"


ASKED = [{"role": "user", "content": "3+1=?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "3</think>4"}]


@pytest.mark.parametrize(
    "row", [{"prompt": "3+1=?", "completion": "3</think>4"}, {"messages": ANSWERED}]
)
def test_demonstrations_from_a_file(desk: Path, tmp_path: Path, row: dict[str, Any]) -> None:
    """They need no gold answers; the problems of an evaluation do."""
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    write_rows(train, [row] * 4)
    write_rows(test, [{"prompt": "3+1=?", "answer": "4"}])
    made = fields(desk, tmp_path) | {
        "kind": "sft",
        "steps": 1,
        "data": {"path": {"train": str(train), "test": str(test)}},
        "verifier": "numeric",
        "loss": {"name": "ce"},
    }
    before, after = here.run(resolve(made))
    assert "eval/accuracy" in before
    assert after["grad_norm"] > 0
    write_rows(test, [{"prompt": "3+1=?", "completion": "4"}])
    with pytest.raises(ValueError, match=r"test.jsonl:1: no answer"):
        preflight.check_all(resolve(made))
    preflight.check_all(resolve(made | {"evaluation": None}))
    write_rows(train, [{"prompt": "3+1=?", "answer": "4"}])
    with pytest.raises(ValueError, match=r"train.jsonl:1: no completion"):
        preflight.check_all(resolve(made | {"evaluation": None}))


def test_own_modules(desk: Path, tmp_path: Path) -> None:
    budget = {"name": "mine.turns", "short": 3}
    shaping = ["mine.grade:brevity", "mine.halves"]
    steps = trained(desk, tmp_path, **MINE | {"budget": budget, "shaping": shaping})
    assert [step["allocation/seen"] for step in steps[1:]] == [4, 8]
    for step in steps[1:]:
        assert step["think_tokens/p95"] <= 6
        assert step["reward/halves"] == pytest.approx(-step["accuracy"] / 2)
        assert step["reward/brevity"] < 0


# ---------------------------------------------------------------- told before the run

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a budget without a thought": (
        {**NO_THOUGHT, "budget": {"name": "fixed", "think": 4}},
        "budget=fixed needs thinking markers.*set thinking",
    ),
    "evaluation without a thought": ({"thinking": "none"}, r"evaluation\.budgets.*=null"),
    "a verifier as a reward": ({"shaping": ["mine.grade:even"]}, "shaping: .*completions"),
    "one component twice": ({"shaping": ["mine.halves"] * 2}, "two components.*'halves'"),
    "a module of another kind": ({"budget": "mine.signs"}, "budget: module 'mine.signs' has no"),
    "no such module": ({"algorithm": "mine.sings"}, "no component named 'mine.sings'"),
    "no such function": ({"verifier": "mine.grade:odd"}, "verifier: 'mine.grade:odd' cannot"),
    "no such setting": (
        {"verifier": {"name": "mine.grade:even", "corect_at": 1}},
        "verifier.corect_at: .*did you mean 'correct_at'",
    ),
    "a notebook's function": ({"verifier": "__main__:even"}, "file of its own"),
    "a hanging verifier inside": (
        {"verifier": "mine.grade:patient", "grader": {"processes": 0}},
        "grader.processes=0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, desk: Path) -> None:
    changes, said = REFUSED[case]
    with pytest.raises(ValueError, match=said) as told:
        preflight.check_all(recipe(desk, **changes))
    assert "\n" not in str(told.value)


def test_rows_for_another_verifier_are_refused(desk: Path, tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    rows = [{"q": "1?", "gold": "1"}, {"q": "2?", "gold": "2", "verifier": "math"}]
    write_rows(file, rows)
    columns = {"id": "", "difficulty": ""}
    data = {"path": {"train": str(file), "test": str(file)}, "columns": columns}
    with pytest.raises(ValueError, match=r"row mixed/2 names verifier 'math'.*verifier=exact"):
        preflight.check_all(recipe(desk, data=data, verifier="exact"))
    rows[0]["verifier"] = "math"
    write_rows(file, rows)
    preflight.check_all(recipe(desk, data=data, verifier="math"))


IDLE = {
    "loss.cap=3": "loss.cap",
    "optim.momentum=0.5": "optim.momentum",
    "optim.min_lr_ratio=0.1": "optim.min_lr_ratio",
    "rollout.engine.dtype=bfloat16": "rollout.engine.dtype",
}


@pytest.mark.parametrize("setting", IDLE)
def test_a_setting_without_effect_is_told(setting: str) -> None:
    with pytest.warns(UserWarning, match=f"{IDLE[setting]}.*no effect"):
        load("grpo/find", [setting])


def test_settings_stay_with_what_they_belong_to() -> None:
    def stage(*settings: str) -> Any:
        return load("grpo/find", settings).stages[0]

    assert stage("optim.name=muon").optim.lr == stage().optim.lr  # not a component: lr stays
    assert stage("algorithm.std=batch").algorithm == {"name": "grpo", "std": "batch"}
    assert stage("verifier.ignore_case=true").verifier["name"] == "exact"
    assert stage("loss.name=gspo").loss.aggregation == "seq_mean_token_mean"  # its own, not ppo's
    for order in (["loss.name=gspo", "loss.eps_low=0.1"], ["loss.eps_low=0.1", "loss.name=gspo"]):
        changed = override({"loss": {"aggregation": "token_mean"}}, order)
        assert changed["loss"] == {"name": "gspo", "eps_low": 0.1, "aggregation": "token_mean"}
    assert merge({"budget": {"name": "fixed", "think": 4}}, {"budget": {"name": "unlimited"}}) == {
        "budget": {"name": "unlimited"}
    }
    assert merge({"data": {"task": "find", "system": "hi"}}, {"data": {"path": "x"}}) == {
        "data": {"path": "x", "system": "hi"}
    }


@pytest.mark.parametrize(("model", "opened"), [("llama", True), ("untied", False)])
def test_who_opens_the_thought_is_shown(model: str, opened: bool, desk: Path) -> None:
    from samplers import render
    from samplers.render import ThinkingConfig

    markers = render.load(str(desk / model), ThinkingConfig()).thinking
    assert markers is not None
    assert markers.opened == ModelFolder(desk / model).opens("<think>") == opened
    file = desk / f"{model}.yaml"
    file.write_text(yaml.safe_dump(merge(fields(desk), {"model": {"path": str(desk / model)}})))
    who = "the chat template opens it" if opened else "the model has to open it"
    assert f"thinking: from <think> to </think>; {who}" in str(plan(str(file)))


# ---------------------------------------------------------------- through Ray


def test_what_a_stage_began_with_outlives_the_checkpoints(desk: Path, tmp_path: Path) -> None:
    made = recipe(desk, tmp_path, stages=[{"steps": 1}, {"steps": 9}])
    root = made.folder / "checkpoints"
    for step in (1, 2, 3):
        source = desk / ("llama" if step == 1 else "gpt2")

        def write(to: Path, source: Path = source) -> None:
            shutil.copytree(source, to / "model")

        checkpoint.save(root, step, write, {}, keep=2)
        began = begin(made, 1)
    assert not (root / "step-000001").exists()
    assert json.loads((began / "config.json").read_text())["model_type"] == "llama"
    assert begin(made, 0) == desk / "llama", "nothing is copied that stays anyway"


def laconic(desk: Path, *arguments: str) -> list[str]:
    """As the installed command: the current folder is not put on Python's path (-P)."""
    return [sys.executable, "-P", "-m", "launch.cli", *arguments]


@pytest.mark.slow
def test_a_folder_of_ones_own(desk: Path, tmp_path: Path) -> None:
    """Modules beside the recipe; in use, interrupted, continued, finished, changed.

    The reference is the model of the beginning, also for the continued run.
    """
    own = {
        **MINE,
        "model": {"path": str(desk / "bare"), "add_markers": True},
        "verifier": "mine.grade:patient",
        "shaping": ["mine.grade:brevity"],
        "learner": {"ranks": 2, "zero": 3},
        "loss": {"kl": "k2", "kl_coef": 0.01},
        "steps": 12,
        "evaluation": None,
        "checkpoint": {"every": 1},
        "tracking": {"wandb": "offline"},
    }
    (desk / "own.yaml").write_text(yaml.safe_dump(fields(desk, tmp_path) | own))
    folder, train = tmp_path / "mine-seed0", laconic(desk, "train", "own.yaml")
    first = subprocess.Popen(
        train, cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: "process" in read(folder / ".lock"), first)
        second = ended(train, desk)
        assert second.returncode == 2
        assert "in use by process" in second.stderr
        assert second.stderr.count("\n") == 1
        until(lambda: any(folder.glob("checkpoints/*/COMPLETE")), first)
        os.killpg(first.pid, signal.SIGINT)
        said, error = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 130, error
    assert "the model has to open it" in said
    third = ended(train, desk)
    assert third.returncode == 0, third.stderr
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 13))
    assert "step 1/12" not in third.stdout, "it begins where the first left off"
    assert [step["allocation/seen"] for step in steps] == [4 * s for s in range(1, 13)]
    assert all(step["ref_kl"] > 1e-5 for step in steps[1:])
    assert all(step["unknown/error"] == 0 and step["engine_gap"] < 1e-4 for step in steps)
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    again = ended(train, desk)
    assert (again.returncode, again.stdout.strip()) == (0, str(folder)), "nothing to do"
    changed = ended([*train, "optim.lr=0.5"], desk)
    assert changed.returncode == 2
    assert "optim.lr is 0.001 there, 0.5 here" in changed.stderr


def until(condition: Any, process: subprocess.Popen[str], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def ended(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)


NOTEBOOK = """
import json, os, sys
from pathlib import Path
sys.path.append(sys.argv[1])  # after Python has started: its workers must learn of it
from trainer import train
first = train("note.yaml", "name=first")
import ray
assert not ray.is_initialized()
ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
os.mkdir("elsewhere")
os.chdir("elsewhere")  # Ray's workers stay where they were
second = train("../note.yaml", "name=second", f"model.path={os.path.relpath(first)}", "output=out")
assert second == Path.cwd() / "out" / "second-seed0", second
assert ray.is_initialized()
import time
for _ in range(100):
    if ray.available_resources().get("CPU") == 3:
        break
    time.sleep(0.1)
print(json.dumps([str(first), str(second), ray.available_resources().get("CPU")]))
"""


@pytest.mark.slow
def test_twice_in_a_notebook(desk: Path, tmp_path: Path) -> None:
    changes = {
        "evaluation": None,
        "verifier": "mine.grade:even",
        "algorithm": "mine.signs",
        "steps": 1,
    }
    (tmp_path / "note.yaml").write_text(yaml.safe_dump(fields(desk, tmp_path) | changes))
    done = ended([sys.executable, "-c", NOTEBOOK, str(desk)], tmp_path)
    assert done.returncode == 0, done.stderr
    first, second, free = json.loads(done.stdout.strip().splitlines()[-1])
    assert free == 3, "everything was given back"
    for folder in (first, second):
        (step,) = [json.loads(x) for x in Path(folder, "metrics.jsonl").read_text().splitlines()]
        assert step["engine_gap"] < 1e-5
        assert step["unknown/error"] == 0
