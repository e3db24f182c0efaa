"""Exports of runs, checkpoints and models: whole or not at all, asked as in training, checked."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from launch import cli
from samplers import render
from samplers.budget import Budget, plan_of
from samplers.budgets import base
from samplers.render import ThinkingConfig
from samplers.types import Plan, Prompt
from tests.exported import EFFORTS, TEMPLATES, folder
from trainer.export import FILE, asks, probe, read, ways
from trainer.export.check import check
from trainer.export.folder import export, plan
from trainer.export.source import Source, find
from trainer.modelfolder import fetch, fingerprint

pytestmark = pytest.mark.filterwarnings("ignore:nothing tells")
THINK = ThinkingConfig()
PROMPT = Prompt(0, "p", ({"role": "user", "content": "=13"},), "", "", "")
SMALL = ("steps=1", "prompts_per_step=4", "rollouts_per_prompt=4", "rollout.max_tokens=64")
EVALUATION = "evaluation={every: 1, problems: 4, budgets: [8], shown: 0}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """l1/find with an adapter, one step and its evaluations."""
    from tests import here
    from trainer.config import load
    from trainer.runfolder import CONFIG, resolved

    output = tmp_path_factory.mktemp("runs")
    settings = (
        *SMALL, EVALUATION, "model.lora={rank: 4, export: beside}", "optim.lr=1e-2",
        "budget.budget=[8, 40]", f"output={output}", "rollout.temperature=0.9",
    )  # fmt: skip
    recipe = load("l1/find", settings)
    here.run(recipe)
    (recipe.folder / CONFIG).write_text(resolved(recipe))
    return recipe.folder


def failed(out: Path, **settings: Any) -> list[str]:
    return [str(f) for f in check(out, **settings) if f.ok is False]


def bits(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(path / "model.safetensors"))


# Of a run


def test_a_run_is_asked_as_it_was_trained(run: Path, tmp_path: Path) -> None:
    out = export(str(run), tmp_path / "out", lora="beside")
    source = fetch(str(run))
    assert failed(out, source=source, engines=False) == []
    told = asks(out)
    assert told is not None
    exported, training = render.load(str(out), THINK), render.load(str(source), THINK)
    for number in (8, 24, 40):
        wanted = training.render(PROMPT, Plan(64, suffix=f";{number}"))
        asked = plan_of(Budget(number), told, 64)
        np.testing.assert_array_equal(exported.render(PROMPT, asked), wanted)
    said = read(out)
    assert said is not None
    assert said["trained"]["budgets"] == {"low": 8, "high": 40}
    assert said["texts"]["budget"] == {"suffix": ";{budget}"}
    assert said["sampling"] == {"temperature": 0.9, "top_p": 1.0, "top_k": 0,
                                "max_new_tokens": 64, "eos_token_id": 1}  # fmt: skip
    rows = {(row["how"], row["budget"]) for row in said["measured"]["rows"]}
    assert {("cut", "8"), ("cut", "inf"), ("announced", "8"), ("announced", "40")} <= rows
    card = (out / "README.md").read_text()
    whole = next(row for row in said["measured"]["rows"] if row["budget"] == "inf")
    assert whole["think_tokens"]["value"] > 0
    assert "asked for 40" in card
    assert "step 1" in card
    assert str(run) not in card + json.dumps(said)


def test_weights_are_those_of_the_checkpoint(run: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source = fetch(str(run))
    merged = export(str(run / "checkpoints" / "step-000001"), tmp_path / "merged")
    beside = export(str(source), tmp_path / "beside", lora="beside")
    adapter = export(str(source / "adapter"), tmp_path / "adapter")
    weights = bits(source)
    for out in (merged, beside, adapter):
        assert {n: w.tobytes() for n, w in bits(out).items()} == {
            n: w.tobytes() for n, w in weights.items()
        }
        assert read(out)["source"]["step"] == 1  # type: ignore[index]
    assert not (merged / "adapter").exists()
    ids = torch.arange(8, 20)[None]
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(beside)(ids).logits
        first = AutoModelForCausalLM.from_pretrained(fetch("base/told"))
        bare = first(ids).logits
        put = PeftModel.from_pretrained(first, beside / "adapter")(ids).logits
    assert (put - whole).abs().max() < 1e-4
    assert (bare - whole).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("modes/find", ()),
        ("hbpo/find", ()),
        ("hbpo/find", ("budget.prefill=;{budget}", "budget.suffix=''")),
        ("hbpo/single", ()),
        ("l1/find", ("budget.budget=48",)),
        ("l1/find", ("budget={name: curriculum, of: {name: prompted, suffix: ';{budget}'}, "
                     "fields: {budget: {kind: linear, start: 96, end: 32, steps: 10}}}",
                     "shaping=[]")),
        ("brpo/find", ()),
        ("elastic/find", ()),
        ("thinkdial/find", ()),
        ("grpo/find", ("budget={name: fixed, think: 32, system: '=', suffix: '<b2>'}",)),
    ],
)  # fmt: skip
def test_every_policy_says_how_it_asked(recipe: str, settings: tuple[str, ...]) -> None:
    """Its own plans are what the exported template is made to say."""
    from samplers import seam
    from trainer.config import load

    for stage in load(recipe, settings).stages:
        model = fetch(stage.model.path)
        made = plan(Source(model, "m", None, stage), None, None, None, None)
        module, config = seam.resolve("samplers.budgets", stage.budget_spec)
        asked = base.asked(module, config)
        plans = {"default": base.natural(module, config), **asked}
        for name, wanted in plans.items():
            way = ("budget", int(name)) if name.isdigit() else (name, None)
            got = made.ways.plan(way[0], wanted.max_tokens, way[1])
            assert ways.texts(got) == ways.texts(wanted), name
        if stage.kind == "sft" and stage.supervised.traces is not None:
            assert set(made.ways.efforts) == {"high", "medium", "low"}


def test_cuts_and_hard_limits_of_training_are_told() -> None:
    from trainer.config import load

    def of(recipe: str, *settings: str) -> ways.Ways:
        return ways.of_stage(load(recipe, settings).stages[-1])

    cuts = of("brpo/find").trained
    assert len(cuts["budgets"]) == len(cuts["prior"])
    assert sum(cuts["prior"]) == pytest.approx(1)
    assert of("elastic/find").trained["budgets"] is not None
    limited = of("modes/find", "budget.modes.low.think=32")
    assert limited.limits == {"low": 32}
    assert of("l1/find").answer is None


# Of a model


def test_efforts_by_hand(tmp_path: Path) -> None:
    out = export("base/modes", tmp_path / "out", thinking=THINK, efforts=EFFORTS)
    assert failed(out, source=fetch("base/modes"), engines=False) == []
    told, renderer = asks(out), render.load(str(out), THINK)
    training = render.load(str(fetch("base/modes")), THINK)
    assert told is not None
    assert told.budget is None
    for effort, text in EFFORTS.items():
        ids = renderer.render(PROMPT, plan_of(Budget(effort=effort), told, 64))
        wanted = training.render(PROMPT, Plan(64, **text))
        np.testing.assert_array_equal(ids[: len(wanted)], wanted)
        assert renderer.closed(ids) == (effort == "none")
    with pytest.raises(ValueError, match="chat template refuses the prompt: thinking_budget=64"):
        renderer.render(PROMPT, Plan(64, template={"thinking_budget": 64}))
    with pytest.raises(ValueError, match="would have no effect"):
        plan_of(Budget(64, hard=False), told, 64)


def test_efforts_that_stand_for_numbers(tmp_path: Path) -> None:
    out = export("base/told", tmp_path / "out", thinking=THINK, ask={"suffix": ";{budget}"},
                 efforts={"low": 32, "high": 128})  # fmt: skip
    assert read(out)["texts"]["efforts"]["high"] == {"suffix": ";128"}  # type: ignore[index]
    assert failed(out, engines=False) == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_models_of_many_templates(name: str, tmp_path: Path) -> None:
    model = folder(tmp_path / "model", TEMPLATES[name])
    hand = {"ask": {"suffix": "\n\nThink for '{budget}' {{tokens}}."},
            "efforts": {"low": {"system": "Say \"less\" \\ {% x %}"}, "high": 4096}}  # fmt: skip
    out = export(str(model), tmp_path / "out", thinking=THINK, **hand)
    assert failed(out, source=model, engines=False) == []
    turn = probe.end_of_turn(render.load(str(model), THINK).tokenizer)
    assert turn is None or turn in render.load(str(out), THINK).eos_ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prefill_opens_the_thought(name: str, tmp_path: Path) -> None:
    """Where the template does not; then the model's own marker is not there to be parsed."""
    model = folder(tmp_path / "model", TEMPLATES[name])
    renderer = render.load(str(model), THINK)
    assert renderer.thinking is not None
    start = "" if renderer.thinking.opened else "<think>"
    ask = {"prefill": start + "I have {budget} tokens: "}
    out = export(str(model), tmp_path / "out", thinking=THINK, ask=ask)
    assert failed(out, source=model, engines=False) == []


