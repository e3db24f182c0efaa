"""Jobs in a Ray cluster, for real: submitted, followed, stopped; and drivers that join one."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from launch.cluster import MARK, swept
from tests.processes import until
from trainer.ports import free_port

pytestmark = pytest.mark.slow

SMALL = (
    "prompts_per_step=2", "rollouts_per_prompt=4", "rollout.max_tokens=96", "evaluation=null",
    "tokens_per_micro_batch=512", "grader.processes=1",
)  # fmt: skip
MINE = """
import os

def judge(text, gold, meta):
    assert os.environ["MINE"] == "passed on"
    return True
"""


@dataclass(frozen=True)
class Head:
    """A cluster of one node, and a folder to work in that has somebody's own recipe."""

    gcs: str
    dashboard: str
    folder: Path
    environment: dict[str, str]

    def start(self, *words: str, code: str = "", **more: str) -> subprocess.Popen[str]:
        """`laconic WORDS`, or `code` before it in the same process."""
        program = f"{code}\nimport sys; from launch.cli import run; run()"
        return subprocess.Popen(
            [sys.executable, "-c", program, *words],
            cwd=self.folder,
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def laconic(self, *words: str, code: str = "", **more: str) -> tuple[int, str]:
        with self.start(*words, code=code, **more) as process:
            said = process.communicate(timeout=200)[0]
        return process.returncode, said

    def ask(self, path: str) -> list[dict[str, str]]:
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        answer = httpx.get(f"{self.dashboard}{path}", headers=headers, timeout=20).json()
        found: list[dict[str, str]] = answer["data"]["result"]["result"]
        return found

    def left(self) -> list[str]:
        """Actors that live and placement groups that stand, of anybody."""
        actors = [a["class_name"] for a in self.ask("/api/v0/actors") if a["state"] != "DEAD"]
        groups = self.ask("/api/v0/placement_groups")
        return actors + [g["state"] for g in groups if g["state"] != "REMOVED"]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    gcs, dashboard, agent, client = (free_port() for _ in range(4))
    folder = tmp_path_factory.mktemp("work")
    (folder / "mine.py").write_text(MINE)
    (folder / "mine.yaml").write_text("extends: grpo/find\nverifier: mine:judge\n")
    site = {"address": f"http://127.0.0.1:{dashboard}", "output": str(folder.parent / "runs")}
    (folder / "site.yaml").write_text(json.dumps(site | {"pass_env": ["MINE"]}))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback stays loopback
        "MINE": "passed on",
    }
    with swept() as scratch, subprocess.Popen(
        ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}",
         "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=4",
         f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
         "--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000",
         f"--temp-dir={scratch}"],
        env={**environment, MARK: str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        one = Head(f"127.0.0.1:{gcs}", site["address"], folder, environment)
        assert until(lambda: _answers(one), 60), "the head came up"
        yield one
        process.terminate()


def _answers(head: Head) -> bool:
    try:
        return len(head.ask("/api/v0/nodes")) == 1
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


def launch(*settings: str) -> list[str]:
    return ["launch", "mine.yaml", "--on", "ray", "--site", "site.yaml", *SMALL, *settings]


def test_a_job_from_its_submission_to_its_end(head: Head) -> None:
    dry = head.laconic(*launch("steps=2"), "--dry-run")
    assert dry[0] == 0
    assert "MINE=(passed on)" in dry[1]
    code, said = head.laconic(*launch("steps=2"))
    assert code == 0, said
    assert "step 2/2" in said
    run = head.folder.parent / "runs" / "mine-seed0"
    assert (run / "DONE").is_file()
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert first["accuracy"] > 0, "its verifier was found, and what it needs was passed on"
    code, said = head.laconic(*launch("steps=2"))
    assert code == 2
    assert said.splitlines()[-1] == (
        "laconic: --name mine-seed0 is in use: a job of that name has ended (SUCCEEDED), and Ray "
        "keeps names; choose another, as --name mine-seed0-2"
    )


def test_a_job_that_is_stopped(head: Head) -> None:
    words = launch("steps=500", "seed=5", "--name", "long")
    with head.start(*words) as following:
        assert following.stdout is not None
        assert any("step 2/500" in line for line in following.stdout)
        following.send_signal(signal.SIGINT)
        rest = following.stdout.read()
    assert following.returncode == 130
    assert "laconic: long goes on; laconic logs long --follow --site site.yaml; lac" in rest
    assert "long: RUNNING, since " in head.laconic("status", "long", "--site", "site.yaml")[1]
    code, said = head.laconic(*words)
    assert code == 2
    assert "--name long is in use: it is RUNNING (laconic logs long --follow" in said
    assert head.laconic("stop", "long", "--site", "site.yaml")[0] == 0
    code, said = head.laconic("logs", "long", "--follow", "--site", "site.yaml")
    assert code == 143
    assert "(checkpointed); go on with: laconic resume" in said
    assert until(lambda: not head.left()), "its places are given back"


def test_a_driver_that_joins_and_is_killed(head: Head) -> None:
    words = ["mine.yaml", *SMALL, "steps=500", "seed=9", f"output={head.folder.parent}/joined"]
    with head.start("train", *words, "--address", head.gcs, "--profile", "2") as driver:
        assert driver.stdout is not None
        assert any("step 2/500" in line for line in driver.stdout)
        assert {"LearnerActor", "RolloutActor", "GraderActor", "CREATED"} <= set(head.left())
        driver.kill()
    assert until(lambda: not head.left()), "what it made ends with it"
    assert len(head.ask("/api/v0/nodes")) == 1, "and nothing else does"


def test_a_driver_that_cannot_join(head: Head) -> None:
    words = ["train", "grpo/find", "--address", head.gcs]
    old = "import ray; ray.__version__ = '2.0.0'"
    code, said = head.laconic(*words, "output=a", code=old)
    assert code == 2
    assert f"--address {head.gcs}: the cluster has Ray 2.60.0 on Python" in said
    assert "and this process Ray 2.0.0 on Python" in said
    assert len(said.splitlines()) == 1
    code, said = head.laconic(*words, "output=b", RAY_AUTH_TOKEN="0" * 64)
    assert code == 2
    assert f"--address {head.gcs}: this process has another token than the head" in said
    assert len(said.splitlines()) == 1
