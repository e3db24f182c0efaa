"""`laconic launch` before a place is asked: names, site files, plans, what is shipped, mistakes."""

from __future__ import annotations

import http.server
import os
import shlex
import socket
import string
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import joining, shipping, submit
from launch.cli import main
from launch.places import base, ray
from launch.places.base import Order
from tests import far_place
from trainer.config import load
from trainer.runfolder import resolved

FIND = load("grpo/find")


def order(*settings: str, recipe: str = "grpo/find", name: str = "job") -> Order:
    return Order(recipe, settings, load(recipe, settings), name)


@given(st.text())
def test_any_run_folder_gives_a_job_a_name(text: str) -> None:
    name = submit._sanitised(text)
    assert submit.chosen(name) == name
    assert submit._sanitised(name) == name


@given(st.text("aB_/-", min_size=1, max_size=80), st.integers(0, 99), st.integers(0, 99))
def test_names_that_are_cut_keep_seeds_apart(text: str, a: int, b: int) -> None:
    names = {submit._sanitised(f"{text}-seed{seed}") for seed in (a, b)}
    assert len(names) == len({a, b})


@pytest.mark.parametrize("name", ["A", "a b", "-a", "a-", "a" * 54, "a_b"])
def test_a_name_that_no_job_can_have(name: str) -> None:
    with pytest.raises(ValueError, match=r"--name .*; as [a-z0-9]"):
        submit.chosen(name)


WORDS = st.text(string.printable, min_size=1).filter(lambda text: not text.startswith("-"))


@given(WORDS, st.lists(WORDS, max_size=4))
def test_commands_are_quoted_for_a_shell(recipe: str, settings: list[str]) -> None:
    made = Order(recipe, tuple(settings), FIND, "job")
    words = ["laconic", "train", recipe, *settings, "--address", "auto"]
    assert shlex.split(made.train()) == words


def test_a_shell_agrees() -> None:
    settings = ("name=a b;'c'$(d)`e`\n\"f\"", "x={a: [*, ~]}", "y=#")
    made = Order("r e", settings, FIND, "job")
    script = f'laconic() {{ printf "%s\\0" "$@"; }}; {made.train()}'
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.split("\0")[:-1] == ["train", "r e", *settings, "--address", "auto"]


def test_commands_name_the_place(tmp_path: Path) -> None:
    made = Order("grpo/find", (), FIND, "job", place="slurm", site=tmp_path / "a b.yaml")
    assert made.command("stop") == f"laconic stop job --on slurm --site '{tmp_path}/a b.yaml'"
    assert Order("grpo/find", (), FIND, "job").command("logs", "--follow") == (
        "laconic logs job --follow"
    )


def launched(*words: str) -> tuple[int, list[Order]]:
    far_place.ORDERS.clear()
    code = main(["launch", *words, "--on", "tests.far_place"])
    return code, list(far_place.ORDERS)


def test_a_place_of_ones_own_gets_the_order(tmp_path: Path) -> None:
    code, (one,) = launched("grpo/find", "steps=3", f"output={tmp_path}", "seed=4")
    assert code == 7
    assert one.name == "grpo-find-seed4"
    assert one.resolved.stages[0].steps == 3
    assert one.settings == ("steps=3", f"output={tmp_path}", "seed=4")


def test_data_that_only_the_place_has(capsys: pytest.CaptureFixture[str]) -> None:
    code, orders = launched("grpo/find", "data={path: /nowhere/rows.jsonl}")
    assert (code, len(orders)) == (7, 1)
    assert "data.path: '/nowhere/rows.jsonl' is not on this machine" in capsys.readouterr().err
    assert launched("grpo/find", "data={path: nowhere/rows.jsonl}") == (2, []), "it is shipped"


