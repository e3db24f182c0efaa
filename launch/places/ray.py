"""A Ray cluster that is running: the run is submitted to it by Ray's job API, and looked after.

The driver runs there, on the head unless `cpus` or `gpus` ask for a place; it does not need this
machine any more. `pip install 'laconic[cluster]'` brings what this needs, here and on the head.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import Field, field_validator

from launch import jobs, shipping
from launch.fits import human
from launch.hardware import Cluster, Hardware, size
from launch.places.base import Order
from launch.signals import CLOSING_S
from samplers.seam import Component
from trainer import config as recipes
from trainer import secrets

ADDRESS = "http://127.0.0.1:8265"
CLEARING_S = 10
"""For leaving the cluster after the checkpoint of a stop."""


class Config(Component):
    """A cluster."""

    address: str | None = None
    """Of the head's dashboard. None: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265."""
    output: str | None = None
    """Folder of run folders, which all nodes see. It takes the place of a recipe's relative
    `output`: the folder that a job runs in is removed after it."""
    working_dir: Path = Path(".")
    """What is shipped: your own modules and small data; less run folders, checkpoints, keys, and
    all names that begin with a dot."""
    excludes: tuple[str, ...] = ()
    """More that is not: patterns of a name (`*.ckpt`), or of a path (`data/raw`)."""
    env_vars: dict[str, str] = Field(default_factory=dict)
    """For the driver and all its processes."""
    pass_env: tuple[str, ...] = ()
    """Names of variables of this shell that they get too: secrets, as WANDB_API_KEY. The cluster
    holds their values as long as it knows the job: whoever can ask its head can read them."""
    pip: tuple[str, ...] = ()
    """Packages that Ray installs for the job; what is in the nodes' image starts sooner."""
    cpus: float = Field(default=0, ge=0)
    """Ray's logical CPUs for the driver; without these and `gpus` it is on the head."""
    gpus: float = Field(default=0, ge=0)
    gpu_memory: str | None = None
    """Of each GPU, as 80GB: Ray does not know it, and a plan that does can tell what will not
    fit."""
    grows: bool = False
    """Nodes come when they are asked for (an autoscaler): what is there now limits nothing."""

    @field_validator("env_vars")
    @classmethod
    def _no_secret(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            try:
                secrets.check({name: text})
            except ValueError:
                raise ValueError(
                    f"{name} holds a secret, which does not belong into a file: export it in your "
                    f"shell and write pass_env: [{name}]"
                ) from None
        return value

    @field_validator("gpu_memory")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None:
            size(value)
        return value


def hardware(config: Config) -> Hardware | None:
    """What the cluster has, as its head says."""
    client = jobs.connect(_address(config))
    if config.grows:
        return None
    cluster = Cluster.of_ray(jobs.nodes(_address(config), client))
    if config.gpu_memory is not None:
        nodes = [
            replace(node, gpu_bytes=size(config.gpu_memory)) if node.gpus else node
            for node in cluster.nodes
        ]
        cluster = Cluster(tuple(nodes))
    return Hardware(cluster)


def launch(order: Order, config: Config) -> int:
    address, order = _address(config), _lasting(order, config)
    folder = config.working_dir.resolve()
    found = shipping.files(folder, config.excludes)
    shipping.small(folder, found)
    command = entrypoint(order, folder, found, installs=bool(config.pip))
    variables = environment(order, config)
    if unset := [name for name in sorted(wanted(order)) if name not in variables]:
        warnings.warn(
            f"{', '.join(unset)}: the run reads it, and the nodes may not have it; pass it on with "
            f"pass_env: [{', '.join(unset)}] in the site file",
            stacklevel=2,
        )
    client = jobs.connect(address)
    jobs.unused(client, address, order)
    if order.dry_run:
        for line in _told(order, config, address, command, folder, found):
            print(line)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch, "shipped.zip")
        shipping.pack(folder, found, archive, own(order, folder))
        runtime: dict[str, Any] = {"working_dir": str(archive), "env_vars": variables}
        if config.pip:
            runtime["pip"] = list(config.pip)
        jobs.submit(client, address, order, command, runtime, config.cpus, config.gpus)
    print(f"laconic: {order.name} was submitted to {address}; run folder: {_folder(order)}")
    print(f"laconic: {order.command('logs', '--follow')}; {order.command('stop')}", flush=True)
    if order.detach:
        return 0
    try:
        return jobs.follow(client, address, order.name)
    except KeyboardInterrupt:
        print(
            f"\nlaconic: {order.name} goes on; {order.command('logs', '--follow')}; "
            f"{order.command('stop')}",
            file=sys.stderr,
        )
        raise


def status(job: str, config: Config) -> int:
    address = _address(config)
    client = jobs.connect(address)
    info = jobs.info(client, address, job)
    began = datetime.fromtimestamp((info.start_time or 0) / 1000, UTC)
    until = info.end_time / 1000 if info.end_time else time.time()
    minutes = (until - began.timestamp()) / 60
    print(f"{job}: {info.status.value}, since {began:%Y-%m-%d %H:%M} UTC ({minutes:.1f} min)")
    try:
        last = jobs.log(client, address, job).splitlines()[-1:]
    except jobs.Unanswered as error:
        last = [str(error)]
    for line in [*last, jobs.failure(info)]:
        if line:
            print(f"  {line}")
    return 0


def logs(job: str, config: Config, follow: bool = False) -> int:
    address = _address(config)
    client = jobs.connect(address)
    if follow:
        return jobs.follow(client, address, job)
    jobs.info(client, address, job)
    print(jobs.log(client, address, job), end="")
    return 0


