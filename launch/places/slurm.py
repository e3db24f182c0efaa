"""Slurm: a batch script that brings Ray up across its allocation, runs there and clears up.

The script is `<output>/.launch/<name>.sbatch`, beside the run's folder, which is the run's own to
make. Its log and those of its nodes come to lie there too: so `output`, and the folder that is
launched from, are shared by all nodes, and seen under the same path in a container.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from launch.hardware import Cluster, Hardware, Node, size
from launch.places.base import Order
from launch.sbatch import home, parses, script, seconds
from samplers.seam import Component
from trainer import secrets

LONGEST_TEMP = 20
"""A socket's path has 107 bytes; Ray and we take 86 of them."""
PATIENCE_S = 60.0
"""For an answer of Slurm's."""
UNITS = {"K": 2**10, "M": 2**20, "": 2**20, "G": 2**30, "T": 2**40}
"""Slurm's: a plain number is megabytes."""
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"

Word = Annotated[str, StringConstraints(pattern=r"^[^\s'\"\\#]+$")]
"""What Slurm's own names are made of."""
Line = Annotated[str, StringConstraints(pattern=r"^[^\n\r\x00]+$")]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
Ports = Annotated[str, StringConstraints(pattern=r"^\d{4,5}-\d{4,5}$")]


class Container(Component):
    """A pyxis container: options that it adds to srun. For apptainer see `container_command`."""

    image: Text
    """As `--container-image` takes it."""
    mounts: tuple[Text, ...] = ()
    """As `--container-mounts` takes each: /data:/data. The folder that is launched from and the
    recipe's `output` have to be among them, under the same path."""


