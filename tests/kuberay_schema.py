"""What KubeRay and Kubernetes accept, for tests without a cluster.

KubeRay's part is written down from its API reference (ray.io/v1, docs/reference/api.md of
ray-project/kuberay, read in November 2026; the required fields and the defaults are those of
releases since 1.2) and holds only fields that manifests of ours have: another one is an error here
until somebody has looked it up. Pods, claims and ConfigMaps are checked against Kubernetes' own
schema. What the schema leaves open and a server refuses is in `consistent`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from referencing import Registry, Resource

KUBERNETES = "v1.33.0-local-strict"
TEXT: dict[str, Any] = {"type": "string"}
WHOLE: dict[str, Any] = {"type": "integer", "minimum": 0}
YES_NO: dict[str, Any] = {"type": "boolean"}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}
OBJECT: dict[str, Any] = {"type": "object"}
"""Checked apart."""


def closed(required: str, **properties: Any) -> dict[str, Any]:
    """Nothing but these fields; a required one is there."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


CLUSTER = closed(
    "headGroupSpec rayVersion",
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    enableInTreeAutoscaling=YES_NO,
    headGroupSpec=closed(
        "rayStartParams template",
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=TEXTS,
        template=OBJECT,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            rayStartParams=TEXTS,
            template=OBJECT,
        ),
    },
)
JOB = closed(
    "rayClusterSpec entrypoint",
    entrypoint={"type": "string", "minLength": 1},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=WHOLE,
    shutdownAfterJobFinishes=YES_NO,
    ttlSecondsAfterFinished=WHOLE,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    submitterPodTemplate=OBJECT,
    rayClusterSpec=CLUSTER,
)
KINDS = {"RayJob": JOB, "RayCluster": CLUSTER}


@cache
def core(kind: str) -> jsonschema.Draft202012Validator:
    """Kubernetes' own schema of `kind`, in which unknown fields are errors; read once."""
    package = Path(kubernetes_validate.__file__).parent
    folder = package / "kubernetes-json-schema" / KUBERNETES
    read = lambda name: json.loads((folder / name).read_text())  # noqa: E731
    schema = read(f"{kind.lower()}-v1.json")
    known = [Resource.from_contents(one) for one in (schema, read("_definitions.json"))]
    return jsonschema.Draft202012Validator(schema, registry=(known @ Registry()).crawl())


def check(documents: Sequence[Mapping[str, Any]]) -> None:
    """Each as an API server would.

    Raises:
        Exception: some field is unknown, missing, of another type, or out of place.
    """
    for document in documents:
        if document["kind"] not in KINDS:
            core(document["kind"]).validate(document)
            continue
        whole = closed(
            "apiVersion kind metadata spec",
            apiVersion={"const": "ray.io/v1"},
            kind=TEXT,
            metadata=OBJECT,
            spec=KINDS[document["kind"]],
        )
        jsonschema.validate(document, whole)
        _metadata(document["metadata"])
        name = document["metadata"]["name"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), name
        assert len(name) <= 47
        for template in templates(document):
            pod(template)


def templates(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of the head, the workers and the submitter."""
    spec = document["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    submitter = [spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else []
    return [group["template"] for group in groups] + submitter


def pod(template: Mapping[str, Any]) -> None:
    """A template, as a pod of that kind."""
    assert set(template) == {"metadata", "spec"}
    _metadata(template["metadata"])
    one = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
    core("Pod").validate(one)
    consistent(template["spec"])


def consistent(spec: Mapping[str, Any]) -> None:
    """What names something else names what is there; names are unique and well formed."""
    volumes = [volume["name"] for volume in spec.get("volumes", [])]
    assert len(set(volumes)) == len(volumes)
    for container in spec["containers"]:
        mounts = container.get("volumeMounts", [])
        assert {mount["name"] for mount in mounts} == set(volumes)
        assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
        variables = [variable["name"] for variable in container.get("env", [])]
        assert len(set(variables)) == len(variables)
        assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name) for name in variables)
        for amounts in container["resources"].values():
            for name, amount in amounts.items():
                assert re.fullmatch(r"\d+(\.\d+)?([kMGT]|[KMGT]i|m)?", amount), (name, amount)
                assert "/" not in name or amount.isdigit(), (name, amount)  # whole devices
        asks, most = container["resources"]["requests"], container["resources"]["limits"]
        assert set(asks) == set(most)


def _metadata(metadata: Mapping[str, Any]) -> None:
    named = {"name": "x", **metadata}
    one = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named}
    core("ConfigMap").validate(one)
    for key, value in metadata.get("labels", {}).items():
        assert re.fullmatch(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9][\w.-]{0,62}", key), key
        assert re.fullmatch(r"([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?", value), value
