"""A Kubernetes cluster with KubeRay: a RayJob is written, and applied where kubectl is.

What is written is `launch/manifests.py`'s; here are the site file's fields and what kubectl does.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from launch import manifests
from launch.hardware import Cluster, Hardware, Node, node
from launch.manifests import HEAD, SUBMITTER
from launch.places.base import Order
from samplers.seam import Component
from trainer import secrets
from trainer.journal import atomic

OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)?")
UNITS = {f"{letter}i": 2.0 ** (10 * (i + 1)) for i, letter in enumerate("KMGT")}
UNITS |= {letter: 1e3 ** (i + 1) for i, letter in enumerate("kMGT")}
PATIENCE_S, LEAVING_S = 30, 600
"""What a question to the cluster may take, and the end of a job."""
JOB_ONLY = ("retries", "deadline", "shutdown", "ttl", "queue")


def _object(text: str) -> str:
    if not OBJECT.fullmatch(text):
        raise ValueError(f"'{text}' is no name in Kubernetes: lower case letters, digits and '-'")
    return text


def _quantity(text: str) -> str:
    found = QUANTITY.fullmatch(text)
    if not found or not float(found[1]):
        raise ValueError(f"'{text}' is no amount in Kubernetes; write e.g. 64Gi or 500M")
    return text


def _path(text: str) -> str:
    parts = text.split("/")
    if parts[0] or len(parts) < 2 or not all(parts[1:]) or {".", ".."} & set(parts):
        raise ValueError(f"'{text}' is no place to mount at; write e.g. /runs")
    return text


def _secret(text: str) -> str:
    name, _, key = text.partition("/")
    if not OBJECT.fullmatch(name) or not re.fullmatch(r"[-\w.]*", key):
        raise ValueError("this names a Secret of the cluster, and holds none: NAME or NAME/KEY")
    return text


def _gpus(text: str) -> str:
    if len(node(text)) != 1:
        raise ValueError(f"'{text}': those of one pod, e.g. 8xH100-80GB; replicas says how many")
    return text


Name = Annotated[str, AfterValidator(_object)]
Quantity = Annotated[str, AfterValidator(_quantity)]
Mount = Annotated[str, AfterValidator(_path)]


class Volume(Component):
    """Where runs are written: one claim, mounted in every pod."""

    claim: Name
    """PersistentVolumeClaim. Pods on several nodes write to it: ReadWriteMany."""
    mount: Mount = "/runs"
    """Where pods see it; a recipe's `output` lies there."""
    size: Quantity | None = None
    """Make the claim, so large (500Gi), where it is not there yet. None: it is there."""
    storage_class: Name | None = None
    """Of a claim that is made; None: the cluster's default."""


class Machine(Component):
    """What one pod gets; what it asks for and its limits are the same."""

    cpus: int = Field(ge=1)
    memory: Quantity
    gpus: Annotated[str, AfterValidator(_gpus)] | None = None
    """As `8xH100-80GB`, or `8x80GB`; None: none."""
    shm: Quantity | None = None
    """Most that /dev/shm holds (Ray's object store, NCCL, vLLM); it counts as memory. None: half
    of the memory; Ray takes 30% of it."""
    resources: dict[str, Quantity] = Field(default_factory=dict)
    """Others, by name: `rdma/ib: "1"`."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    annotations: dict[str, str] = Field(default_factory=dict)
    pod: dict[str, Any] = Field(default_factory=dict)
    """More fields of the pod's spec: `priorityClassName`, `securityContext`, `affinity`."""
    container: dict[str, Any] = Field(default_factory=dict)
    """More fields of its container: `securityContext`."""

    @model_validator(mode="after")
    def _ours(self) -> Machine:
        for field, ours in (("pod", manifests.POD), ("container", manifests.CONTAINER)):
            for key, instead in ours.items():
                if key in getattr(self, field):
                    raise ValueError(f"{field}.{key}: {instead} says that")
        if self.shm and amount(self.shm) >= amount(self.memory):
            raise ValueError(f"shm={self.shm} counts as memory, and memory={self.memory}")
        return self

    def node(self, head: bool = False) -> Node:
        """As a plan sees it. On a head without GPUs the driver is alone."""
        memory, gpus = amount(self.memory), node(self.gpus)[0] if self.gpus else Node()
        cpus = 0 if head and not self.gpus else self.cpus
        return Node(gpus.gpus, gpus.kind, float(cpus), gpus.gpu_bytes, memory)


class Workers(Machine):
    """Pods of one kind."""

    name: Annotated[Name, Field(max_length=30)] = "workers"
    replicas: int = Field(default=1, ge=1)
    """How many there are when the run begins; it has to fit on them."""
    min: int | None = Field(default=None, ge=0)
    """Fewest that Ray's autoscaler leaves; None: replicas."""
    max: int | None = Field(default=None, ge=1)
    """Most that it adds; None: replicas. Other than min: their number follows what is asked for."""

    @model_validator(mode="after")
    def _between(self) -> Workers:
        least, most = self.bounds
        if not least <= self.replicas <= most:
            raise ValueError(f"replicas={self.replicas} is not from min={least} to max={most}")
        return self

    @property
    def bounds(self) -> tuple[int, int]:
        least = self.replicas if self.min is None else self.min
        return least, self.replicas if self.max is None else self.max


