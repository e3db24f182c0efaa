"""A job from its batch script to its end. Slurm is a stub; in the first tests Ray is real."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from launch.places.base import Order
from launch.places.slurm import Config, launch
from tests.processes import until
from tests.slurm import JOB, Site, ended
from trainer.config import load

DRIVER = """
import json, os, signal, sys, time, ray
from pathlib import Path
folder = Path(os.environ["STUB"])
ended = []
ray.init(address=sys.argv[-1], log_to_driver=False, logging_level="ERROR")
signal.signal(signal.SIGTERM, lambda *_: ended.append(143))  # Ray had set its own
count = lambda: len([node for node in ray.nodes() if node["Alive"]])
found = {"words": sys.argv[1:], "cpus": ray.cluster_resources()["CPU"], "nodes": count()}
(folder / "part").write_text(json.dumps(found))
(folder / "part").rename(folder / "driver")
until = time.monotonic() + 60
while os.environ.get("STUB_WAITS") and not ended and time.monotonic() < until:
    time.sleep(0.05)
(folder / "still").write_text(str(count()))
ray.shutdown()
sys.exit(ended[0] if ended else 0)
"""
NO_DRIVER = """
printf '["%s"]' "$1" >"$STUB/driver"
trap 'exit 143' TERM
while [[ -n ${STUB_WAITS:-} ]]; do sleep 0.02; done
exit "${STUB_CODE:-0}"
"""
NO_RAY = """
trap 'exit 0' USR1
trap '' TERM
if [[ " $* " == *" --head "* ]]; then
  printf 'laconic: %s\\n' 'ray at 192.0.2.1:20001' '1 of 2 nodes are here' "${STUB_COME:-}"
fi
while true; do sleep 0.02; done
"""
ALL = "all nodes are here"


class Job:
    """A site, a script for it, and what is left of it on this machine."""

    def __init__(self, folder: Path, nodes: str = "alpha beta", **fields: object) -> None:
        self.site = Site(folder / "slurm", nodes)
        self.temp = folder / "t"
        self.temp.mkdir()
        output = f"output={folder}/runs"
        self.recipe = load("grpo/find", [output])
        order = Order("grpo/find", (output,), self.recipe, "find", dry_run=True)
        config = Config(nodes=len(nodes.split()), temp=str(self.temp), **fields)  # type: ignore[arg-type]
        assert launch(order, config) == 0
        self.home = folder / "runs" / ".launch"

    def run(self, **env: str) -> int:
        return ended(self.begin(**env))

    def begin(self, **env: str) -> subprocess.Popen[bytes]:
        return self.site.batch(self.home / "find.sbatch", **env)

    def training(self, **env: str) -> subprocess.Popen[bytes]:
        """Until the driver is up."""
        running = self.begin(STUB_WAITS="1", **env)
        assert until(lambda: self.driver or running.poll() is not None, 60), self.log
        return running

    @property
    def driver(self) -> str:
        path = self.site.folder / "driver"
        return path.read_text() if path.exists() else ""

    @property
    def log(self) -> str:
        return (self.home / f"find-{JOB}.log").read_text()

    @property
    def again(self) -> bool:
        """It was queued once more."""
        return ["requeue", JOB] in self.site.told("scontrol")

    def left(self) -> list[str]:
        """Processes and files of it."""
        found = [path.name for path in self.temp.iterdir()]
        found += [path.name for path in self.site.folder.glob("step-*")]
        for process in psutil.process_iter():
            try:
                if str(self.temp) in " ".join(process.cmdline()):
                    found.append(process.name())
            except psutil.Error:
                pass
        return found


def bare(folder: Path, **fields: object) -> Job:
    """Neither Ray nor driver: what the script does by itself."""
    job = Job(folder, **fields)
    job.site.put("python", NO_RAY)
    job.site.put("laconic", NO_DRIVER)
    return job


def real(folder: Path, **fields: object) -> Job:
    job = Job(folder, **fields)
    (folder / "driver.py").write_text(DRIVER)
    job.site.put("laconic", f'exec {sys.executable} {folder}/driver.py "$@"')
    return job


@pytest.mark.slow
def test_two_nodes_run_a_driver_and_end_after_it_when_they_are_warned(short: Path) -> None:
    job = real(short)
    running = job.training()
    found = json.loads(job.driver)
    assert (found["nodes"], found["cpus"]) == (2, 4), job.log
    assert found["words"][:2] == ["train", "grpo/find"]
    running.send_signal(signal.SIGTERM)
    assert ended(running) == 143, job.log
    assert (job.site.folder / "still").read_text() == "2", "no node of Ray's heard it"
    assert job.again
    assert not job.left()


def test_the_drivers_code_is_the_jobs(short: Path) -> None:
    job = bare(short)
    assert job.run(STUB_COME=ALL, STUB_CODE="2") == 2, job.log
    assert job.driver == '["train"]'
    assert not job.again
    assert not job.left()
    assert not job.recipe.folder.exists(), "the run makes its folder, not the script"


@pytest.mark.slow
def test_a_node_that_never_comes_is_told_with_what_the_others_said(short: Path) -> None:
    job = bare(short, deadline=3, setup="echo ready on $SLURMD_NODENAME")
    assert job.run() == 1
    assert "after 3 s 1 of 2 nodes are in Ray" in job.log
    assert "ready on alpha" in job.log
    assert "ready on beta" in job.log
    assert not job.driver
    assert not job.left()


@pytest.mark.slow
def test_a_node_that_cannot_is_told_at_once(short: Path) -> None:
    mistake = "[[ $SLURMD_NODENAME != beta ]] || { echo no such module; exit 3; }"
    job = bare(short, setup=mistake)
    assert job.run() == 1
    assert "Ray ended on beta" in job.log
    assert "no such module" in job.log
    assert not job.left()


@pytest.mark.slow
def test_steps_that_are_preempted_end_the_run_which_is_resumed(short: Path) -> None:
    job = bare(short)
    job.recipe.folder.mkdir(parents=True)
    (job.recipe.folder / "config.yaml").touch()
    running = job.training(STUB_COME=ALL, SLURM_RESTART_COUNT="1")
    assert job.driver == '["resume"]'
    command = [str(job.site.bin / "scancel"), "--signal=TERM", JOB]
    subprocess.run(command, env=job.site.env, check=True)
    assert ended(running) == 143, job.log
    assert job.again
    assert not job.left()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "cancelled", "often enough"])
def test_what_is_ended_for_good_is_not_queued_again(short: Path, how: str) -> None:
    job = bare(short, requeue_limit=3)
    running = job.training(STUB_COME=ALL, SLURM_RESTART_COUNT="3" if how[0] == "o" else "2")
    if how == "cancelled":
        (job.site.folder / "squeue.out").write_text("0\nCOMPLETING\n")
    running.send_signal(signal.SIGINT if how == "stopped" else signal.SIGTERM)
    assert ended(running) == 143, job.log
    assert not job.again
    assert not job.left()