class Config(Component):
    """A site: what to ask Slurm for, and how its nodes become ready to run Laconic."""

    account: Word | None = None
    partition: Word | None = None
    qos: Word | None = None
    time: Word | None = None
    """Limit, as Slurm writes it and in quotes: '12:00:00', '2-00:00:00'; the partition's if left
    out. The run goes on in the next job where `requeue` is on."""
    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    gpu_memory: str | None = None
    """Of one GPU, for the plan: 80GB."""
    gpu: Word | None = None
    """Kind of the GPUs, for the plan: H100."""
    gpu_request: Line | None = None
    """The option that asks for them where it is not --gpus-per-node=N: --gres=gpu:h100:8."""
    cpus_per_node: int | None = Field(None, ge=1)
    """Left out: what Slurm gives by itself, which may be one; all of them with `exclusive`."""
    memory: Annotated[str, StringConstraints(pattern=r"^\d+[KMGT]?$")] | None = None
    """Of each node: 512G; '0' is all."""
    exclusive: bool = False
    """No other job on the nodes."""
    constraint: Line | None = None
    """Features that nodes must have."""
    sbatch: tuple[Line, ...] = ()
    """More options of sbatch: --mail-type=END."""
    srun: tuple[Text, ...] = ()
    """More options of every srun: --mpi=none."""
    container: Container | None = None
    container_command: tuple[Text, ...] = ()
    """Words before every command on a node: [apptainer, exec, --nv, --bind, /data, laconic.sif]."""
    modules: tuple[Line, ...] = ()
    """For `module load`, outside of any container."""
    setup: Text = ""
    """Shell lines for each node, inside of its container: source /shared/venv/bin/activate.
    Afterwards there are `laconic` and `python`."""
    env_vars: dict[str, Text] = Field(default_factory=dict)
    """Variables with their values. They stand in the script: nothing secret."""
    pass_env: tuple[Annotated[str, StringConstraints(pattern=f"^{VARIABLE}$")], ...] = ()
    """Names of variables of this shell that the job gets, as WANDB_API_KEY: these, and what a shell
    needs. Left out: all, as Slurm does by itself."""
    requeue: bool = True
    """Queue it again when it is preempted or its time is over; it goes on from its checkpoint."""
    requeue_limit: int = Field(50, ge=1)
    """How often at most."""
    signal: Literal["TERM", "USR1", "USR2"] = "TERM"
    """What Slurm warns the script with."""
    grace: int | None = Field(None, ge=1, le=65535)
    """Seconds before the time limit that it does; left out: as many as the recipe's
    checkpoint.grace, and clearing up, take."""
    interface: Word | None = None
    """Of the network between nodes, if they have several: ib0."""
    ports: Ports = "20000-32767"
    """Each job takes 10 in a row, beginning by its number; below those that Linux gives out."""
    worker_ports: Ports | None = None
    """For Ray's worker processes, where a firewall between nodes asks for it; left out: any."""
    temp: Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$", max_length=LONGEST_TEMP)] = (
        "/tmp"
    )
    """A folder of each node's own, with a short path."""
    deadline: int = Field(300, ge=1)
    """Seconds for all nodes to come; an image may have to be fetched first."""
    token: bool = True
    """Only this job's processes may speak to its Ray; otherwise whoever reaches a node may, and run
    code as you."""
    dashboard: bool = False
    """Ray's, on loopback of the first node."""
    folder: Path | None = None
    """Of scripts and logs, which all nodes see; left out: .launch beside the run's folder."""
    template: Path | None = None
    """A copy of launch/places/templates/slurm.sbatch that the site has changed."""

    @field_validator("time", mode="before")
    @classmethod
    def _limit(cls, value: Any) -> Any:
        if isinstance(value, int):  # YAML 1.1: 12:00:00 is 43200
            meant = f"{value // 3600}:{value // 60 % 60:02}:{value % 60:02}"
            raise ValueError(f"in quotes, as '{meant}': without, YAML reads the number {value}")
        if isinstance(value, str):
            seconds(value)
        return value

    @field_validator("sbatch", "gpu_request")
    @classmethod
    def _options(cls, value: Any) -> Any:
        for text in (value,) if isinstance(value, str) else value or ():
            if not text.startswith("-"):
                raise ValueError(f"'{text}' is no option of sbatch; write --{text.split()[0]}=...")
        return value

    @field_validator("env_vars")
    @classmethod
    def _open(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not re.fullmatch(VARIABLE, name):
                raise ValueError(f"'{name}' is no name of a variable")
            try:
                secrets.check({name: text})
            except ValueError:
                raise ValueError(
                    f"{name} holds a secret, and the script can be read: export it in your shell "
                    f"and write pass_env: [{name}]"
                ) from None
        return value

    @model_validator(mode="after")
    def _together(self) -> Config:
        for name in ("ports", "worker_ports"):
            low, _, high = (getattr(self, name) or "1024-65535").partition("-")
            if not 1024 <= int(low) <= int(high) - 9 <= 65526:
                raise ValueError(f"{name}: {low}-{high} is not 10 or more ports of 1024-65535")
        if self.gpus_per_node:
            if self.gpu_memory is None:
                raise ValueError("gpus_per_node without gpu_memory: say e.g. gpu_memory: 80GB")
            size(self.gpu_memory)
        if self.container and self.container_command:
            raise ValueError("container and container_command: say one of them")
        return self


def hardware(config: Config) -> Hardware:
    """What the allocation has."""
    memory = config.memory and re.fullmatch(r"(\d+)([KMGT]?)", config.memory)
    node = Node(
        gpus=config.gpus_per_node,
        kind=config.gpu,
        cpus=config.cpus_per_node or math.inf,
        gpu_bytes=size(config.gpu_memory) if config.gpus_per_node and config.gpu_memory else None,
        host_bytes=float(int(memory[1]) * UNITS[memory[2]]) or None if memory else None,
    )
    return Hardware(Cluster((node,) * config.nodes), files=True)


def launch(order: Order, config: Config) -> int:
    """Write the script; submit it unless it is a dry run.

    Raises:
        ValueError: the script cannot be made, or Slurm will not have it.
    """
    missing = [name for name in config.pass_env if name not in os.environ]
    if missing:
        text = f"pass_env: {', '.join(missing)} is not set here; export it, or remove it there"
        if not order.dry_run:
            raise ValueError(text)
        warnings.warn(text, stacklevel=2)
    path, text = home(order, config) / f"{order.name}.sbatch", script(order, config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        why = f"{path} cannot be written: {error.strerror}"
        raise ValueError(f"{why}; choose another output=...") from None
    parses(path)
    command = shlex.join(["sbatch", str(path)])
    if order.dry_run:
        print(f"laconic: nothing was submitted; to submit it: {command}")
        return 0
    if shutil.which("sbatch") is None:
        raise ValueError(
            f"sbatch is not on this machine; the script is written. Where it is: {command}"
        )
    _unused(order)
    job = _slurm("sbatch", "--parsable", str(path)).partition(";")[0]
    print(f"laconic: job {job} is {order.name}; script {path}")
    print(f"laconic: its log, and those of its nodes: {path.stem}-{job}*.log beside it")
    verbs = (order.command("status"), order.command("logs", "--follow"), order.command("stop"))
    print(f"laconic: {'; '.join(verbs)}")
    return 0


def _unused(order: Order) -> None:
    """Raises ValueError where a job of ours has the name: its script and run would be the same."""
    if found := _named(order.name):
        raise ValueError(
            f"a job named {order.name} is queued or runs already ({found}); choose another --name, "
            f"or {order.command('stop')}"
        )


def _named(name: str) -> str:
    """The newest job of ours with the name that is queued or runs; '' if there is none."""
    found = _slurm("squeue", "--noheader", "--me", f"--name={name}", "--format=%i").split()
    return found[-1] if found else ""


def _slurm(*words: str) -> str:
    """What one of Slurm's commands prints.

    Raises:
        ValueError: it is not there, or does not want to.
    """
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
    except FileNotFoundError:
        raise ValueError(f"{words[0]} is not on this machine; use a login node of Slurm") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"{words[0]} did not answer within {PATIENCE_S:g} s") from None
    if done.returncode:
        why = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise ValueError(f"{shlex.join(words)} was refused: {why}")
    return done.stdout.strip()


def status(job: str, config: Config) -> int:
    """Print a job's state.

    Raises:
        ValueError: Slurm knows none of that name or number.
    """
    number = _number(job)
    for line in _queue(number):
        _, name, state, ran, limit, nodes, why = line.split("|", 6)
        print(f"{name} ({number}): {state.lower()}, {ran} of {limit} on {nodes} nodes {why}")
        return 0
    name, state, ran, nodes, code = _past(number, "JobName,State,Elapsed,NNodes,ExitCode")
    code = code.partition(":")[0]
    print(f"{name} ({number}): {state.lower()} after {ran} on {nodes} nodes, exit code {code}")
    return 0


def logs(job: str, config: Config, follow: bool = False) -> int:
    """Print a job's log, and what is added to it.

    Raises:
        ValueError: Slurm knows no such job, or there is no log yet.
    """
    number, found = _number(job), None
    if _queue(number):
        said = _slurm("scontrol", "show", "job", "--oneliner", number)
        found = re.search(r"\bStdOut=(.+?)(?= \w+=|$)", said)
    if found:
        path = Path(found[1])
    else:
        script = Path(shlex.split(_past(number, "SubmitLine")[0])[-1])
        path = script.with_name(f"{script.stem}-{number}.log")
    if not path.is_file():
        raise ValueError(f"{path} is not there; if job {number} has not begun, it will be")
    tail = ["tail", "--lines=+1", *(["--follow=name", "--retry"] if follow else []), str(path)]
    sys.stdout.flush()
    return subprocess.run(tail, check=False).returncode


def stop(job: str, config: Config) -> int:
    """Ask a job to end with a checkpoint, and not to be queued again; one that waits goes at once.

    Raises:
        ValueError: there is no such job any more.
    """
    number = _number(job)
    lines = _queue(number)
    if not lines:
        raise ValueError(f"job {job} has ended already")
    if lines[0].split("|")[2] == "RUNNING":
        _slurm("scancel", "--batch", "--signal=INT", number)
        print(f"{job} is asked to end: it makes a checkpoint first; at once: scancel {number}")
    else:
        _slurm("scancel", number)
        print(f"{job} is cancelled")
    return 0


def _number(job: str) -> str:
    """Of a job that is named by it, or by its name: the newest of ours.

    Raises:
        ValueError: there is none.
    """
    if job.isdecimal():
        return job
    if found := _named(job):
        return found
    words = ("--noheader", "--parsable2", "--allocations", "--starttime=now-30days")
    past = _slurm("sacct", *words, f"--name={job}", "--format=JobID").split()
    if not past:
        raise ValueError(f"no job of yours in the last 30 days is named {job}; see squeue --me")
    return past[-1]


def _queue(job: str) -> list[str]:
    """What squeue says of a job that waits, runs or has just ended."""
    try:
        text = _slurm("squeue", "--noheader", f"--jobs={job}", "--format=%i|%j|%T|%M|%l|%D|%R")
    except ValueError as error:
        if "Invalid job id" not in str(error):
            raise
        return []
    return text.splitlines()


def _past(job: str, fields: str) -> Sequence[str]:
    """What the accounts say of a job."""
    text = _slurm(
        "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", f"--format={fields}"
    )
    if not text:
        raise ValueError(f"Slurm knows no job {job}; `squeue --me` and `sacct` list yours")
    return text.splitlines()[-1].split("|")