class Config(Component):
    """A site file. An image has Laconic and its pins in it."""

    image: str = Field(min_length=1)
    """Of every pod: it has Laconic, and modules of yours that the recipe names."""
    volume: Volume
    workers: tuple[Workers, ...] = Field(min_length=1)
    head: Machine = Machine(cpus=4, memory="16Gi")
    """Of the driver. Without GPUs Ray places nothing else there."""
    kind: Literal["RayJob", "RayCluster"] = "RayJob"
    """RayJob: a cluster for this run alone. RayCluster: one that stays; nothing runs on it until
    you `launch --on ray`."""
    namespace: Name | None = None
    context: str | None = None
    """Of kubectl; None: the current ones."""
    folder: str = "."
    """On this machine, for what is written."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[Name, ...] = ()
    service_account: Name | None = None
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Of the head's service. Whoever reaches its dashboard can run commands: there is no
    password."""
    secrets: dict[str, Annotated[str, AfterValidator(_secret)]] = Field(default_factory=dict)
    """Environment variables from Secrets of the cluster: `WANDB_API_KEY: wandb/api-key`, or only
    `wandb` where the key is called as the variable is."""
    env: dict[str, str] = Field(default_factory=dict)
    """Other environment variables."""
    data: dict[Mount, Name] = Field(default_factory=dict)
    """Further claims by where they are mounted, read-only: models, datasets."""
    labels: dict[str, str] = Field(default_factory=dict)
    retries: int = Field(default=3, ge=0)
    """How often a run that failed goes on, each time on a new cluster."""
    deadline: int | None = Field(default=None, ge=1)
    """Seconds after which the job is ended, whatever it does; it is not run again."""
    shutdown: bool = True
    """Delete the pods when the run is over."""
    ttl: int = Field(default=0, ge=0)
    """Seconds that they stay nevertheless, to be looked at."""
    queue: Name | None = None
    """Kueue's queue that the job waits in."""

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        names = [group.name for group in self.workers]
        for name in {name for name in names if names.count(name) > 1}:
            raise ValueError(f"workers: {names.count(name)} groups are named '{name}'")
        for taken in {self.volume.mount, "/dev/shm", manifests.RECIPE} & set(self.data):
            raise ValueError(f"data: something else is mounted at {taken}")
        for name, value in self.env.items():
            try:
                secrets.check({name: value})
            except ValueError:
                raise ValueError(
                    f"env.{name}: holds a secret, which the manifest would show; put it into a "
                    f"Secret of the cluster and write secrets: {{{name}: NAME-OF-IT}}"
                ) from None
        for name in set(self.env) & set(self.secrets):
            raise ValueError(f"{name} stands in env and in secrets; leave one out")
        if self.queue and not self.shutdown:
            raise ValueError("shutdown=false: a job that waits in a queue has to free its pods")
        vain = [f for f in JOB_ONLY if f in self.model_fields_set and self.kind == "RayCluster"]
        if self.ttl and not self.shutdown:
            vain += ["ttl"]
        if self.volume.storage_class and not self.volume.size:
            vain += ["volume.storage_class"]
        for field in vain:
            warnings.warn(f"{field} has no effect with the rest of the site file", stacklevel=2)
        return self


def amount(text: str) -> float:
    """'64Gi' in bytes."""
    found = QUANTITY.fullmatch(text)
    assert found is not None, "checked where it was read"
    return float(found[1]) * UNITS.get(found[2], 1.0)


def hardware(config: Config) -> Hardware:
    """The pods of the beginning, the head's first."""
    workers = [group.node() for group in config.workers for _ in range(group.replicas)]
    return Hardware(Cluster((config.head.node(head=True), *workers)))


def launch(order: Order, config: Config) -> int:
    """Write the manifest, and apply it if kubectl is there."""
    documents = manifests.documents(order, config)
    path = Path(config.folder) / f"{order.name}.kuberay.yaml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic(path, manifests.text(documents))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror}; name another `folder` in the site file"
        ) from None
    print(f"{path} is written")
    if order.dry_run or shutil.which("kubectl") is None:
        why = "nothing was submitted" if order.dry_run else "there is no kubectl here"
        by_hand = shlex.join(_command(config, "apply", "--filename", str(path)))
        print(f"{why}; apply it with: {by_hand}")
        return 0
    there = _ask(config, "get", _kind(config), order.name, "--ignore-not-found", "--output=name")
    if there.strip():
        raise ValueError(
            f"a {config.kind} named {order.name} is there already; choose another --name, or end "
            f"it: {order.command('stop')}"
        )
    _ask(config, "apply", "--dry-run=server", "--filename", str(path))
    print(_ask(config, "apply", "--filename", str(path)), end="")
    if config.kind == "RayJob":
        print(f"follow it with: {order.command('logs', '--follow')}")
    else:
        reach = _command(config, "port-forward", f"service/{order.name}-head-svc", "8265:8265")
        print(f"reach it with: {shlex.join(reach)}; then launch --on ray at http://127.0.0.1:8265")
    return 0