def stop(job: str, config: Config) -> int:
    address = _address(config)
    client = jobs.connect(address)
    info = jobs.info(client, address, job)
    if info.status.is_terminal():
        print(f"{job} has ended already: {info.status.value}")
        return 0
    jobs.stop(client, address, job)
    print(f"{job} is asked to end: it makes a checkpoint first; its last words are in its logs")
    return 0


def _address(config: Config) -> str:
    return (config.address or os.environ.get("RAY_API_SERVER_ADDRESS") or ADDRESS).rstrip("/")


def _folder(order: Order) -> Path:
    return order.resolved.folder


def _lasting(order: Order, config: Config) -> Order:
    """The order with a run folder that is there after the job.

    Raises:
        ValueError: it would not be.
    """
    if Path(order.resolved.output).expanduser().is_absolute():
        return order
    if config.output is None or not Path(config.output).is_absolute():
        raise ValueError(
            f"output={order.resolved.output} lies in the folder that the job runs in, which Ray "
            "removes after it; write output: /a/folder/that/all/nodes/see into the site file, or "
            "give output=... on the command line"
        )
    settings = (*order.settings, f"output={config.output}")
    resolved = order.resolved.model_copy(update={"output": config.output})
    return replace(order, settings=settings, resolved=resolved)


def entrypoint(
    order: Order, folder: Path, found: dict[PurePosixPath, int], *, installs: bool = False
) -> str:
    """The command of the job, in the shipped copy of `folder`.

    Args:
        installs: Ray makes a Python of the job's own, which `laconic` would not be run by.

    Raises:
        ValueError: a file that the run reads is not shipped.
    """
    here = Path.cwd()
    if not here.is_relative_to(folder):
        raise ValueError(f"working_dir: {folder} is not the current folder, nor one above it")
    for field, name in _named(order):
        path = Path(os.path.abspath(here / name))
        shipped = path.is_relative_to(folder) and any(
            one.is_relative_to(path.relative_to(folder)) for one in found
        )
        if not shipped:
            raise ValueError(
                f"{field} {name} is not shipped: it is not in {folder}, or excluded; put it there, "
                "or give the absolute path of one that all nodes see"
            )
    if Path(order.recipe).is_file():
        order = replace(order, recipe=_travels_as(order))
    inside = here.relative_to(folder)
    step = f"cd {shlex.quote(str(inside))} && " if inside.parts else ""
    command = order.train()
    if installs:
        command = command.replace("laconic", "python -m launch.cli", 1)
    return f"{step}exec {command}"  # signals reach it, and its exit code is the job's


def own(order: Order, folder: Path) -> dict[PurePosixPath, str]:
    """Somebody's own recipe, to be shipped: one file with what it extends, wherever those lie."""
    if not Path(order.recipe).is_file():
        return {}
    raw = {"name": order.resolved.name, **recipes.read(order.recipe)}
    path = PurePosixPath(Path.cwd().relative_to(folder), _travels_as(order))
    return {path: yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)}


def _travels_as(order: Order) -> str:
    """No file of such a name is shipped from the folder."""
    return f".{Path(order.recipe).name}"


def _named(order: Order) -> Iterator[tuple[str, str]]:
    """Files of this folder that the run reads: (what, path)."""
    for stage in order.resolved.stages:
        paths = stage.data.path or ()
        for path in paths.values() if isinstance(paths, dict) else [paths] if paths else []:
            if not Path(path).is_absolute():
                yield "data.path", path
        if not Path(stage.model.path).is_absolute() and Path(stage.model.path).is_dir():
            yield "model.path", stage.model.path


def environment(order: Order, config: Config) -> dict[str, str]:
    """Variables of the job.

    Raises:
        ValueError: one that is to be passed on is not set.
    """
    missing = [name for name in config.pass_env if name not in os.environ]
    if missing:
        raise ValueError(
            f"pass_env: {', '.join(missing)}: not set here; export it, or leave it out"
        )
    grace = math.ceil(order.resolved.checkpoint.grace + CLOSING_S) + CLEARING_S
    return {
        "RAY_JOB_STOP_WAIT_TIME_S": str(grace),  # Ray kills a job 3 s after it asked it to end
        **config.env_vars,
        **{name: os.environ[name] for name in config.pass_env},
    }


def wanted(order: Order) -> set[str]:
    """Variables that the run reads secrets from: settings name them (`api_key_env`)."""

    def below(tree: Any) -> Iterator[str]:
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if isinstance(value, dict | list | tuple):
                yield from below(value)
            elif str(key).endswith("_env") and isinstance(value, str) and value:
                yield value

    found = set(below(order.resolved.model_dump()))
    return found | ({"WANDB_API_KEY"} if order.resolved.tracking.wandb == "online" else set())


def _told(
    order: Order,
    config: Config,
    address: str,
    command: str,
    folder: Path,
    found: dict[PurePosixPath, int],
) -> Iterator[str]:
    """What would be submitted; of what is passed on, names alone."""
    yield f"job {order.name} at {address}"
    yield f"  command      {command}"
    shown = human(sum(found.values()))
    yield f"  working_dir  {folder} ({len(found)} files, {shown})"
    for path in own(order, folder):
        yield f"  recipe       {order.recipe} with what it extends, as {path}"
    yield f"  run folder   {_folder(order)}"
    for name, value in environment(order, config).items():
        yield f"  {name}={'(passed on)' if name in config.pass_env else value}"
    if config.pip:
        yield f"  pip          {' '.join(config.pip)}"
