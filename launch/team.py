"""The actors of one role, each in a bundle of its own. One that is lost is made anew in its place.

Nothing here waits for ever: what other jobs leave no room for is told within `SCHEDULE_S` seconds
with the numbers asked for and available. What there is no room for at all, `place` has refused.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from launch.answers import Who, gather, present
from launch.placement import Placement
from trainer.faults import Role, Unmended

SCHEDULE_S, POLL_S, CONNECT_S = 30.0, 1.0, 3.0


class Team:
    """Actors of class `made`, as many as the placement has bundles for `role`.

    Args:
        options: of each actor, as Ray names them.
    """

    def __init__(self, role: Role, made: type, placement: Placement, **options: Any) -> None:
        import ray

        self.role, self.actors, self.lives = role, list[Any](), list[int]()
        self._processes: dict[int, tuple[str, int]] = {}  # node and process id
        self._bundles = placement.bundles[role]
        self._groups: list[Any] = []
        self._at: dict[int, tuple[Any, int, str]] = {}  # group, bundle there, node; "": Ray chose
        if not self._bundles:
            return
        groups = options.pop("concurrency_groups", None)
        self._made, self._options = ray.remote(concurrency_groups=groups)(made), options
        for group in placement.groups(role):
            self._book(group.indices, group.node.id, group.node.id)
        if not self._placed(self._groups):
            raise ValueError(self._unplaced(placement))
        self.actors += [self._start(index) for index in range(len(self._bundles))]
        self.lives += [0] * len(self.actors)  # how often each was started anew

    def _book(self, indices: Sequence[int], node: str, label: str) -> Any:
        """Places for these on one node, whose id is what `label` says."""
        from ray.util.placement_group import placement_group

        bundles = [self._bundles[index] for index in indices]
        labels = [{"ray.io/node-id": label}] * len(bundles) if label else None
        group = placement_group(bundles, "STRICT_PACK", bundle_label_selector=labels)
        self._groups.append(group)
        self._at |= {index: (group, number, node) for number, index in enumerate(indices)}
        return group

    def _placed(self, groups: Sequence[Any], patience: float = SCHEDULE_S) -> bool:
        """Whether there is a place for each, in time; signals are heard while it is waited for."""
        until, waiting = time.monotonic() + patience, list(groups)
        while waiting:
            poll = min(POLL_S, max(0.0, until - time.monotonic()))
            try:
                if waiting[-1].wait(poll):
                    waiting.pop()
                    continue
                time.sleep(0.05 if poll < 1 else 0.0)  # Ray waits whole seconds only
            except Exception:  # of no class of its own: Ray forgets groups of a driver without node
                time.sleep(poll)
            present()
            if time.monotonic() >= until:
                break
        return not waiting

    def _unplaced(self, placement: Placement) -> str:
        import ray

        return (
            f"{self.role}: {len(self._bundles)} x {self._bundles[0]} could not be placed within "
            f"{SCHEDULE_S:.0f} s. Asked in all: {placement.totals}; cluster: "
            f"{_numbers(ray.cluster_resources())}; free: {_numbers(ray.available_resources())}; "
            "others hold the rest: wait for them, ask for fewer, or give Ray more"
        )

    def _start(self, index: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle, (group, number, _) = self._bundles[index], self._at[index]
        return self._made.options(
            num_cpus=bundle["CPU"],
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, number),
            **self._options,
        ).remote()

    def __len__(self) -> int:
        return len(self.actors)

    def who(self, index: int) -> Who:
        return Who(self.role, index)

    def ask(self, index: int, method: str, *args: Any, group: str | None = None) -> dict[Any, Who]:
        """What `gather` takes: one call, and whose it is. `group`: of the actor's concurrency."""
        call = getattr(self.actors[index], method)
        ref = (call.options(concurrency_group=group) if group else call).remote(*args)
        return {ref: self.who(index)}

    def every(self, method: str, *args: Any, group: str | None = None) -> dict[Any, Who]:
        """The same call of all."""
        out: dict[Any, Who] = {}
        for index in range(len(self)):
            out |= self.ask(index, method, *args, group=group)
        return out

    def kill(self, index: int) -> None:
        """End one at once. One that stands still does not hear Ray: it is killed by its number."""
        import ray

        node, pid = self._processes.pop(index, ("", 0))
        with contextlib.suppress(Exception):  # it may be gone for good
            ray.kill(self.actors[index])
        if pid and node == ray.get_runtime_context().get_node_id():
            _end(pid)
        elif pid:
            _on(node)(_end).remote(pid)  # nobody waits for what is heard of a node that is gone

    def know(self, index: int | None = None) -> None:
        """Ask one that is built, or all, which process it is."""
        mine = range(len(self)) if index is None else [index]
        asked = [self.ask(index, "process") for index in mine]
        answers = gather({ref: who for one in asked for ref, who in one.items()})
        self._processes |= dict(zip(mine, answers, strict=True))

    def replace(self, index: int) -> None:
        """Start another where one was lost, or where there is room if that node is gone; it has
        yet to be built.

        Raises:
            Unmended: there is no place for it any more.
        """
        self.vacate(index)
        if not self.placed(index, SCHEDULE_S):
            raise Unmended(f"{self.who(index)}: {self.unplaced(index)}")
        self.start(index)

    def vacate(self, index: int) -> None:
        """End one; if its node is gone, its place is wherever there is room, or will be."""
        self.kill(index)
        node = self._at[index][2]
        if node and not _there(node):
            self._book([index], "", f"!{node}")

    def placed(self, index: int, patience: float) -> bool:
        """Whether there is a place for one, or is within so many seconds."""
        return self._placed([self._at[index][0]], patience)

    def unplaced(self, index: int) -> str:
        return (
            f"there is no place any more for {self._bundles[index]}, and none came within "
            f"{SCHEDULE_S:.0f} s; is a node gone?"
        )

    def start(self, index: int) -> None:
        """Another, at the place there is; it has yet to be built."""
        self.actors[index] = self._start(index)
        self.lives[index] += 1

    def close(self) -> None:
        """End all, and give their places back."""
        from ray.util import remove_placement_group

        for index in range(len(self)):
            self.kill(index)
        self.actors.clear()
        for group in self._groups:
            remove_placement_group(group)
        self._groups.clear()


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _on(node: str) -> Any:
    """What makes a function run on a node, beside everything else there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=there, max_retries=0)


def _there(node: str) -> bool:
    """Whether a node is. Ray takes a while to believe that one is gone."""
    import ray

    for one in ray.nodes():
        if one["NodeID"] == node and one["Alive"]:
            at = one["NodeManagerAddress"], one["NodeManagerPort"]
            with contextlib.suppress(OSError), socket.create_connection(at, CONNECT_S):
                return True
    return False


def _numbers(resources: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in resources.items() if k in ("CPU", "GPU")}
