"""Risk: kubectl is missing, fails or hangs, and somebody believes that a job runs; a pod that is
asked to end kills its run, or somebody else's process."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import manifests
from launch.places import kuberay
from launch.places.kuberay import Config
from tests import kuberay_schema
from tests.test_kuberay import SITE, order


class Kubectl:
    """A command of that name that notes what it was asked, and answers as it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, folder / "asked"
        self.script = folder / "kubectl"
        self.say({})

    def say(self, answers: dict[str, tuple[int, str, str]]) -> None:
        """Code, output and error by a word of the command."""
        lines = ["#!/bin/sh", f'echo "$*" >> {shlex.quote(str(self.notes))}', 'case " $* " in']
        for word, (code, out, error) in answers.items():
            said = f"printf %s {shlex.quote(out)}; printf %s {shlex.quote(error)} >&2; exit {code}"
            lines.append(f"  *' {word} '*) {said};;")
        self.script.write_text("\n".join([*lines, "esac", ""]))
        self.script.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return Kubectl(tmp_path / "bin")


def site(**fields: Any) -> Config:
    return Config(**SITE | {"namespace": "team"} | fields)


WRITTEN = "job.kuberay.yaml"


def test_a_job_is_written_tried_and_applied(kubectl: Kubectl, capsys: Any) -> None:
    kubectl.say({"apply": (0, "rayjob.ray.io/job created\n", "")})
    what = replace(order(), place="kuberay", site=Path("site.yaml"))
    assert kuberay.launch(what, site(context="prod")) == 0
    where = "--context=prod --namespace=team"
    assert kubectl.asked == [
        f"{where} get rayjobs.ray.io job --ignore-not-found --output=name",
        f"{where} apply --dry-run=server --filename {WRITTEN}",
        f"{where} apply --filename {WRITTEN}",
    ]
    documents = list(yaml.safe_load_all(Path(WRITTEN).read_text()))
    kuberay_schema.check(documents)
    assert documents[0]["metadata"]["namespace"] == "team"
    follow = "laconic logs job --follow --on kuberay --site site.yaml"
    assert follow in capsys.readouterr().out
    assert not os.path.exists("/runs")


def test_a_standing_cluster_is_told_how_to_be_reached(kubectl: Kubectl, capsys: Any) -> None:
    assert kuberay.launch(order(), site(kind="RayCluster")) == 0
    assert " get rayclusters.ray.io job " in kubectl.asked[0]
    kinds = [one["kind"] for one in yaml.safe_load_all(Path(WRITTEN).read_text())]
    assert kinds == ["RayCluster"]
    assert "port-forward service/job-head-svc 8265:8265" in capsys.readouterr().out


def test_a_dry_run_asks_nobody(kubectl: Kubectl, capsys: Any) -> None:
    what = replace(order(), dry_run=True)
    assert kuberay.launch(what, site(folder="some/where")) == 0
    assert kubectl.asked == []
    told = capsys.readouterr().out
    assert f"kubectl --namespace=team apply --filename some/where/{WRITTEN}" in told
    assert Path("some/where", WRITTEN).is_file()


def test_without_kubectl_it_is_said_how_to_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kuberay.launch(order(), site()) == 0
    told = capsys.readouterr().out
    assert "there is no kubectl here" in told
    assert f"apply --filename {WRITTEN}" in told
    for verb in (kuberay.status, kuberay.logs, kuberay.stop):
        with pytest.raises(ValueError, match="kubectl is not on the PATH"):
            verb("job", site())


@pytest.mark.parametrize(
    ("word", "answer", "message"),
    [
        ("get", (0, "rayjob.ray.io/job\n", ""), "a RayJob named job is there already"),
        (
            "get",
            (1, "", 'error: the server doesn\'t have a resource type "rayjobs"\n'),
            "kubectl get failed: the server doesn't have .*; is KubeRay installed",
        ),
        (
            "get",
            (1, "", "E1 memcache.go:265] x\nUnable to connect to the server: dial tcp\n"),
            "kubectl get failed: Unable to connect to the server: dial tcp$",
        ),
        (
            "--dry-run=server",
            (1, "", 'Error from server: denied the request: unknown field "spec.x"\n'),
            'kubectl apply failed: .*unknown field "spec.x"',
        ),
    ],
)
def test_what_the_cluster_refuses_is_one_line_and_nothing_is_applied(
    kubectl: Kubectl, word: str, answer: tuple[int, str, str], message: str
) -> None:
    kubectl.say({word: answer})
    with pytest.raises(ValueError, match=message) as caught:
        kuberay.launch(order(), site())
    assert "\n" not in str(caught.value)
    assert f"--namespace=team apply --filename {WRITTEN}" not in kubectl.asked


def test_a_cluster_that_does_not_answer_is_not_waited_for(kubectl: Kubectl) -> None:
    kubectl.script.write_text("#!/bin/sh\nexec sleep 600\n")
    with pytest.raises(ValueError, match=r"kubectl get: no answer within 0\.2 s"):
        kuberay._ask(site(), "get", "pods", patience=0.2)


def test_a_folder_that_cannot_be_written_is_told(kubectl: Kubectl) -> None:
    Path("taken").touch()
    with pytest.raises(ValueError, match="name another `folder` in the site file"):
        kuberay.launch(order(), site(folder="taken"))
    assert kubectl.asked == []


