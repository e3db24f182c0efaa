"""Risk: a real model is evaluated otherwise than its authors say, or a number that was printed
before cannot be printed again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.cli import main
from samplers.engines.torch import Config
from samplers.inference import generate
from samplers.render import ThinkingConfig
from samplers.rollout import RolloutWorker
from samplers.tasks import find
from samplers.types import Job, Plan
from tests import endpoint
from trainer.eval import evaluate
from trainer.eval.folder import open_folder
from trainer.modelfolder import SHIPPED, ModelFolder

Captured = pytest.CaptureFixture[str]
FIND = SHIPPED / "base" / "find"
PROMPT = "A6+4-6B3+4+3C0-0+0?"
QWEN = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": 1}
FEW = ["--data", "find", "--problems", "6", "--budgets", "0,16", "--no-report"]
PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


def like(path: Path, generation: Any) -> str:
    """base/find with another generation_config.json."""
    shutil.copytree(FIND, path)
    file = path / "generation_config.json"
    file.unlink()
    if generation is not None:
        file.write_text(generation if isinstance(generation, str) else json.dumps(generation))
    return str(path)


def asked(model: str, out: Path, *options: str) -> dict[str, Any]:
    """The identity of an evaluation's folder."""
    assert main(["eval", model, *FEW, "--out", str(out), *options]) == 0
    identity: dict[str, Any] = open_folder(out).settings["identity"]
    return identity


def test_an_evaluation_samples_as_the_folder_says(tmp_path: Path, capsys: Captured) -> None:
    model = like(tmp_path / "m", QWEN)
    found = asked(model, tmp_path / "a")
    wanted = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert {name: found[name] for name in PLAIN} == wanted
    assert found["max_tokens"] == 960, "a context of 1024 less prompts of some 37, by 64"
    said = capsys.readouterr().out
    line = f"Sampled at temperature 0.6, top_p 0.95, top_k 20; at most {found['max_tokens']} tokens"
    assert line in said
    assert "(temperature, top_p, top_k: generation_config.json)." in said
    assert line in (tmp_path / "a" / "summary.md").read_text()
    options = ["--temperature", "0.6", "--top-p", "0.95", "--top-k", "20"]
    asked("base/find", tmp_path / "b", *options, "--max-tokens", str(found["max_tokens"]))
    lines = [
        [json.loads(line) for line in (tmp_path / one / "samples.jsonl").open()] for one in "ab"
    ]
    assert lines[0] == lines[1]


def test_what_the_command_line_says_wins(tmp_path: Path, capsys: Captured) -> None:
    model = like(tmp_path / "m", {**QWEN, "max_new_tokens": 90})
    found = asked(model, tmp_path / "a", "--top-p", "1", "--max-tokens", "150")
    assert found["top_p"] == 1.0
    assert (found["temperature"], found["top_k"], found["max_tokens"]) == (0.6, 20, 150)
    assert asked(model, tmp_path / "b", "--temperature", "0")["max_tokens"] == 90
    assert {**open_folder(tmp_path / "b").settings["identity"], **PLAIN, "temperature": 0.0} == (
        open_folder(tmp_path / "b").settings["identity"]
    )
    capsys.readouterr()
    asked(model, tmp_path / "c", "--temperature", "0", "--top-k", "3")
    assert "--top-k has no effect with --temperature 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "generation",
    [None, {"eos_token_id": 1}, {**QWEN, "do_sample": False},
     {"do_sample": True, "temperature": None, "top_p": None, "top_k": 0},
     {"do_sample": True, "temperature": 0.0, "top_p": 1.0, "top_k": -1}],
)  # fmt: skip
def test_a_folder_that_says_nothing_is_sampled_as_in_training(
    generation: Any, tmp_path: Path
) -> None:
    found = asked(like(tmp_path / "m", generation), tmp_path / "a")
    assert {name: found[name] for name in PLAIN} == PLAIN


@pytest.mark.parametrize("model", ["find", "modes", "sums", "told", "zeros"])
def test_shipped_models_keep_their_numbers(model: str) -> None:
    """Those of the READMEs were printed at 192 tokens and temperature 1."""
    said = ModelFolder(SHIPPED / "base" / model).generation
    assert said["max_new_tokens"] == 192
    assert not said.keys() & {"do_sample", *PLAIN}


