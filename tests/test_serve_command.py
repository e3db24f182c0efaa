"""The commands that serve a model, and what cannot be served: nothing is started."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from launch import serve
from launch.cli import main
from samplers.engines import vllm
from samplers.served import command
from samplers.served.command import Command, Serving
from tests.endpoint import BASES

FIND = BASES / "find"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """As an export: something stands for what the vocabulary lacks."""
    folder = tmp_path / "tiny"
    shutil.copytree(FIND, folder)
    file = folder / "tokenizer.json"
    said = json.loads(file.read_text())
    said["model"]["unk_token"] = "<pad>"
    file.write_text(json.dumps(said))
    return folder


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """The words of the command that is printed, without its variables."""
    assert main(["serve", "--print", *map(str, words)]) == 0
    found = shlex.split(capsys.readouterr().out)
    return found[next(i for i, word in enumerate(found) if "=" not in word) :]


def option(words: list[str], name: str) -> str:
    assert words.count(name) == 1
    return words[words.index(name) + 1]


def test_the_command_holds_what_hard_budgets_need(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = printed(capsys, model, "--port", 8123, "--", "--seed", "a b")
    assert json.loads(option(words, "--reasoning-config")) == {
        "reasoning_start_str": "<think>",
        "reasoning_end_str": "</think>",  # the bare marker: see samplers/served/README.md
    }
    assert option(words, "--reasoning-parser") == "qwen3"
    assert option(words, "--host") == "127.0.0.1"
    assert option(words, "--port") == "8123"
    assert option(words, "--served-model-name") == "tiny"
    assert option(words, "--max-model-len") == "1024"
    assert option(words, "--dtype") == "float32"
    assert option(words, "--generation-config") == "auto"
    assert words[-2:] == ["--seed", "a b"]
    (model / "tokenizer_config.json").write_text(
        json.dumps({"response_template": {"fields": {"thinking": {}}}})
    )
    assert option(printed(capsys, model), "--reasoning-parser") == "hf"
    plain = printed(capsys, model, "--no-thinking")
    assert not any(word.startswith("--reasoning") for word in plain)


def test_an_export_says_its_markers_and_what_a_server_cannot_force(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(thinking: object, forced: str) -> None:
        said = {"version": 1, "thinking": thinking, "forced_end": forced, "after_close": ""}
        (model / "budget_config.json").write_text(json.dumps(said))

    def says(thinking: object, forced: str) -> list[str]:
        write(thinking, forced)
        return printed(capsys, model, "--parser", "hf")

    marks = {"start": "A", "end": "B"}
    assert json.loads(option(says(marks, "B"), "--reasoning-config"))["reasoning_end_str"] == "B"
    assert "--reasoning-config" not in says(None, "")
    write(marks, "wB")
    assert main(["serve", str(model), "--print", "--parser", "hf"]) == 0
    assert "trained with 'wB' at a forced end" in capsys.readouterr().err


def test_gpus_get_vllm_serve_and_cpus_the_module(model: Path) -> None:
    serving = Serving(str(model), "tiny")
    gpu, cpu = command.vllm(serving, "cuda"), command.vllm(serving, "cpu", "python3")
    assert gpu.words[:3] == ("vllm", "serve", str(model))
    assert cpu.words[:3] == ("python3", "-m", "vllm.entrypoints.openai.api_server")
    assert "TORCHDYNAMO_DISABLE" in cpu.environment
    assert "TORCHDYNAMO_DISABLE" not in gpu.environment
    assert shlex.split(cpu.text)[-len(cpu.words) :] == list(cpu.words)


def test_sglang_is_printed_and_called_unverified(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(model), "--engine", "sglang", "--print"]) == 0
    told = capsys.readouterr()
    assert "sglang.launch_server" in told.out
    assert "--enable-strict-thinking" in told.out
    assert "we never ran them" in told.err


MISTAKES = {
    "no folder": (["base/nothing"], "no folder 'base/nothing'"),
    "no model": (["."], "has no config.json"),
    "no token for the unknown": ([FIND], "no token for what it does not know"),
    "no such markers": ([FIND, "--markers", "<a>", "</a>"], "serve it without budgets"),
    "beyond the context": ([FIND, "--max-model-len", 5000], "model's context of 1024"),
}


@pytest.mark.parametrize(("words", "told"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_served_is_told_in_a_line(
    words: list[object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *map(str, words), "--print"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]


def test_a_model_without_template_cannot_chat(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "chat_template.jinja").unlink()
    assert main(["serve", str(model), "--print"]) == 2
    assert "has no chat template" in capsys.readouterr().err


def test_ports_in_use_and_engines_that_are_missing() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        with pytest.raises(ValueError, match="already in use; choose another with --port"):
            serve.check_port("127.0.0.1", one.getsockname()[1])
    with pytest.raises(ValueError, match="sglang: it is not installed"):
        serve.check_engine("sglang")
    if vllm.build() is None:
        with pytest.raises(ValueError, match="vLLM is not installed"):
            serve.check_engine("vllm")


@pytest.mark.parametrize(
    ("host", "reached"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000"),
     ("::", "http://[::1]:8000"), ("box", "http://box:8000")],
)  # fmt: skip
def test_where_this_machine_reaches_a_server(host: str, reached: str) -> None:
    assert serve.address(Serving("m", "m", host=host)) == reached


LATE = """
import os, signal, sys
from launch import serve
from launch.serve import run
from samplers.served.command import Command, Serving

popen = serve.subprocess.Popen
def interrupted(*args, **kwargs):
    os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
    return popen(*args, **kwargs)
serve.subprocess.Popen = interrupted
try:
    run(Command(("sleep", "100"), {}), Serving("m", "m", port=9))
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_interrupt_in_the_middle_of_the_start_is_heard() -> None:
    """Between fork and return: Python swallows what is raised there."""
    done = subprocess.run([sys.executable, "-c", LATE], timeout=60, capture_output=True)
    assert done.returncode == 130, done.stderr


def test_what_an_engine_leaves_in_its_temporary_folder_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM leaves sockets."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = Command(("sh", "-c", "touch $TMPDIR/left && echo Error: $TMPDIR; exit 3"), {})
    assert serve.run(made, Serving("m", "m", port=9)) == 1
    assert f"said last: Error: {tmp_path}/laconic-" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