def test_logs_are_those_of_the_submitter_or_the_head(kubectl: Kubectl, capfd: Any) -> None:
    kubectl.say({"logs": (3, "step 1\n", "")})
    assert kuberay.logs("job", site(), follow=True) == 3
    assert capfd.readouterr().out == "step 1\n"
    kuberay.logs("job", site(kind="RayCluster"))
    job, cluster = kubectl.asked
    assert job == "--namespace=team logs job/job --container=ray-job-submitter --follow"
    assert "--selector=ray.io/cluster=job,ray.io/node-type=head --container=ray-head" in cluster


def test_stopping_deletes_the_job_and_its_recipe_and_no_claim(kubectl: Kubectl) -> None:
    kubectl.say({"delete": (0, "deleted\n", "")})
    assert kuberay.stop("job", site()) == 0
    job, recipe = kubectl.asked
    assert " delete rayjobs.ray.io job " in job
    assert recipe.endswith(" delete configmap job-recipe --ignore-not-found")


STATES: list[tuple[dict[str, Any], str]] = [
    ({}, "waits for KubeRay, which has not seen it yet"),
    ({"jobDeploymentStatus": "Initializing"}, "(Initializing)"),
    (
        {
            "jobStatus": "RUNNING",
            "jobDeploymentStatus": "Running",
            "failed": 1,
            "rayClusterStatus": {"desiredWorkerReplicas": 2, "readyWorkerReplicas": 1},
        },
        "RUNNING (Running); 1 of 2 workers are ready; failed 1 times",
    ),
    (
        {
            "jobStatus": "FAILED",
            "jobDeploymentStatus": "Failed",
            "reason": "AppFailed",
            "message": "Job entrypoint command failed\nlaconic: optim.lr: got 'x'\n",
        },
        "FAILED (Failed); AppFailed; laconic: optim.lr: got 'x'",
    ),
    ({"state": "ready", "desiredWorkerReplicas": 2}, "ready; 0 of 2 workers are ready"),
]


@pytest.mark.parametrize(("state", "line"), STATES)
def test_a_job_is_told_in_one_line(state: dict[str, Any], line: str) -> None:
    assert kuberay.told(state) == line


PODS = {
    "items": [
        {
            "metadata": {"name": "job-head"},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "PodScheduled", "status": "True"}],
                "containerStatuses": [{"state": {"running": {}}}],
            },
        },
        {
            "metadata": {"name": "job-worker-0"},
            "status": {
                "phase": "Pending",
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/5 nodes are available: 5 Insufficient nvidia.com/gpu.",
                    }
                ],
            },
        },
        {
            "metadata": {"name": "job-worker-1"},
            "status": {
                "phase": "Pending",
                "initContainerStatuses": [
                    {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no\nimage"}}}
                ],
                "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}],
            },
        },
        {
            "metadata": {"name": "job-worker-2"},
            "status": {
                "phase": "Failed",
                "containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}],
            },
        },
    ]
}


def test_a_pod_that_waits_says_for_what(kubectl: Kubectl, capsys: Any) -> None:
    state = {"status": {"jobDeploymentStatus": "Initializing", "rayClusterName": "job-x"}}
    kubectl.say({"pods": (0, json.dumps(PODS), ""), "job": (0, json.dumps(state), "")})
    assert kuberay.status("job", site()) == 0
    assert capsys.readouterr().out.splitlines() == [
        "job: (Initializing)",
        "  job-head: Running",
        "  job-worker-0: Pending; 0/5 nodes are available: 5 Insufficient nvidia.com/gpu.",
        "  job-worker-1: Pending; ImagePullBackOff: no image",
        "  job-worker-2: Failed; OOMKilled",
    ]
    assert kubectl.asked[1].endswith("--selector=ray.io/cluster=job-x --output=json")


# --- how a pod ends -----------------------------------------------------------------------------

DRIVER = """
import signal, sys, time
from pathlib import Path
from trainer import runfolder
def end(*_):
    Path(sys.argv[2]).write_text("checkpoint")
    raise SystemExit(143)
signal.signal(signal.SIGTERM, end)
with runfolder.claim(Path(sys.argv[1])):
    print("ready", flush=True)
    signal.pause()
"""


def ends(lock: Path, head: bool, seconds: int = 30) -> subprocess.CompletedProcess[str]:
    script = manifests.farewell(str(lock), seconds, head).replace("sleep 1\n", "sleep 0.01\n")
    return subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, timeout=60)


def test_a_head_that_ends_asks_its_driver_and_waits_for_it(tmp_path: Path) -> None:
    run, made = tmp_path / "a run's", tmp_path / "made"
    words = [sys.executable, "-c", DRIVER, str(run), str(made)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        done = ends(run / ".lock", head=True, seconds=3000)
        assert (run / ".lock").read_text() == ""  # it had let go of it before the pod went on
        assert made.read_text() == "checkpoint"
        assert driver.wait(30) == 143
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("head", [True, False])
def test_no_process_is_asked_by_whom_it_does_not_belong_to(tmp_path: Path, head: bool) -> None:
    """The lock of an earlier pod; and a worker, which may have the head's name: hostNetwork."""
    host = "another" if head else socket.gethostname()
    with subprocess.Popen(["sleep", "600"]) as other:
        (tmp_path / ".lock").write_text(f"process {other.pid} on {host}\n")
        assert ends(tmp_path / ".lock", head, seconds=5).stderr == ""
        assert other.poll() is None
        other.send_signal(signal.SIGKILL)


def test_a_pod_without_a_driver_ends_at_once(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for text in (None, "", f"process {gone.pid} on {socket.gethostname()}\n"):
        if text is not None:
            (tmp_path / ".lock").write_text(text)
        assert ends(tmp_path / ".lock", head=True, seconds=10**9).stderr == ""
