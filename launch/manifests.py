"""What KubeRay is given for a run: (order, site) -> documents, as dicts, and their YAML.

Fields are those that KubeRay has had since 1.2.
"""

from __future__ import annotations

import importlib.metadata
import math
import posixpath
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from launch.places.base import Order
from trainer import config as recipes
from trainer.runfolder import LOCK

if TYPE_CHECKING:
    from launch.places.kuberay import Config, Machine, Workers

NAME = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")
"""KubeRay's limit for a RayJob is 47: it adds to the name, and a service may have 63."""
RECIPE, FILE = "/etc/laconic", "recipe.yaml"
HEAD, WORKER, SUBMITTER = "ray-head", "ray-worker", "ray-job-submitter"
"""Containers, as KubeRay calls them."""
CLOSING_S = 15
"""What a driver takes beyond its grace, at most: signals.CLOSING_S and Python's own end."""
RAY_S = 15
"""... and Ray's processes after it."""
ENV = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""As a Ray of our own has them: launch/cluster.py."""
POD = {
    "containers": "the site file's `container`",
    "volumes": "the site file's `volume` and `data`",
    "nodeSelector": "the site file's `node_selector`",
    "tolerations": "the site file's `tolerations`",
    "imagePullSecrets": "the site file's `image_pull_secrets`",
    "serviceAccountName": "the site file's `service_account`",
    "restartPolicy": "KubeRay, which replaces pods,",
    "terminationGracePeriodSeconds": "the recipe's `checkpoint.grace`",
}
"""Fields of a pod that are ours, and what says them."""
CONTAINER = {
    "name": "KubeRay",
    "image": "the site file's `image`",
    "imagePullPolicy": "the site file's `image_pull_policy`",
    "resources": "the site file's `cpus`, `memory`, `gpus` and `resources`",
    "env": "the site file's `env` and `secrets`",
    "volumeMounts": "the site file's `volume` and `data`",
    "lifecycle": "the recipe's `checkpoint.grace`",
}


def documents(order: Order, config: Config) -> list[dict[str, Any]]:
    """What is to be applied, in order.

    Raises:
        ValueError: a name that KubeRay refuses, or a run that would not be on the volume.
    """
    if not NAME.fullmatch(order.name):
        slug = re.sub(r"[^a-z0-9]+", "-", order.name.lower()).lstrip("-0123456789")[:47].strip("-")
        raise ValueError(
            f"--name {order.name}: KubeRay takes up to 47 lower case letters, digits and '-', a "
            f"letter first; say --name {slug or 'run'}"
        )
    out = [_claim(config)] if config.volume.size else []
    if config.kind == "RayCluster":
        return [
            *out,
            _object("ray.io/v1", "RayCluster", order, config, spec=_cluster(order, config)),
        ]
    folder = posixpath.normpath(order.resolved.output)
    if not f"{folder}/".startswith(f"{config.volume.mount}/"):
        raise ValueError(
            f"output={order.resolved.output}: pods keep only what is on their volume, which is "
            f"mounted at {config.volume.mount}; say output={config.volume.mount}"
        )
    if order.resolved.tracking.wandb == "online" and "WANDB_API_KEY" not in config.secrets:
        warnings.warn(
            "tracking.wandb=online has no effect without a key: add secrets: {WANDB_API_KEY: "
            "NAME-OF-A-SECRET} to the site file",
            stacklevel=2,
        )
    if Path(order.recipe).is_file():
        data = {FILE: _recipe(order)}
        out.append(_object("v1", "ConfigMap", order, config, recipe_of(order.name), data=data))
    return [*out, _object("ray.io/v1", "RayJob", order, config, spec=_job(order, config))]


def recipe_of(job: str) -> str:
    """The ConfigMap with a job's recipe."""
    return f"{job}-recipe"


def _object(
    version: str, kind: str, order: Order, config: Config, name: str = "", **content: Any
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name or order.name}
    if config.namespace:
        metadata["namespace"] = config.namespace
    metadata["labels"] = _labels(order, config)
    if config.queue and kind == "RayJob":
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = config.queue
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}


def _labels(order: Order, config: Config) -> dict[str, str]:
    ours = {"app.kubernetes.io/part-of": "laconic", "app.kubernetes.io/instance": order.name}
    return ours | config.labels