def status(job: str, config: Config) -> int:
    """A line for the job, and one for each pod, with what it waits for."""
    state = json.loads(_ask(config, "get", _kind(config), job, "--output=json")).get("status", {})
    print(f"{job}: {told(state)}")
    cluster = job if config.kind == "RayCluster" else state.get("rayClusterName")
    if cluster:
        label = f"--selector=ray.io/cluster={cluster}"
        for line in pods(json.loads(_ask(config, "get", "pods", label, "--output=json"))):
            print(line)
    return 0


def told(status: Mapping[str, Any]) -> str:
    """Of a RayJob or a RayCluster, in one line."""
    job, deployment = status.get("jobStatus", ""), status.get("jobDeploymentStatus", "")
    words = [" ".join(filter(None, (job, f"({deployment})" if deployment else "")))]
    words += [status.get("state") or status.get("reason") or ""]
    cluster = status.get("rayClusterStatus") or status
    if desired := cluster.get("desiredWorkerReplicas"):
        words.append(f"{cluster.get('readyWorkerReplicas', 0)} of {desired} workers are ready")
    if failed := status.get("failed"):
        words.append(f"failed {failed} times")
    if message := str(status.get("message") or "").strip():
        words.append(message.splitlines()[-1])
    return "; ".join(filter(None, words)) or "waits for KubeRay, which has not seen it yet"


def pods(found: Mapping[str, Any]) -> Iterator[str]:
    """Each with what it waits for, or why it ended."""
    for pod in found["items"]:
        state, why = pod.get("status", {}), list[str]()
        for condition in state.get("conditions") or ():
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                why.append(condition.get("message") or condition.get("reason", ""))
        for kind in ("initContainerStatuses", "containerStatuses"):
            for container in state.get(kind) or ():
                for now in ("waiting", "terminated"):
                    one = (container.get("state") or {}).get(now) or {}
                    if one.get("reason") not in (None, "PodInitializing", "Completed"):
                        why.append(": ".join(filter(None, (one["reason"], one.get("message")))))
        line = f"  {pod['metadata']['name']}: {state.get('phase', 'unknown')}"
        yield "; ".join([line, *(" ".join(one.split()) for one in why)])


def logs(job: str, config: Config, follow: bool = False) -> int:
    """What the run prints: as the submitter hears it, or of a standing cluster's head."""
    if config.kind == "RayJob":
        which = [f"job/{job}", f"--container={SUBMITTER}"]
    else:
        head = f"--selector=ray.io/cluster={job},ray.io/node-type=head"
        which = [head, f"--container={HEAD}", "--tail=-1"]
    words = _command(config, "logs", *which, *(["--follow"] if follow else []))
    _there()
    return subprocess.run(words).returncode


def stop(job: str, config: Config) -> int:
    """Delete it. A run that it has makes a checkpoint first; its folder and the claim stay."""
    print(f"{job} is asked to end", flush=True)
    wait = f"--timeout={LEAVING_S}s"
    print(_ask(config, "delete", _kind(config), job, wait, patience=LEAVING_S + PATIENCE_S), end="")
    if config.kind == "RayJob":
        _ask(config, "delete", "configmap", manifests.recipe_of(job), "--ignore-not-found")
        print("its run folder stays; the same launch goes on with it")
    return 0


def _kind(config: Config) -> str:
    return f"{config.kind.lower()}s.ray.io"


def _command(config: Config, *words: str) -> list[str]:
    where = {"--context": config.context, "--namespace": config.namespace}
    return ["kubectl", *(f"{key}={value}" for key, value in where.items() if value), *words]


def _there() -> None:
    if shutil.which("kubectl") is None:
        raise ValueError("kubectl is not on the PATH; install it, or ask the cluster elsewhere")


def _ask(config: Config, *words: str, patience: float = PATIENCE_S) -> str:
    """What kubectl prints.

    Raises:
        ValueError: it failed, with what it says.
    """
    _there()
    try:
        done = subprocess.run(
            _command(config, *words), capture_output=True, text=True, timeout=patience
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"kubectl {words[0]}: no answer within {patience:g} s; is the cluster of the current "
            "context reachable (kubectl get nodes)?"
        ) from None
    if done.returncode == 0:
        return done.stdout
    said = " ".join((done.stderr or done.stdout).strip().splitlines()[-1:])
    fix = ""
    if "resource type" in said or "no matches for kind" in said:
        fix = "; is KubeRay installed there (kubectl get crd rayjobs.ray.io)?"
    raise ValueError(f"kubectl {words[0]} failed: {said.removeprefix('error: ')}{fix}")
