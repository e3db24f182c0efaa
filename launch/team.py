"""The actors of one role, each in a bundle of its own. One that is lost is made anew in its place.

Nothing here waits for ever: what cannot be scheduled is told within `SCHEDULE_S` seconds with
the numbers asked for and available.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from launch.answers import Who, gather, present
from launch.placement import Placement
from trainer.faults import Role, Unmended

SCHEDULE_S, POLL_S = 30.0, 1.0


class Team:
    """Actors of class `made`, as many as the placement has bundles for `role`.

    Args:
        options: of each actor, as Ray names them.
    """

    def __init__(self, role: Role, made: type, placement: Placement, **options: Any) -> None:
        import ray
        from ray.util.placement_group import placement_group

        self.role, self.actors, self.lives = role, list[Any](), list[int]()
        self._processes: dict[int, tuple[str, int]] = {}  # node and process id
        self._bundles = placement.bundles[role]
        self._group: Any = None
        if not self._bundles:
            return
        groups = options.pop("concurrency_groups", None)
        self._made, self._options = ray.remote(concurrency_groups=groups)(made), options
        self._group = placement_group(list(self._bundles), strategy=placement.strategies[role])
        if not self._placed():
            raise ValueError(self._unplaced(placement))
        self.actors += [self._start(index) for index in range(len(self._bundles))]
        self.lives += [0] * len(self.actors)  # how often each was started anew

    def _placed(self) -> bool:
        """Whether there is a place for each, in time; signals are heard while it is waited for."""
        until = time.monotonic() + SCHEDULE_S
        while time.monotonic() < until:
            try:
                if self._group.wait(POLL_S):
                    return True
            except Exception:  # of no class of its own: Ray forgets groups of a driver without node
                time.sleep(POLL_S)
            present()
        return False

    def _unplaced(self, placement: Placement) -> str:
        import ray

        return (
            f"{self.role}: {len(self._bundles)} x {self._bundles[0]} could not be placed within "
            f"{SCHEDULE_S:.0f} s. Asked in all: {placement.totals}; cluster: "
            f"{_numbers(ray.cluster_resources())}; free: {_numbers(ray.available_resources())}; "
            "ask for fewer, or give Ray more"
        )

    def _start(self, index: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle = self._bundles[index]
        return self._made.options(
            num_cpus=bundle["CPU"],
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, index),
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
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def know(self, index: int | None = None) -> None:
        """Ask one that is built, or all, which process it is."""
        mine = range(len(self)) if index is None else [index]
        asked = [self.ask(index, "process") for index in mine]
        answers = gather({ref: who for one in asked for ref, who in one.items()})
        self._processes |= dict(zip(mine, answers, strict=True))

    def replace(self, index: int) -> None:
        """Start another where one was lost; it has yet to be built.

        Raises:
            Unmended: there is no place for it any more.
        """
        self.kill(index)
        if not self._placed():
            raise Unmended(
                f"{self.who(index)}: there is no place any more for {self._bundles[index]}, and "
                f"none came within {SCHEDULE_S:.0f} s; is a node gone?"
            )
        self.actors[index] = self._start(index)
        self.lives[index] += 1

    def close(self) -> None:
        """End all, and give their places back."""
        from ray.util import remove_placement_group

        for index in range(len(self)):
            self.kill(index)
        self.actors.clear()
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


def _numbers(resources: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in resources.items() if k in ("CPU", "GPU")}