@pytest.mark.parametrize(
    ("generation", "said"),
    [({"top_p": 1.7}, "top_p is 1.7; it must be above 0 and"), ({"top_k": 1.5}, "top_k is 1.5; it"),
     ({"temperature": "hot"}, "temperature is 'hot'; it"),
     ("{", "broken JSON")],
)  # fmt: skip
def test_a_folder_that_says_nonsense_is_refused(
    generation: Any, said: str, tmp_path: Path, capsys: Captured
) -> None:
    model = like(tmp_path / "m", generation)
    for command in (["eval", model, *FEW], ["generate", model, PROMPT]):
        assert main(command) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]  # transformers may tell it, too


@pytest.mark.parametrize(
    "option", [("--top-p", "0"), ("--top-p", "1.1"), ("--top-k", "-1"), ("--top-k", "a")]
)
def test_what_leaves_no_token_is_refused(option: tuple[str, str], capsys: Captured) -> None:
    for command in (["eval", "base/find", *FEW], ["generate", "base/find", PROMPT]):
        assert main([*command, "=".join(option)]) == 2
        assert f"{option[0]}: '{option[1]}'" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^top_p 0; must be above 0"):
        generate("no/such-model", "x", top_p=0)


def test_budgets_stay_below_the_cap(tmp_path: Path, capsys: Captured) -> None:
    for model, cap in ((like(tmp_path / "a", {"max_new_tokens": 40}), "40"), ("base/find", "192")):
        assert main(["eval", model, "--data", "find", "--problems", "2", "--budgets", cap]) == 2
        assert f"{cap} is not below the response cap of {cap} tokens" in capsys.readouterr().err


def test_the_cap_leaves_room_for_a_rule_and_for_what_is_told(tmp_path: Path) -> None:
    """Where the context is what limits: prompts that announce a number are longer."""
    model = like(tmp_path / "m", None)
    plain = asked(model, tmp_path / "a")["max_tokens"]
    assert plain % 64 == 0, "models whose prompts differ by a token have the same cap"
    told = ["--budget-mode", "both", "--ask", "{suffix: '" + 40 * ";{budget}" + "'}"]
    assert plain - asked(model, tmp_path / "b", *told)["max_tokens"] in (64, 128)
    few = ["--data", "find", "--problems", "2", "--no-report", "--out", str(tmp_path / "c")]
    assert main(["eval", model, *few, "--stopping", "{name: consistency, every: 12}"]) == 0
    assert open_folder(tmp_path / "c").settings["max_tokens"] < plain


def test_a_baseline_is_sampled_alike(tmp_path: Path) -> None:
    asked(like(tmp_path / "m", QWEN), tmp_path / "a", "--baseline", "base/find")
    sides = [open_folder(tmp_path / where).settings for where in ("a", "a/baseline")]
    assert sides[0]["temperature"] == 0.6
    for name in (*PLAIN, "max_tokens"):
        assert sides[0][name] == sides[1][name]