def test_a_table_comes_from_an_evaluation(tmp_path: Path) -> None:
    known = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "samples": 9}
    metrics = {"find/accuracy@inf": known, "find/accuracy@16": known, "find/tokens@16": known,
               "find/effort/accuracy@low": known, "find/majority@4/accuracy": known,
               "find/prompt/accuracy@64": known, "find/prompt/soft_accuracy@64": known,
               "all/anytime/log": known}  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps({"metrics": metrics}))
    out = export("base/find", tmp_path / "out", thinking=THINK, evaluation=tmp_path)
    rows = read(out)["measured"]["rows"]  # type: ignore[index]
    assert [(r["task"], r["how"], r["budget"]) for r in rows] == [
        ("find", "cut", "inf"), ("find", "cut", "16"), ("find", "effort", "low"),
        ("find", "both", "64"), ("find", "announced", "64"),
    ]  # fmt: skip
    card = (out / "README.md").read_text()
    assert "| find | thought cut at 16 | 0.500 [0.400, 0.600] | 0.5 |" in card


def test_commands_of_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As they are pasted: bodies are JSON, Python is Python, and that of transformers runs."""
    out = export("base/told", tmp_path / "out", thinking=THINK, ask={"suffix": ";{budget}"})
    card = (out / "README.md").read_text()
    bodies = [json.loads(body) for body in re.findall(r"-d '(.*?)'\n```", card, re.DOTALL)]
    limit = bodies[0]["thinking_token_budget"]
    assert 0 < limit <= 256
    assert bodies[0]["chat_template_kwargs"] == {"thinking_budget": limit}
    assert bodies[0]["max_tokens"] == limit + 1 + read(out)["answer_reserve"]  # type: ignore[index]
    assert bodies[1]["custom_params"] == {"thinking_budget": limit}
    client, local = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    compile(client, "card", "exec")
    capsys.readouterr()
    exec(local.replace("MODEL", str(out)).replace("...", "=13"), {})
    assert "'role': 'assistant'" in capsys.readouterr().out


# What a check finds


def test_what_was_spoilt_is_found(tmp_path: Path) -> None:
    out = export("base/modes", tmp_path / "out", thinking=THINK, efforts=EFFORTS)
    file = out / "chat_template.jinja"
    written = file.read_text()

    def found(change: tuple[str, str]) -> list[str]:
        assert change[0] in written
        file.write_text(written.replace(*change))
        return [line.split()[1] for line in failed(out, engines=False)]

    assert found(("<b3>", "<b2>")) == ["files:", "ids"]
    assert "bad" in found(("not in [", "in ["))
    assert {"template", "ids"} <= set(found(("reasoning_effort", "effort")))
    file.write_text(written)
    (out / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": 1}')
    assert failed(out, engines=False)[0].startswith("FAILED  sampling:")
    (out / "model.safetensors").unlink()
    lines = failed(out, engines=False)
    assert "missing: *.safetensors" in lines[0]
    assert lines[-1].startswith("FAILED  transformers:")


def test_a_table_of_another_model_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"metrics": {"find/accuracy@inf": {"value": 0.5}}}
    (tmp_path / "metrics.json").write_text(json.dumps(known))
    marks = {name: fingerprint(fetch(f"base/{name}")) for name in ("find", "modes")}
    for name, told in (("find", False), ("modes", True)):
        about = {"model": f"elsewhere/{name}", "identity": {"model_files": marks[name]}}
        (tmp_path / "eval.json").write_text(json.dumps(about))
        words = ["export", "base/find", str(tmp_path / "out"), "--eval", str(tmp_path)]
        assert cli.main(words) == 0
        assert (f"measured elsewhere/{name}" in capsys.readouterr().err) == told


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, hand = tmp_path / "out", yaml.safe_dump(EFFORTS, default_flow_style=True)
    assert cli.main(["export", "base/modes", str(out), "--efforts", hand]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    (out / "README.md").unlink()
    assert cli.main(["export", str(out), "--check"]) == 1
    assert "FAILED  files: missing: README.md" in capsys.readouterr().out
    for words, why in (
        (["export", "base/modes"], "OUT: not given"),
        (["export", str(tmp_path), "--check"], "is no exported model"),
        (["export", "base/modes", str(tmp_path / "x"), "--ask", "{a: "], "--ask: broken YAML"),
    ):
        assert cli.main(words) == 2
        assert why in capsys.readouterr().err


# Bad input


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"ask": {"suffix": "=1"}}, r"--ask: no text says \{budget\}"),
        ({"ask": {"close": "</think>"}}, "--ask: 'close' is none of system, suffix"),
        ({"ask": "{budget}"}, "--ask: '{budget}' is no mapping"),
        ({"ask": {"suffix": ";{budget}Z"}}, "cannot write"),
        ({"efforts": {"lots": {"suffix": "<b1>"}}}, "'lots' is no effort; allowed: none, minimal"),
        ({"efforts": {"low": {"suffix": ";{budget}"}}}, r"low: says \{budget\}"),
        ({"efforts": {"low": 64}}, "--efforts: low=64: the model cannot be told a number"),
        ({"efforts": {"low": "short"}}, "the run has no mode 'short'"),
        ({"efforts": {"low": {}, "high": {}}}, "low, high ask in the same way"),
        ({"efforts": {"low": {"template": {"effort": 1}}}}, "ignores the argument 'effort'"),
        ({"lora": "beside"}, "has no adapter beside its weights"),
        ({"evaluation": Path("nowhere")}, "--eval: 'nowhere' holds no metrics.json"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    settings: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=why) as error:
        export("base/find", tmp_path / "out", thinking=THINK, **settings)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_sources_without_a_model_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(fetch("base/find"), model)
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        find(str(model))
    (model / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        find(str(model))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    with pytest.raises(ValueError, match="has no complete checkpoint yet"):
        find(str(run))
    begun = run / "checkpoints" / "step-000001"
    shutil.copytree(fetch("base/find"), begun / "model")
    (begun / "driver.json").write_text("{}")
    with pytest.raises(ValueError, match="not written to its end"):
        find(str(begun))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "adapter_config.json").write_text('{"base_model_name_or_path": "org/name"}')
    with pytest.raises(ValueError, match="adapter of 'org/name' and no model; merge it first"):
        find(str(foreign))
    with pytest.raises(ValueError, match=r"no folder 'base/fond'.*did you mean"):
        find("base/fond")


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    out = export("base/find", tmp_path / "out", thinking=THINK)
    before = (out / FILE).read_text()
    export("base/find", out, thinking=THINK, efforts={"low": {"suffix": "<b2>"}})  # once more
    assert (out / FILE).read_text() != before
    with pytest.raises(ValueError, match="no former export of base/told"):
        export("base/told", out, thinking=THINK)
    with pytest.raises(ValueError, match="no former export"):
        export(str(out), out, thinking=THINK)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    with pytest.raises(ValueError, match="is not empty"):
        export("base/find", full, thinking=THINK)
    with pytest.raises(ValueError, match="is a file"):
        export("base/find", full / "mine", thinking=THINK)
    with pytest.raises(ValueError, match="cannot be written"):
        export("base/find", Path("/proc/nobody/out"), thinking=THINK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "out"]


def test_an_export_is_whole_or_not_there(tmp_path: Path) -> None:
    """Weights of a source that vanish on the way: nothing appears, and what was there stays."""
    model = tmp_path / "model"
    shutil.copytree(fetch("base/find"), model)
    out = export(str(model), tmp_path / "out", thinking=THINK)
    (model / "z.safetensors").symlink_to(tmp_path / "gone")
    for target in (out, tmp_path / "new"):
        with pytest.raises(FileNotFoundError):
            export(str(model), target, thinking=THINK)
    assert failed(out, engines=False) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]
