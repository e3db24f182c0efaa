"""Several raylets on this machine, each a node to Ray: with logical CPUs and GPUs, and a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Raylets:
    """A Ray cluster. Workers of a node have the folder of their node as working directory: a path
    below `/proc/self/cwd` is another one on each, as that of a disk which nodes do not share."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder, self.nodes = folder, list[Any]()
        self.cluster = Cluster()

    def add(self, **resources: Any) -> Any:
        """Start a node. The first is the head, and the driver's."""
        home = self.folder / str(len(self.nodes))
        home.mkdir()
        about = {"include_dashboard": False, "temp_dir": str(self.folder / "ray")}
        with contextlib.chdir(home):
            self.nodes.append(self.cluster.add_node(**about, **resources))
        return self.nodes[-1]

    def kill(self, node: Any) -> None:
        """Its raylet, without a word."""
        self.cluster.remove_node(node, allow_graceful=False)


@contextlib.contextmanager
def raylets(*each: dict[str, Any], driver: bool = True) -> Iterator[Raylets]:
    """A node for each; this process is a driver of theirs, in the folder of the first."""
    import ray

    folder = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))  # short: sockets lie below it
    variables = QUIET | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    if gpus := max(int(resources.get("num_gpus", 0)) for resources in each):
        tool = folder / "nvidia-smi"  # that Ray counts them and the machine has none is a mistake
        tool.write_text("#!/bin/sh\n" + "echo 'Logical, 81559 MiB'\n" * gpus)
        tool.chmod(0o755)
    made = Raylets(folder)
    try:
        for resources in each:
            made.add(**resources)
        with contextlib.chdir(folder / "0"):
            if driver:
                ray.init(address=made.cluster.address, log_to_driver=False, logging_level="ERROR")
            yield made
    finally:
        ray.shutdown()
        made.cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(folder, ignore_errors=True)


QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}
