"""What nodes have against what a run needs: each failure is one line, with its node and the fix."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import meeting, probe
from launch.cli import main
from launch.doctor import Check
from launch.nodes import Facts, Needs, failures, judge
from trainer import checkpoint, memory
from trainer.config import Recipe, load
from trainer.modelfolder import ModelFolder, locate

GIB = 2**30
H100, A100 = "NVIDIA H100 80GB HBM3, 81559 MiB", "NVIDIA A100-SXM4-40GB, 40960 MiB"
NEEDS = Needs(
    versions={
        **{"python": "3.11.7", "laconic": "0.1.0", "code": "ab12", "ray": "2.60.0"},
        **{"torch": "2.13.0+cu129", "vllm": "0.32.0"},
    },
    pins={"numpy": ">=1.26", "torch": "==2.13.0"},
    vllm=True,
    ranks=12,
    models={"/models/small": "f00d"},
    data={"/data/train.jsonl": "beef"},
    modules=("my.engine",),
    verifiers=("my.rewards",),
    folder="/runs/a",
    kept=10.0 * GIB,
    checkpoints="3 checkpoints",
)
GOOD = Facts(
    "10.0.0.1 (one)",
    roles=frozenset({"learner", "rollout", "grader"}),
    versions={**NEEDS.versions, "numpy": "2.4.6"},
    gpus=(H100,) * 8,
    claimed=8,
    ahead=(-0.003, 0.002),
    room=11 * GIB,
    temporary=5 * GIB,
    shared=2 * GIB,
    store=GIB,
    files=65536,
    paths={**NEEDS.models, **NEEDS.data},
    modules={"my.engine": "", "my.rewards": ""},
    folder="",
)
OTHERS = [replace(GOOD, node=f"10.0.0.{i} (more)") for i in (2, 3)]
VERSIONS = GOOD.versions
BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "silent": ({"failed": "did not answer within 60 s"}, ("did not answer", "ray status")),
    "not installed": (
        {"failed": "failed: ModuleNotFoundError: No module named 'launch'"},
        ("No module named 'launch' (needs an answer); install the same Laconic there",),
    ),
    "ray": ({"versions": VERSIONS | {"ray": "2.59.0"}}, ("ray: 2.59.0", "2.60.0, as the driver")),
    "python": ({"versions": VERSIONS | {"python": "3.12.7"}}, ("3.12.7 (needs 3.11.7",)),
    "code": ({"versions": VERSIONS | {"code": "cd34"}}, ("cd34", "install the same on all nodes")),
    "no vllm": (
        {"versions": {k: v for k, v in VERSIONS.items() if k != "vllm"}},
        ("vllm: not installed", "pip install vllm==0.32.0"),
    ),
    "pin": ({"versions": VERSIONS | {"numpy": "1.20"}}, ("1.20", "pip install 'numpy>=1.26'")),
    "gpus": ({"gpus": (H100,) * 7}, ("Ray counts 8, nvidia-smi shows 7", "--num-gpus=7")),
    "cuda": ({"cuda": False}, ("torch: built without CUDA", "build of torch")),
    "kind": ({"gpus": (A100,) * 8}, (f"{A100} on 10.0.0.9", f"{H100} on", "learner.ranks=12")),
    "ahead": ({"ahead": (70.0, 71.0)}, ("70 s ahead of", "chrony")),
    "behind": ({"ahead": (-80.0, -75.0)}, ("75 s behind", "chrony")),
    "disk": ({"room": 9 * GIB}, ("9.00 GiB free at /runs/a", "10.00 GiB for 3", "checkpoint.keep")),
    "temporary": ({"temporary": 2**20}, ("1.0 MiB free", "TMPDIR")),
    "shm": ({"shared": 2**26}, ("64.0 MiB", "NCCL", "--shm-size=1g")),
    "files": ({"files": 256}, ("open files: 256", "ulimit -n 65536")),
    "folder": ({"folder": "is not there"}, ("/runs/a is not there", "output=")),
    "model": ({"paths": GOOD.paths | {"/models/small": ""}}, ("/models/small cannot be read",)),
    "copy": ({"paths": GOOD.paths | {"/models/small": "bad"}}, ("/models/small is another copy",)),
    "engine": (
        {"modules": {"my.rewards": "", "my.engine": "ImportError: no zmq"}},
        ("my.engine: cannot be imported: ImportError: no zmq", "PYTHONPATH"),
    ),
    "verifier": ({"modules": {"my.engine": ""}}, ("my.rewards: cannot be imported",)),
}


@pytest.mark.parametrize("case", BAD)
def test_each_failure_is_one_line_with_node_and_fix(case: str) -> None:
    change, words = BAD[case]
    bad = replace(GOOD, node="10.0.0.9 (bad)", **change)
    (line,) = failures(judge([GOOD, bad, *OTHERS], NEEDS))
    assert "\n" not in line
    assert "10.0.0.9 (bad)" in line
    assert GOOD.node not in line or case == "kind"
    for word in words:
        assert word in line


def test_nodes_that_are_alike_pass_and_are_told_once() -> None:
    checks = judge([GOOD, *OTHERS], NEEDS)
    assert failures(checks) == []
    assert {check.status for check in checks} == {"ok"}
    assert {check.where for check in checks} == {"3 nodes"}
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    assert {"torch", "numpy", "gpu", "clock", "run folder", "model", "my.rewards"} <= set(names)


MANY = st.lists(
    st.sampled_from([{}, *(change for change, _ in BAD.values()), {"roles": frozenset()}]),
    min_size=1,
    max_size=6,
).map(lambda some: [replace(GOOD, node=f"node {i}", **c) for i, c in enumerate(some)])


@settings(max_examples=200, deadline=None)
@given(MANY, st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(nodes: list[Facts], random: Any) -> None:
    other = nodes[:]
    random.shuffle(other)
    assert judge(nodes, NEEDS) == judge(other, NEEDS)


@settings(max_examples=200, deadline=None)
@given(MANY)
def test_a_node_fails_alone_or_not_at_all(nodes: list[Facts]) -> None:
    """Nothing that is wrong with one is said of another, but for what they must have in common."""
    failed = [c for c in judge(nodes, NEEDS) if c.status == "FAIL" and c.name != "gpu kinds"]
    for one in nodes:
        alone = [c for c in judge([one], NEEDS) if c.status == "FAIL"]
        mine = [replace(c, where=one.node) for c in failed if one.node in c.where.split(", ")]
        assert sorted(map(str, alone)) == sorted(map(str, mine))


@pytest.mark.parametrize(
    ("change", "roles"),
    [
        (BAD["disk"][0], {"rollout", "grader"}),
        (BAD["folder"][0], {"rollout", "grader"}),
        (BAD["model"][0], {"grader"}),
        (BAD["verifier"][0], {"learner", "rollout"}),
        (BAD["kind"][0], {"rollout"}),
        ({"paths": GOOD.paths | {"/data/train.jsonl": ""}}, {"learner", "rollout", "grader"}),
    ],
)
def test_nothing_is_asked_of_a_node_that_its_processes_do_not_need(
    change: dict[str, Any], roles: set[Any]
) -> None:
    one = replace(GOOD, node="10.0.0.9", roles=frozenset(roles), **change)
    assert failures(judge([GOOD, one], NEEDS)) == []


def test_engines_read_the_run_folder_where_their_model_begins_there() -> None:
    one = replace(GOOD, roles=frozenset({"rollout"}), folder="is another folder than the driver's")
    (line,) = failures(judge([one], replace(NEEDS, begins=True)))
    assert "/runs/a is another folder than the driver's" in line


def test_builds_and_patches_that_talk_to_each_other_pass() -> None:
    versions = VERSIONS | {"torch": "2.13.0+cpu", "python": "3.11.2"}
    assert failures(judge([GOOD, replace(GOOD, node="b", versions=versions)], NEEDS)) == []


def test_vllm_is_asked_of_nodes_with_engines_alone() -> None:
    """A driver can do without it, and so can learners and a recipe with another engine."""
    bare = {name: version for name, version in VERSIONS.items() if name != "vllm"}
    without = replace(GOOD, node="b", versions=bare)
    (line,) = failures(judge([GOOD, without], replace(NEEDS, versions=bare)))
    assert line == "b: vllm: not installed (needs the recipe's engine); install vllm there"
    assert failures(judge([GOOD, without], replace(NEEDS, vllm=False))) == []
    learners = replace(without, roles=frozenset({"learner"}))
    assert failures(judge([GOOD, learners], NEEDS)) == []


def test_a_clock_is_only_wrong_by_what_the_way_leaves_no_doubt_about() -> None:
    (check,) = judge([Facts("a", ahead=(-90.0, 0.5))], Needs())
    assert check.status == "ok"
    (check,) = judge([Facts("a", ahead=(2.0, 3.0))], Needs())
    assert check == Check(
        *("warn", "clock", "2 s ahead of the driver's", "at most 1 s apart"),
        *("start chrony or ntpd there", "a"),
    )


def test_a_hub_model_comes_with_the_way_to_get_it_there() -> None:
    needs = replace(NEEDS, fetched={"/models/small": "org/small"})
    (line,) = failures(judge([replace(GOOD, paths=NEEDS.data)], needs))
    assert "set HF_HOME to a folder that all nodes share, or there: hf download org/small" in line


# What is needed, and what this machine has of it


def recipe(tmp_path: Path, *words: str) -> Recipe:
    return load("grpo/find", [f"output={tmp_path}", "evaluation=null", *words])


def test_checkpoints_that_will_be_there_at_once(tmp_path: Path) -> None:
    folder = locate("base/find")
    assert folder is not None
    one = recipe(tmp_path, "steps=30")
    shape = memory.shape(ModelFolder(folder))
    assert shape is not None
    each = memory.checkpoint(one.stages[0], shape)
    for words, count in (
        ([], 1),
        (["checkpoint.every=20"], 2),
        (["checkpoint.every=1"], 3),
        (["checkpoint={every: 1, keep: 5}"], 6),
        (["checkpoint={every: 1, keep: 2, best: loss, keep_best: 3}"], 6),
    ):
        assert probe.kept(recipe(tmp_path, *words))[0] == count * each
    made = recipe(tmp_path, "checkpoint.every=1")

    def fill(path: Path) -> None:
        (path / "weights").write_bytes(bytes(1000))

    checkpoint.save(made.folder / "checkpoints", 1, fill, {}, keep=2)
    assert 0 < 3 * each - probe.kept(made)[0] - 1000 < 10_000, "what is there is not needed again"


def test_no_room_for_checkpoints_refuses_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_free", lambda _: 2**30)
    assert failures(probe.here(recipe(tmp_path))) == []
    monkeypatch.setattr(memory, "checkpoint", lambda *_: 2.0**29)
    (line,) = failures(probe.here(recipe(tmp_path, "checkpoint.every=1")))
    assert f"disk: 1.00 GiB free at {tmp_path} (needs 1.50 GiB for 3 checkpoints" in line
    assert line.endswith("free space, choose another output=..., or lower checkpoint.keep")


def test_doctor_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"output={tmp_path}", "checkpoint.every=1"]
    assert main(["doctor", "grpo/find", *words]) == 0
    out = capsys.readouterr().out
    assert f"free at {tmp_path} (needs" in out
    assert "for 3 checkpoints, of about 4.6 MiB each" in out
    assert out.count("/dev/shm") == 1
    assert main(["doctor", "grpo/fund"]) == 2
    assert "did you mean 'grpo/find'" in capsys.readouterr().err


def test_copies_are_told_apart(tmp_path: Path) -> None:
    big = bytes(3 * probe.HEAD)
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(big)
    (tmp_path / "b" / "README.md").write_text("no matter")
    (tmp_path / "c" / "model.safetensors").write_bytes(big[:-1] + b"x")
    (tmp_path / "d" / "config.json").write_text("[]")
    of = {name: probe.fingerprint(tmp_path / name) for name in ("a", "b", "c", "d")}
    assert of["a"] == of["b"]
    assert len(set(of.values())) == 3
    assert probe.fingerprint(tmp_path / "none") == ""
    assert probe.fingerprint(tmp_path / "a" / "config.json") not in ("", of["a"])


def test_a_look_at_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").touch()
    (tmp_path / "mine_nodes.py").write_text("")
    (tmp_path / "broken_nodes.py").write_text("raise KeyError('x')")
    needs = Needs(
        versions={"ray": ""},
        pins={"numpy": ""},
        modules=("mine_nodes",),
        verifiers=("mine_nodes", "broken_nodes"),
        path=(str(tmp_path),),
        folder=str(tmp_path),
    )
    facts = probe.look(needs, "here", "token")
    assert facts.folder == ""
    assert facts.versions.keys() >= {"python", "laconic", "code", "ray", "torch", "numpy"}
    assert facts.modules == {"mine_nodes": "", "broken_nodes": "KeyError: 'x'"}
    elsewhere = replace(needs, folder=str(tmp_path / "none"), path=())
    assert probe.look(elsewhere, "here", "token").folder == "is not there"
    assert probe.look(needs, "here", "other").folder == "is another folder than the driver's"


def test_modules_of_the_users_own(tmp_path: Path) -> None:
    needs = probe.needed(recipe(tmp_path, "verifier=json:loads"), str(tmp_path))
    assert (needs.modules, needs.verifiers) == ((), ("json",))
    assert not needs.begins
    assert list(needs.models) == [str(locate("base/find"))]
    shared = probe.needed(recipe(tmp_path, "model.add_markers=true"), str(tmp_path))
    assert not shared.begins, "the tokenizer has the markers"


# Who meets whom


@pytest.mark.parametrize("n", range(2, 12))
def test_every_pair_meets_once_and_nobody_twice_in_a_round(n: int) -> None:
    rounds = list(meeting.rounds(n))
    assert sorted(pair for pairs in rounds for pair in pairs) == list(combinations(range(n), 2))
    for pairs in rounds:
        assert len({node for pair in pairs for node in pair}) == 2 * len(pairs)
    assert len(rounds) == n - 1 + n % 2
