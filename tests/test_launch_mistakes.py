"""Mistakes in what a place is given: one line each, and none of them only found after the queue."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli import main

KUBE = "image: x/y:1\nvolume: {claim: c}\nworkers: [{cpu: 3, memory: 1Gi, replicas: 1}]\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("place", "site", "told"),
    [
        ("slurm", "acount: x\n", "acount: unknown field; did you mean 'account'?"),
        ("slurm", "1: 2\n", "1: unknown field; known here: account, "),
        ("slurm", "[]\n", "a site file is a mapping of fields; got []"),
        ("slurm", "container: {img: x}\n", "container.img: unknown field; did you mean 'image'?"),
        ("kuberay", KUBE, "workers.0.cpu: unknown field; did you mean 'cpus'?"),
    ],
)
def test_site_files(
    place: str, site: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.yaml").write_text(site)
    assert main(["launch", "grpo/find", "--on", place, "--site", "site.yaml", "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("laconic: --site site.yaml: ")
    assert told in line
    assert "at least 1 item" not in line


@pytest.mark.parametrize("name", ["nowhere", "../x", ".x", "a..b"])
def test_places_that_are_none(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "grpo/find", "--on", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no component named '{name}'. Allowed: kuberay, local, ray, slurm" in line


def test_files_that_this_machine_would_see(capsys: pytest.CaptureFixture[str]) -> None:
    """Slurm's nodes share its file system; what `--node` describes may have another."""
    recipe = ["grpo/find", "data.path=/nope.jsonl"]
    for words in (["plan"], ["launch", "--on", "slurm", "--dry-run"]):
        assert main([words[0], *recipe, *words[1:]]) == 2
        assert "data.path: file '/nope.jsonl' does not exist" in capsys.readouterr().err
    assert main(["plan", *recipe, "--nodes", "1", "--gpus-per-node", "0"]) == 0
    assert "'/nope.jsonl' is not on this machine" in capsys.readouterr().out


def test_an_engine_for_gpus_where_the_site_file_asks_for_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["launch", "grpo/r1-8gpu", "--on", "slurm", "--dry-run"]) == 0
    assert "--on slurm has no GPUs; does its site file (--site) ask" in capsys.readouterr().err
