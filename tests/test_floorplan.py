"""The table of nodes and GPUs that `laconic plan` draws: what stands where, in 100 columns."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.floorplan import legend, table
from launch.hardware import Cluster, Node
from launch.placement import place
from tests.test_placement import stage_of

MIXED = Cluster((Node(2, "A100"), Node(4, "H100"), Node(3, "A100")))
DRAWN = {
    "1x0": (
        (2, 3), Cluster.of(0), """
          CPU
  node 0  driver L0-1 E0-2 R0""",
    ),
    "3x0": (
        (2, 3), Cluster.of(0, 0, 0), """
          CPU
  node 0  driver L0-1 E0 R0
  node 1  E1
  node 2  E2""",
    ),
    "1x1": (
        (1, 1), Cluster.of(1), """
          GPU 0  CPU
  node 0  L0+E0  driver R0""",
    ),
    "1x8": (
        (3, 2, 2), Cluster.of(8), """
          GPU 0  GPU 1  GPU 2  GPU 3  GPU 4  GPU 5  GPU 6  GPU 7  CPU
  node 0  L0     L1     L2     E0.0   E0.1   E1.0   E1.1   -      driver R0""",
    ),
    "2x8": (
        (8, 8), Cluster.of(8, 8), """
          GPU 0  GPU 1  GPU 2  GPU 3  GPU 4  GPU 5  GPU 6  GPU 7  CPU
  node 0  L0     L1     L2     L3     L4     L5     L6     L7     driver R0
  node 1  E0     E1     E2     E3     E4     E5     E6     E7""",
    ),
    "uneven": (
        (4, 12), MIXED, """
               GPU 0    GPU 1    GPU 2    GPU 3    CPU
  node 0 A100  3E       3E                         driver R0
  node 1 H100  L0       L1       L2       L3
  node 2 A100  E6+E7    E8+E9    E10+E11""",
    ),
    "64x8": (
        (64, 448), Cluster.of(*[8] * 64), """
           GPU 0  GPU 1  GPU 2  GPU 3  GPU 4  GPU 5  GPU 6  GPU 7  CPU
  node 0   L0     L1     L2     L3     L4     L5     L6     L7     driver R0
  node 1   L8     L9     L10    L11    L12    L13    L14    L15
  ... 5 more
  node 7   L56    L57    L58    L59    L60    L61    L62    L63
  node 8   E0     E1     E2     E3     E4     E5     E6     E7
  ... 54 more
  node 63  E440   E441   E442   E443   E444   E445   E446   E447""",
    ),
    "64x8 shared": (
        (512, 512), Cluster.of(*[8] * 64), """
           GPU 0      GPU 1      GPU 2      GPU 3
  node 0   L0+E0      L1+E1      L2+E2      L3+E3
  node 1   L8+E8      L9+E9      L10+E10    L11+E11
  ... 61 more
  node 63  L504+E504  L505+E505  L506+E506  L507+E507
           GPU 4      GPU 5      GPU 6      GPU 7      CPU
  node 0   L4+E4      L5+E5      L6+E6      L7+E7      driver R0
  node 1   L12+E12    L13+E13    L14+E14    L15+E15
  ... 61 more
  node 63  L508+E508  L509+E509  L510+E510  L511+E511""",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_a_cluster_is_drawn(name: str) -> None:
    sizes, cluster, drawn = DRAWN[name]
    assert "\n" + "\n".join(table(place(stage_of(*sizes), cluster))) == drawn


def test_the_legend_says_what_is_there() -> None:
    assert (
        legend(place(stage_of(2, 3), Cluster.of(5))) == "L learner rank, E engine, R reward worker"
    )
    assert legend(place(stage_of(3, 2, 2), Cluster.of(8))).endswith(
        "R reward worker, E0.1 GPU 1 of engine 0, - free"
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.builds(Node, st.integers(1, 20), st.sampled_from([None, "RTX-5090"])), max_size=3),
    st.integers(1, 20),
    st.integers(1, 40),
)
def test_every_process_is_drawn_once(nodes: list[Node], ranks: int, workers: int) -> None:
    placement = place(stage_of(ranks, workers), Cluster((Node(20), *nodes)))
    lines = list(table(placement))
    assert all(len(line) <= 100 and line.isascii() and line == line.rstrip() for line in lines)
    words = [word for line in lines for word in re.split(r"[\s+]+", line.replace("GPU ", "GPU"))]
    for letter, count in (("L", ranks), ("E", workers)):
        named = [word for word in words if re.fullmatch(rf"{letter}\d+", word)]
        counted = [int(word[:-1]) for word in words if re.fullmatch(rf"\d+{letter}", word)]
        assert len(named) == len(set(named))
        assert len(named) + sum(counted) == count