def test_what_does_not_fit_reaches_no_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("{gpus: 8, memory: 8.0e+9}")
    assert launched("grpo/r1-8gpu", "--site", str(site)) == (1, [])
    said = capsys.readouterr().err.splitlines()
    told = [line for line in said if line.startswith("laconic: does not fit: node 0 ")]
    assert told
    assert "GiB" in told[0]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line."""
    assert main(list(words)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site.yaml"
    launch = ["launch", "grpo/find", "--site", str(site), "--on"]
    assert "no such file" in refused(capsys, *launch, "ray")
    site.write_text("adress: http://head:8265\n")
    assert "adress: unknown field; did you mean 'address'" in refused(capsys, *launch, "ray")
    site.write_text("- a\n")
    assert "a mapping of fields" in refused(capsys, *launch, "ray")
    site.write_text("a: [\n")
    assert "cannot be read as YAML" in refused(capsys, *launch, "local")
    site.write_text("{}")
    assert "did you mean 'slurm'" in refused(capsys, *launch, "slrum")
    assert "lacks Config, hardware, launch" in refused(capsys, *launch, "tests.tiny")
    assert "did you mean 'steps'" in refused(capsys, *launch, "local", "step=3")
    assert "--name" in refused(capsys, *launch, "local", "--name", "My job")
    assert "has no `logs`" in refused(capsys, "logs", "job", "--on", "local")


def test_a_dry_run_here_starts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.run.cluster", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["launch", "grpo/find", "--on", "local", "--dry-run", "steps=2"]) == 0
    assert capsys.readouterr().out == "laconic train grpo/find steps=2\n"


def test_secrets_are_named_and_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("env_vars: {WANDB_API_KEY: 0123456789abcdef0123}")
    line = refused(capsys, "launch", "grpo/find", "--on", "ray", "--site", str(site))
    assert "pass_env: [WANDB_API_KEY]" in line
    assert "0123456789" not in line
    config = ray.Config(pass_env=("WANDB_API_KEY",), env_vars={"HF_HOME": "/models"})
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ValueError, match="WANDB_API_KEY: not set here"):
        ray.environment(order(), config)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    told = ray._told(order(), config, "http://head:8265", "laconic", tmp_path, {})
    assert "0123456789" not in "\n".join(told)
    made = ray.environment(order("checkpoint.grace=100"), config)
    assert made["WANDB_API_KEY"] == "0123456789abcdef0123"
    assert made["HF_HOME"] == "/models"
    assert int(made["RAY_JOB_STOP_WAIT_TIME_S"]) > 100, "a stop may take its checkpoint"


def test_what_the_run_reads_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "x")
    judge = "verifier={name: judge, url: 'http://judge', model: j, api_key_env: JUDGE_KEY}"
    assert ray.wanted(order()) == set()
    assert ray.wanted(order(judge, "tracking.wandb=online")) == {"JUDGE_KEY", "WANDB_API_KEY"}


def test_a_run_folder_outlives_its_job() -> None:
    with pytest.raises(ValueError, match="output=runs lies in the folder that the job runs in"):
        ray._lasting(order(), ray.Config())
    made = ray._lasting(order("seed=3"), ray.Config(output="/shared/runs"))
    assert made.settings == ("seed=3", "output=/shared/runs")
    assert made.resolved.folder == Path("/shared/runs/grpo-find-seed3")
    own = order("output=/mine")
    assert ray._lasting(own, ray.Config(output="/shared/runs")) == own


def test_files_that_the_run_reads_are_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "a b"
    inside.mkdir()
    monkeypatch.chdir(inside)
    assert ray.entrypoint(order(), tmp_path, {}) == (
        "cd 'a b' && exec laconic train grpo/find --address auto"
    )
    made = ray.entrypoint(order(), inside, {}, installs=True)
    assert made == "exec python -m launch.cli train grpo/find --address auto"
    Path("rows.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    data = order("data={path: rows.jsonl}")
    assert ray.entrypoint(data, inside, shipping.files(inside))
    with pytest.raises(ValueError, match=r"data.path rows.jsonl is not shipped"):
        ray.entrypoint(data, inside, shipping.files(inside, ["*.jsonl"]))
    with pytest.raises(ValueError, match="is not the current folder, nor one above"):
        ray.entrypoint(order(), tmp_path / "other", {})


def test_a_recipe_is_shipped_with_what_it_extends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, there = tmp_path / "a" / "b", tmp_path / "elsewhere"
    inside.mkdir(parents=True)
    there.mkdir()
    (there / "base.yaml").write_text("extends: grpo/find\nsteps: 7\nprompts_per_step: 2\n")
    (there / "own.yaml").write_text(f"extends: {there}/base.yaml\nsteps: 9\n")
    (inside / "own.yaml").write_text("extends: ../../elsewhere/own.yaml\n")
    monkeypatch.chdir(inside)
    far = tmp_path / "far"
    for recipe in ("own.yaml", str(inside / "own.yaml"), str(there / "own.yaml")):
        made, folder = order(recipe=recipe), tmp_path / "a"
        command = "cd b && exec laconic train .own.yaml --address auto"
        assert ray.entrypoint(made, folder, {}) == command
        shipping.pack(folder, {}, tmp_path / "one.zip", ray.own(made, folder))
        with zipfile.ZipFile(tmp_path / "one.zip") as archive:
            archive.extractall(far)
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir(far / "b")
            assert load(".own.yaml") == load(
                str(there / "own.yaml"), [f"name={made.resolved.name}"]
            )
    assert ray.own(order(), inside) == {}, "one that ships is there"


def test_what_is_shipped(tmp_path: Path) -> None:
    wanted = ["mine.py", "pkg/more.py", "config.yaml", "data/rows.jsonl"]
    left = [".git/HEAD", ".venv/bin/python", "pkg/__pycache__/a.pyc", ".env", "x/checkpoints/step"]
    left += ["runs/find/config.yaml", "runs/find/.lock", "runs/find/metrics.jsonl"]
    secrets = [".ssh/id_ed25519", "id_rsa", "keys/id_ecdsa.pub", ".aws/credentials", "tls/my.key"]
    secrets += [".git-credentials", ".kube/config", ".pypirc", ".envrc", ".env.local", ".netrc"]
    secrets += [".bash_history", ".huggingface/token", ".cache/huggingface/token", "a.pem", "b.p12"]
    mine = ["data/raw/big.bin", "model.ckpt"]
    for name in wanted + left + secrets + mine:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = shipping.files(tmp_path, ["data/raw", "*.ckpt"])
    assert found == {PurePosixPath(name): len(name) for name in wanted}
    archives = []
    for name in ("one.zip", "two.zip"):
        shipping.pack(tmp_path, found, tmp_path / name, {})
        archives.append((tmp_path / name).read_bytes())
        os.utime(tmp_path / "mine.py", (1e9, 1e9))
    assert archives[0] == archives[1], "the same files are the same archive"
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == {
            name: name for name in wanted
        }


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"working_dir: /nope: No such file .*; name the folder"):
        shipping.files(Path("/nope"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"working_dir: .*/file: Not a directory"):
        shipping.files(tmp_path / "file")
    with pytest.raises(ValueError, match=r"working_dir: .*/gone: No such file"):
        shipping.pack(tmp_path, {PurePosixPath("gone"): 1}, tmp_path / "one.zip", {})


def test_what_is_no_code_is_not_shipped(tmp_path: Path) -> None:
    for name, size in (("model/a", 60), ("model/b", 50), ("data/c", 5), ("d", 1)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(size * 2**20)
    with pytest.raises(ValueError, match=r"biggest: model/ 110.*MiB, data/ .*, d "):
        shipping.small(tmp_path, shipping.files(tmp_path))
    shipping.small(tmp_path, shipping.files(tmp_path, ["model/a"]))


@pytest.fixture
def http_server() -> Iterator[str]:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def closed() -> Iterator[str]:
    """An address where nobody listens: the port is held, and not listened at."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.mark.parametrize("command", ["train", "resume"])
