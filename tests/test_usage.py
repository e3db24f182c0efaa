"""What is told of how nodes are used: GPUs' tables, means, names of nodes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import usage
from launch.usage import Usage, mean, names, seen


def test_a_table_of_gpus_is_read_and_what_a_card_does_not_tell_is_left() -> None:
    table = "0, 97, 40960\n1, 3, 512\n2, [N/A], 1024\n3, [Not Supported], [N/A]\n"
    assert seen(table) == {
        "gpu0/percent": 97.0,
        "gpu0/memory_gb": 40.0,
        "gpu1/percent": 3.0,
        "gpu1/memory_gb": 0.5,
        "gpu2/memory_gb": 1.0,
    }
    assert seen("") == {}


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e6)), max_size=6))
def test_means_are_over_the_looks_that_have_a_figure(looks: list[dict[str, float]]) -> None:
    found = mean(looks)
    assert found.keys() == {name for look in looks for name in look}
    for name, value in found.items():
        had = [look[name] for look in looks if name in look]
        assert math.isclose(value, math.fsum(had) / len(had), abs_tol=1e-9)


def _node(host: str, identity: str) -> dict[str, Any]:
    return {"NodeManagerHostname": host, "NodeID": identity}


def test_a_node_is_called_by_its_host_and_apart_from_others_there() -> None:
    nodes = [_node("a", "111111ff"), _node("b", "222222ff"), _node("b", "333333ff")]
    assert names(nodes) == {"111111ff": "a", "222222ff": "b-222222", "333333ff": "b-333333"}


def test_this_machine_is_measured_since_it_was_last_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Traffic:
        def __init__(self, mib: int) -> None:
            self.bytes_recv, self.bytes_sent = mib * 2**20, 2 * mib * 2**20

    counted = iter([Traffic(10), Traffic(13), Traffic(20)])
    monkeypatch.setattr(psutil, "net_io_counters", lambda: next(counted))
    here = Usage()
    first, second = here.figures(), here.figures()
    assert (first["received_mb"], first["sent_mb"]) == (3, 6)
    assert (second["received_mb"], second["sent_mb"]) == (7, 14)
    assert 0 < first["memory_gb"] * usage.GIB <= psutil.virtual_memory().total
    assert 0 <= second["cpu_percent"] <= 100
