"""Slurm's commands for a machine that has none: `Site` puts them on a PATH.

They do what the real ones do with processes and signals, as read in Slurm's source: a signal for a
step goes to all of its processes, scancel leaves the batch script alone unless it is told to, and
SIGTERM to srun itself kills its tasks.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.processes import until

ROOT = Path(__file__).parent.parent
COMMANDS = ("sbatch", "srun", "scancel", "scontrol", "squeue", "sacct")
JOB = "4711"


class Site:
    """A folder of commands, what they were told, and the job that runs."""

    def __init__(self, folder: Path, nodes: str = "alpha", *commands: str) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        for name in commands or COMMANDS:
            self.put(name, f'PYTHONPATH={ROOT} exec {sys.executable} {__file__} {name} "$@"')
        self.env = {
            **os.environ,
            "STUB": str(folder),
            "STUB_NODES": nodes,
            "PATH": f"{self.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
        }

    def put(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def told(self, name: str) -> list[list[str]]:
        """How a command was called."""
        path = self.folder / "told"
        lines = path.read_text().splitlines() if path.exists() else []
        return [words[1:] for words in map(json.loads, lines) if words[0] == name]

    def batch(self, script: Path, **more: str) -> subprocess.Popen[bytes]:
        """Run a script as Slurm does."""
        options = asked(script)
        env = self.env | {"SLURM_JOB_ID": JOB, "SLURM_JOB_NODELIST": "all", **more}
        with Path(options["output"].replace("%j", JOB).replace("%%", "%")).open("ab") as log:
            job = subprocess.Popen(
                ["bash", str(script)],
                cwd=options["chdir"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        (self.folder / "batch").write_text(str(job.pid))
        return job


def asked(script: Path) -> dict[str, str]:
    """The options in a script, read as sbatch reads them."""
    out: dict[str, str] = {}
    for line in script.read_text().splitlines()[1:]:
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            (word,) = shlex.split(line.removeprefix("#SBATCH "))
            name, _, value = word.removeprefix("--").partition("=")
            out[name] = value
    return out


def main(name: str, words: list[str]) -> int:
    """One of the commands."""
    folder = Path(os.environ["STUB"])
    with (folder / "told").open("a") as file:
        file.write(json.dumps([name, *words]) + "\n")
    said = folder / f"{name}.out"
    if said.exists():  # a test knows better
        code, _, text = said.read_text().partition("\n")
        print(text, end="", file=sys.stderr if int(code) else sys.stdout)
        return int(code)
    if name == "srun":
        return _srun(folder, words)
    if name == "scancel":
        _scancel(folder, words)
    if words[:2] == ["show", "hostnames"]:
        print("\n".join(os.environ["STUB_NODES"].split()))
    if "--format=%T" in words:
        print("RUNNING")
    return 0


def _srun(folder: Path, words: list[str]) -> int:
    options = [word for word in words if word.startswith("--")]
    options = options[: next(i for i, word in enumerate(words) if not word.startswith("-"))]
    node = next(o for o in options if o.startswith("--nodelist=")).partition("=")[2]
    numbers = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    task = subprocess.Popen(
        words[len(options) :],
        env=os.environ | {"SLURMD_NODENAME": node, "SLURM_CPUS_ON_NODE": "2"},
        start_new_session=True,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()),
    )
    step = folder / f"step-{task.pid}"
    step.write_text("")
    while task.poll() is None:
        got = signal.sigwait(numbers)
        if got != signal.SIGCHLD:
            _signal(task.pid, signal.SIGKILL if got == signal.SIGTERM else got)
    step.unlink()
    return task.returncode if task.returncode >= 0 else 128 - task.returncode


def _signal(pid: int, number: int) -> None:
    """To all processes of a step."""
    try:
        everyone = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _scancel(folder: Path, words: list[str]) -> None:
    names = [w.partition("=")[2] for w in words if w.startswith("--signal=")]
    number = signal.Signals[f"SIG{names[0]}"] if names else signal.SIGTERM
    if "--batch" in words:
        os.kill(int((folder / "batch").read_text()), number)
    else:
        for step in folder.glob("step-*"):
            _signal(int(step.name.removeprefix("step-")), number)


def ended(job: subprocess.Popen[bytes], seconds: float = 120.0) -> int:
    """The exit code of a job."""
    assert until(lambda: job.poll() is not None, seconds), "the job does not end"
    return int(job.returncode)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1], sys.argv[2:]))