def _claim(config: Config) -> dict[str, Any]:
    """Of no one job: it outlives them."""
    volume = config.volume
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": volume.size}},
    }
    if volume.storage_class:
        spec["storageClassName"] = volume.storage_class
    metadata = {"name": volume.claim}
    if config.namespace:
        metadata["namespace"] = config.namespace
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": spec,
    }


def _recipe(order: Order) -> str:
    """A user's file with what it extends, which the pods do not have."""
    raw = {"name": order.resolved.name, **recipes.read(order.recipe)}
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _job(order: Order, config: Config) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "entrypoint": entrypoint(order),
        "submissionMode": "K8sJobMode",  # `laconic logs` reads what its submitter prints
        "backoffLimit": config.retries,
        "shutdownAfterJobFinishes": config.shutdown,
    }
    if config.shutdown and config.ttl:
        spec["ttlSecondsAfterFinished"] = config.ttl
    if config.deadline:
        spec["activeDeadlineSeconds"] = config.deadline
    return spec | {
        "submitterPodTemplate": _submitter(order, config),
        "rayClusterSpec": _cluster(order, config),
    }


def entrypoint(order: Order) -> str:
    """The command that trains, for a shell, and for Kubernetes before it.

    Kubernetes replaces $(NAME) and $$ in what it hands to the submitter's shell: a `$` before
    either is set apart by an empty string. (shlex quotes all that has one with '.)
    """
    own = f"{RECIPE}/{FILE}" if Path(order.recipe).is_file() else order.recipe
    return re.sub(r"\$(?=[$(])", "$''", replace(order, recipe=own).train())


def _cluster(order: Order, config: Config) -> dict[str, Any]:
    elastic = any(least < most for least, most in (group.bounds for group in config.workers))
    alone = {} if config.head.gpus else {"num-cpus": "0"}
    return {
        "rayVersion": ray_version(),
        **({"enableInTreeAutoscaling": True} if elastic else {}),
        "headGroupSpec": {
            "serviceType": config.service_type,
            "rayStartParams": {"dashboard-host": "0.0.0.0", **alone, **_none(config.head)},
            "template": _template(order, config, config.head, HEAD),
        },
        "workerGroupSpecs": [_group(order, config, group) for group in config.workers],
    }


def ray_version() -> str:
    """The one that is pinned: what the image has."""
    found = (
        re.fullmatch(r"ray==([\d.]+)", r) for r in importlib.metadata.requires("laconic") or ()
    )
    return next(match[1] for match in found if match)


def _group(order: Order, config: Config, group: Workers) -> dict[str, Any]:
    least, most = group.bounds
    return {
        "groupName": group.name,
        "replicas": group.replicas,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": _none(group),
        "template": _template(order, config, group, WORKER),
    }


def _none(machine: Machine) -> dict[str, str]:
    """On a node with GPUs, a pod that asked for none may see them all."""
    return {} if machine.gpus else {"num-gpus": "0"}


def _template(order: Order, config: Config, machine: Machine, name: str) -> dict[str, Any]:
    grace = math.ceil(order.resolved.checkpoint.grace) + CLOSING_S
    own = Path(order.recipe).is_file() and config.kind == "RayJob" and name == HEAD
    volumes, mounts = _volumes(order, config, machine, own)
    container: dict[str, Any] = {
        **_container(config, name),
        "resources": _resources(machine),
        "env": _environment(config, grace),
        "volumeMounts": mounts,
    }
    if config.kind == "RayJob":
        lock, head = str(order.resolved.folder / LOCK), name == HEAD
        command = ["/bin/sh", "-c", farewell(lock, grace, head)]
        container["lifecycle"] = {"preStop": {"exec": {"command": command}}}
    metadata: dict[str, Any] = {"labels": _labels(order, config)}
    if machine.annotations:
        metadata["annotations"] = machine.annotations
    spec = {
        "restartPolicy": "Never",  # a new pod has an empty /dev/shm
        "terminationGracePeriodSeconds": grace + RAY_S,
        **_scheduling(config, machine),
        "containers": [container | machine.container],
        "volumes": volumes,
    }
    return {"metadata": metadata, "spec": spec | machine.pod}