def test_an_address_where_nothing_listens(
    command: str, closed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["grpo/find", f"output={tmp_path}"]
    if command == "resume":
        (tmp_path / "config.yaml").write_text(resolved(FIND))
        words = [str(tmp_path)]
    line = refused(capsys, command, *words, "--address", closed)
    assert f"--address {closed}: nothing listens there" in line
    assert list(tmp_path.glob("*/")) == [], "nothing was begun"


@pytest.mark.parametrize("command", ["train", "resume", "doctor"])
def test_an_address_that_is_empty(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a variable that is not set: not a Ray of its own on this machine."""
    words = ["grpo/find", f"output={tmp_path}"]
    if command == "resume":
        (tmp_path / "config.yaml").write_text(resolved(FIND))
        words = [str(tmp_path)]
    line = refused(capsys, command, *words, "--address", "")
    assert line == "laconic: --address '': it is none; write HOST:6379 of the head, or auto"
    assert list(tmp_path.glob("*/")) == [], "nothing was begun"


def test_an_address_of_something_else(http_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="what listens there is no Ray head"):
        joining.answers(http_server)
    monkeypatch.setattr(joining, "CONNECT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ValueError, match="no answer within"):
            joining.answers(address)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("head", "it is none"),
        ("head:", "it is none"),
        (":6379", "it is none"),
        ("head:99999", "it is none"),
        ("ray://head:10001", "Ray's client cannot drive a run"),
        ("http://head:8265", "that is for `laconic launch --on ray`"),
    ],
)
def test_no_address(address: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"--address {address}: {why};.* write HOST:6379"):
        joining.split(address)


@given(st.sampled_from(["head", "10.0.0.1", "[::1]", "a.b-c"]), st.integers(1, 65535))
def test_addresses(host: str, port: int) -> None:
    assert joining.split(f"{host}:{port}") == (host.strip("[]"), port)


def test_places_have_what_places_have() -> None:
    for name in base.seam.names(base.PACKAGE):
        assert base.find(name)