def test_a_baseline_of_another_cap_is_refused_before_it_is_paid_for(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked("base/find", tmp_path / "a", "--max-tokens", "100", "--answer-tokens", "8")
    monkeypatch.setattr("launch.inprocess.start", lambda *_: pytest.fail("weights were loaded"))
    base = ["--baseline", str(tmp_path / "a")]
    for more, said in (
        (["--answer-tokens", "8"], "is of max_tokens 100, and 192 is asked for here; set --max"),
        (["--max-tokens", "100"], "is of answer_tokens 8, and None is asked for here; set --ans"),
    ):
        assert main(["eval", "base/told", *FEW, *base, *more]) == 2
        assert said in capsys.readouterr().err


def test_generate_says_what_it_used(tmp_path: Path, capsys: Captured) -> None:
    model = like(tmp_path / "m", {**QWEN, "max_new_tokens": 90})
    assert main(["generate", model, PROMPT]) == 0
    err = capsys.readouterr().err
    assert err.startswith("laconic: temperature 0.6, top_p 0.95, top_k 20; at most 100")
    assert "(temperature, top_p, top_k: generation_config.json)" in err
    assert main(["generate", model, PROMPT, "--json", "--top-k", "1", "--seed", "4"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["sampling"]["top_k"] == 1
    assert made["logprob"] == pytest.approx(0.0, abs=1e-6)
    assert main(["generate", "base/find", PROMPT, "--json", "--temperature", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == made["text"]


def test_a_notebook_gets_what_the_command_does(tmp_path: Path) -> None:
    for i, generation in enumerate((QWEN, {**QWEN, "max_new_tokens": 60}, None)):
        model = like(tmp_path / f"m{i}", generation)
        found = asked(model, tmp_path / f"a{i}")
        evaluate(model, ["find"], tmp_path / f"b{i}", budgets=(0, 16), wanted={"problems": 6})
        again = open_folder(tmp_path / f"b{i}").settings["identity"]
        assert {n: found[n] for n in (*PLAIN, "max_tokens")} == {
            n: again[n] for n in (*PLAIN, "max_tokens")
        }


@pytest.mark.parametrize("api", ["chat", "ids"])
def test_a_server_is_asked_alike(api: str, tmp_path: Path, capsys: Captured) -> None:
    model = endpoint.folder(tmp_path / "m")
    file = model / "generation_config.json"
    file.write_text(json.dumps({**QWEN, "max_new_tokens": 60}))
    behind = endpoint.Endpoint(model)
    with endpoint.serving(behind) as url:
        server = ["--base-url", url, "--api", api]
        assert asked(str(model), tmp_path / "a", *server)["max_tokens"] == 60
        bodies = [body for body in behind.asked if "max_tokens" in body]
        said = {(body["temperature"], body["top_p"], body["top_k"]) for body in bodies}
        assert said == {(0.6, 0.95, 20)}
        capsys.readouterr()
        asked(str(model), tmp_path / "b", *server, "--max-tokens", "70")
        assert "70 is above the 60 of generation_config.json" in capsys.readouterr().err
        file.write_text(json.dumps(QWEN))
        longest = asked(str(model), tmp_path / "c", *server)["max_tokens"]
    assert longest == asked(str(model), tmp_path / "d")["max_tokens"] > 900


# Rollouts


@pytest.fixture(scope="module")
def worker() -> RolloutWorker:
    return RolloutWorker.from_pretrained(str(FIND), Config(slots=16), ThinkingConfig())


def lots(plan: Plan, **more: Any) -> list[Job]:
    return [
        Job(find.prompt(find.Config(), "test", i), plan, i, 0, 77 + i, **more) for i in range(8)
    ]


def test_thought_and_every_answer_are_of_the_nucleus(worker: RolloutWorker) -> None:
    """One token wide, they are the greedy ones, at all cuts."""
    plan = Plan(160, cuts=(0, 8, 24, 160), answers_per_cut=2, answer=6)
    greedy = worker.generate(lots(plan, temperature=0.0))
    one = worker.generate(lots(plan, temperature=1.2, top_k=1))
    for a, b in zip(greedy, one, strict=True):
        np.testing.assert_array_equal(a.thought.ids_T, b.thought.ids_T)
        assert [[x.text for x in cut] for cut in a.answers] == [
            [x.text for x in cut] for cut in b.answers
        ]
        assert max(abs(b.thought.logprobs_T)) < 1e-6


def test_a_rule_changes_no_token_of_a_nucleus(worker: RolloutWorker) -> None:
    """It looks greedily, whatever the thought is sampled of."""
    rule = {"name": "consistency", "every": 10, "runs": 60}
    plan, cut = Plan(160), {"top_p": 0.7, "top_k": 5}
    for a, b in zip(
        worker.generate(lots(plan, **cut)),
        worker.generate(lots(replace(plan, stopping=rule), **cut)),
        strict=True,
    ):
        assert b.watch is not None
        assert b.watch.exit is None
        np.testing.assert_array_equal(a.thought.ids_T, b.thought.ids_T)
        np.testing.assert_allclose(a.thought.logprobs_T, b.thought.logprobs_T, atol=1e-5)
        assert a.final.text == b.final.text
    assert sum(r.watch.looks for r in worker.generate(lots(replace(plan, stopping=rule), **cut))
               if r.watch) > 0  # fmt: skip
