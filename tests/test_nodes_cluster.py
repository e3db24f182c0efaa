"""Several raylets on this machine: what is asked of each, who does not answer, who cannot meet.

All share one machine and one installation: that a version differs is put into what a node told.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch import meeting, probe
from launch.doctor import doctor
from launch.meeting import Guest
from launch.nodes import Needs, Node, failures, judge
from launch.run import train
from tests.processes import until
from tests.raylets import Raylets, raylets
from trainer.config import Recipe, load

pytestmark = pytest.mark.slow
NEEDS = Needs()


@pytest.fixture(scope="module")
def three() -> Iterator[Raylets]:
    with raylets(*[{"num_cpus": 2}] * 3) as made:
        yield made


def spread(output: str) -> Recipe:
    """Learners on two nodes, all else on the third."""
    return load("grpo/find", [f"output={output}", "learner.ranks=4", "evaluation=null"])


def of(three: Raylets) -> list[Node]:
    """In the order in which they were started."""
    order = [node.node_id for node in three.nodes]
    return sorted(probe.nodes(), key=lambda node: order.index(node.id))


def test_nodes_that_are_well_pass_and_meet(
    three: Raylets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor("grpo/find", [f"output={tmp_path}", "learner.ranks=4"], address="auto") == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert "3 nodes" in lines["code"]
    assert "3 met by gloo" in lines["reachability"]
    assert not list(tmp_path.iterdir()), "nothing stays"


def test_a_run_is_refused_whose_folder_is_another_one_elsewhere(three: Raylets) -> None:
    """On the node of the other learners: the third has none, and need not see it."""
    recipe = spread("/proc/self/cwd/runs")
    roles = probe.roles(recipe)
    (away,) = (i for i, n in enumerate(of(three)) if i and "learner" in roles[n.id])
    for why in ("is not there", "is another folder than the driver's"):
        with pytest.raises(ValueError) as refused:
            train(recipe)
        (line,) = str(refused.value).splitlines()
        assert line.startswith(f"{of(three)[away].name}: run folder: {recipe.folder} {why}")
        elsewhere = three.folder / str(away) / "runs" / recipe.folder.name
        elsewhere.mkdir(parents=True, exist_ok=True)
    assert recipe.folder.is_dir()
    assert not (recipe.folder / "metrics.jsonl").exists(), "nothing was begun"


def test_another_version_on_a_node(three: Raylets) -> None:
    needs = probe.needed(None, "")
    first, second, third = probe.probe(of(three), needs)
    assert failures(judge([first, second, third], needs)) == []
    other = replace(second, versions={**second.versions, "torch": "2.12.0"})
    (line,) = failures(judge([first, other, third], needs))
    assert line.startswith(f"{second.node}: torch: 2.12.0 (needs {needs.versions['torch']}")


def test_a_node_that_does_not_answer_is_named(three: Raylets) -> None:
    first, second, third = of(three)

    def hangs(needs: Needs, name: str, token: str) -> Any:
        if name == second.name:
            signal.pause()
        return probe.look(needs, name, token)

    found = probe.probe([first, second, third], NEEDS, deadline=5.0, work=hangs)
    (line,) = failures(judge(found, NEEDS))
    assert line.startswith(f"{second.name}: node: did not answer within 5 s")


def test_who_cannot_meet_is_named(three: Raylets) -> None:
    first, second, third = of(three)

    class Hangs(Guest):
        def meet(self, *_: Any) -> None:
            signal.pause()

    class Dies(Guest):
        def meet(self, *_: Any) -> None:
            os._exit(1)

    def made(node: Node) -> type:
        return {second.id: Hangs, third.id: Dies}.get(node.id, Guest)

    one, other = meeting.meet([first, second, third], made, patience=2.0)
    assert one.line.startswith(f"{second.name}: reachability: its process did not answer")
    assert other.line.startswith(f"{third.name}: reachability: its process died")


def test_an_address_that_others_do_not_reach(three: Raylets) -> None:
    first, second, _ = of(three)

    class Away(Guest):
        def arrive(self) -> meeting.Spot:
            return replace(super().arrive(), host="198.51.100.1")  # nobody's: RFC 5737

    checks = meeting.meet(
        [first, second], lambda node: Away if node is first else Guest, patience=2.0
    )
    assert [check.where for check in checks if check.where == second.name]
    line = next(check.line for check in checks if check.where == second.name)
    assert f"cannot connect to {first.name} at 198.51.100.1" in line
    assert "--node-ip-address" in line


def test_an_interface_by_which_they_do_not_meet(three: Raylets) -> None:
    first, second, third = of(three)

    class Wrong(Guest):
        def meet(self, *args: Any) -> None:
            os.environ["GLOO_SOCKET_IFNAME"] = "none0"
            super().meet(*args)

    checks = meeting.meet(
        [first, second, third], lambda node: Wrong if node is third else Guest, patience=2.0
    )
    (line,) = failures(checks)
    assert line.startswith(f"{second.name}: reachability: at ")
    assert f"and {third.name} at " in line
    assert "do not meet" in line
    assert "export GLOO_SOCKET_IFNAME=" in line


def test_a_node_that_dies_while_it_is_asked(three: Raylets, tmp_path: Path) -> None:
    """The last one: its raylet does not come back."""
    nodes = of(three)

    def waits(needs: Needs, name: str, token: str) -> Any:
        if name == nodes[2].name:
            (tmp_path / "asked").touch()
            signal.pause()
        return probe.look(needs, name, token)

    def kill() -> None:
        if until((tmp_path / "asked").exists):
            three.kill(three.nodes[2])

    killing = threading.Thread(target=kill)
    killing.start()
    found = probe.probe(nodes, NEEDS, work=waits)
    killing.join()
    (line,) = failures(judge(found, NEEDS))
    assert line.startswith(f"{nodes[2].name}: node: died")