def farewell(lock: str, seconds: int, head: bool) -> str:
    """What a pod does before it ends, for a shell.

    Kubernetes asks all processes of a pod at once, Ray's too: the driver, on the head, is asked
    first, and for as long as it makes its checkpoint every pod waits. The lock says who it is.
    """
    ask = (
        '  if [ "$host" = "`uname -n`" ]; then\n'
        '    kill -${told:-TERM} "$pid" || break\n'
        "    told=0\n"
        "  fi\n"
    )
    return (
        f"left={seconds}\n"
        f"while [ $left -gt 0 ] && read -r _ pid _ host < {shlex.quote(lock)} && "
        '[ -n "$pid" ]; do\n'
        f"{ask if head else ''}"
        "  left=`expr $left - 1`\n"
        "  sleep 1\n"
        "done 2> /dev/null\n"
    )


def _submitter(order: Order, config: Config) -> dict[str, Any]:
    """The pod of `ray job submit`: where the head may be."""
    small = {"cpu": "500m", "memory": "512Mi"}
    container = {
        **_container(config, SUBMITTER),
        "resources": {"requests": small, "limits": {"cpu": "1", "memory": "1Gi"}},
        **config.head.container,
    }
    spec = {"restartPolicy": "Never", **_scheduling(config, config.head), "containers": [container]}
    return {"metadata": {"labels": _labels(order, config)}, "spec": spec | config.head.pod}


def _container(config: Config, name: str) -> dict[str, Any]:
    return {"name": name, "image": config.image, "imagePullPolicy": config.image_pull_policy}


def _scheduling(config: Config, machine: Machine) -> dict[str, Any]:
    fields = {
        "imagePullSecrets": [{"name": name} for name in config.image_pull_secrets],
        "serviceAccountName": config.service_account,
        "nodeSelector": machine.node_selector,
        "tolerations": list(machine.tolerations),
    }
    return {name: value for name, value in fields.items() if value}


def _resources(machine: Machine) -> dict[str, Any]:
    whole = {"cpu": str(machine.cpus), "memory": machine.memory, **machine.resources}
    if gpus := machine.node().gpus:
        whole["nvidia.com/gpu"] = str(gpus)
    return {"requests": whole, "limits": whole}


def _environment(config: Config, grace: int) -> list[dict[str, Any]]:
    """Variables in clear, and references to secrets."""
    plain = {**ENV, "RAY_JOB_STOP_WAIT_TIME_S": str(grace), **config.env}
    out: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in plain.items()]
    for name, secret in config.secrets.items():
        of, _, key = secret.partition("/")
        reference = {"secretKeyRef": {"name": of, "key": key or name}}
        out.append({"name": name, "valueFrom": reference})
    return out


def _volumes(
    order: Order, config: Config, machine: Machine, own: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes, and where they are mounted: shared memory, runs, data, a recipe of one's `own`."""
    shm = machine.shm or f"{int((machine.node().host_bytes or 0) / 2**21)}Mi"
    volumes: list[dict[str, Any]] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm}},
        {"name": "runs", "persistentVolumeClaim": {"claimName": config.volume.claim}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "runs", "mountPath": config.volume.mount},
    ]
    for index, (path, claim) in enumerate(config.data.items()):
        source = {"claimName": claim, "readOnly": True}
        volumes.append({"name": f"data-{index}", "persistentVolumeClaim": source})
        mounts.append({"name": f"data-{index}", "mountPath": path, "readOnly": True})
    if own:
        volumes.append({"name": "recipe", "configMap": {"name": recipe_of(order.name)}})
        mounts.append({"name": "recipe", "mountPath": RECIPE, "readOnly": True})
    return volumes, mounts


class _Dumper(yaml.SafeDumper):
    """Without aliases, and so that no other YAML reads a string as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    """Kubernetes reads y as true and 1e3 as a number: what may not be plain is quoted."""
    style: str | None = '"'
    if re.fullmatch(r"[A-Za-z/][\w./:@-]+", value, re.ASCII):
        style = None
    elif value.replace("\n", "").isprintable() and not value.startswith((" ", "\n")):
        style = "|" if "\n" in value else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)


_Dumper.add_representer(str, _string)


def text(documents: Sequence[Mapping[str, Any]]) -> str:
    """As YAML."""
    return yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf
    )
