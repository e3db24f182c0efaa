"""Ports, addresses and amounts of a node that may not be ours alone."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import slurmnode
from launch.slurmnode import BLOCK, RAY, amounts, block, blocks, first

LOW, HIGH, JOB = 20000, 32767, os.getpid()


@given(st.integers(1024, 60000), st.integers(9, 5000), st.integers(0, 10**8), st.integers(1, 400))
def test_jobs_begin_at_blocks_of_their_own(low: int, wide: int, job: int, later: int) -> None:
    mine = blocks(low, low + wide, job)
    assert sorted(mine) == list(range(low, low + wide - BLOCK + 2, BLOCK))
    assert mine[-1] + BLOCK - 1 <= low + wide or len(mine) == 1
    if later % len(mine):
        assert blocks(low, low + wide, job + later)[0] != mine[0]


def test_two_nodes_of_one_machine_share_no_port() -> None:
    with block(LOW, HIGH, JOB) as mine, block(LOW, HIGH, JOB) as yours:
        assert abs(mine - yours) >= BLOCK
        assert blocks(LOW, HIGH, JOB)[:2] == [mine, yours]
    with block(LOW, HIGH, JOB) as again:
        assert again == mine


@pytest.mark.parametrize("where", [0, 5, BLOCK - 1])
def test_a_block_with_a_port_of_somebody_elses_is_left(where: int) -> None:
    start = blocks(LOW, HIGH, JOB)[0]
    with socket.socket() as other:
        other.bind(("127.0.0.1", start + where))
        with block(LOW, HIGH, JOB) as mine:
            assert mine != start
        with pytest.raises(ValueError, match="has no 10 free ports in a row"):  # noqa: SIM117
            with block(start, start + BLOCK - 1, 3):
                pass


def test_ray_is_told_every_port_it_would_choose_by_itself(tmp_path: Path) -> None:
    words = ["--head", "--ports=20000-20399", "--worker-ports=30000-31000", "--gpus=0"]
    head = slurmnode.command(slurmnode._parser().parse_args(words), 20000, "10.0.0.1", tmp_path)
    ports = [int(w.rpartition("=")[2]) for w in head if w.startswith("--") and "port=" in w]
    assert sorted(ports) == [*range(20001, 20000 + BLOCK), 30000, 31000]
    assert len(RAY) == BLOCK - 1
    words[0] = "--address=10.0.0.1:20001"
    node: argparse.Namespace = slurmnode._parser().parse_args(words)
    assert not any(w.startswith("--port=") for w in slurmnode.command(node, 1, "", tmp_path))


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        (["127.0.0.1", "10.0.0.1"], "10.0.0.1"),
        (["fd00::1", "10.0.0.1"], "10.0.0.1"),
        (["fe80::1%ib0", "fd00::1%ib0"], "fd00::1"),
        (["169.254.0.1", "00:11:22:33:44:55"], ""),
        (["127.0.1.1", "::1"], ""),
        ([], ""),
    ],
)
def test_an_address_is_one_that_others_reach(found: list[str], chosen: str) -> None:
    assert first(found) == chosen


def test_an_interface_is_taken_at_its_word() -> None:
    assert slurmnode.address("lo") == "127.0.0.1"
    with pytest.raises(ValueError, match=r"has no 'ib9' with an address; there are .*lo"):
        slurmnode.address("ib9")
    assert slurmnode.address(None, "127.0.0.1") == "127.0.0.1"
    assert slurmnode.address(None)


GB = 2**30


@pytest.mark.parametrize(
    ("env", "gpus", "memory", "shm", "have"),
    [
        ({"SLURM_CPUS_ON_NODE": "96", "SLURM_GPUS_ON_NODE": "8"}, 8, 0, GB, (96, 8, None)),
        ({"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0"}, 4, 0, GB, (4, 8, None)),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 2, 0, GB, (4, 2, None)),
        ({}, 3, 0, GB, (4, 3, None)),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, 100 * GB, 64 * GB, (4, 0, 30 * GB)),
        ({}, 0, 100 * GB, 10 * GB, (4, 0, 9 * GB)),
        ({}, 0, 10**13, 10**13, (4, 0, 200 * 10**9)),
        ({}, 0, GB // 8, GB, (4, 0, 100 * 2**20)),
    ],
)
def test_ray_has_what_the_allocation_has(
    env: dict[str, str], gpus: int, memory: int, shm: int, have: tuple[int, int, int | None]
) -> None:
    found = amounts(env, gpus, memory, cores=4, shm=shm)
    store = found.get("object-store-memory")
    assert (found["num-cpus"], found["num-gpus"]) == have[:2]
    assert store == (have[2] and pytest.approx(have[2], abs=1))


def test_fewer_gpus_than_the_site_says_end_it() -> None:
    with pytest.raises(ValueError, match="gives 4 GPUs, the site file says gpus_per_node=8"):
        amounts({"SLURM_GPUS_ON_NODE": "4"}, 8, 0, cores=4, shm=GB)
