"""The batch script of a job: a template whose blanks are filled in, each quoted for bash."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from launch.places.base import Order
from launch.signals import CLOSING_S

if TYPE_CHECKING:
    from launch.places.slurm import Config

TEMPLATE = Path(__file__).parent / "places" / "templates" / "slurm.sbatch"
BLANK = re.compile(r"@([a-z_]+)@")
"""What is filled in in a template."""
CLEARING_S, MARGIN_S = 45, 5
"""For Ray to end on all nodes once the run has; and to spare."""
NAMED = ("account", "partition", "qos", "time", "constraint")
"""Fields of a site that are options of sbatch as they are."""
SHELL = ("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG")
"""Variables that a shell needs, where others are named."""


def home(order: Order, config: Config) -> Path:
    """The folder of scripts and logs. Its name begins with a dot: `laconic report runs/*`."""
    return (config.folder or order.resolved.folder.parent / ".launch").expanduser().absolute()


def script(order: Order, config: Config) -> str:
    """The text of the batch script.

    Raises:
        ValueError: the template lacks something, or asks for something that there is not.
    """
    logs, folder = home(order, config) / order.name, order.resolved.folder.absolute()
    blanks = {
        "sbatch": "\n".join(f"#SBATCH {option}" for option in _options(order, config, logs)),
        "name": order.name,
        "modules": "\n".join(_modules(config)),
        "train": _words(order.train("")),
        "resume": _words(order.resume("")),
        "run": shlex.quote(str(folder)),
        "logs": shlex.quote(str(logs)),
        "container": shlex.join(_container(config)),
        "srun": shlex.join(config.srun),
        "raynode": shlex.join(_raynode(config)),
        "deadline": str(config.deadline),
        "requeues": str(config.requeue_limit if config.requeue else 0),
        "setup": "\n".join(_setup(config)),
        "token": _token(config),
        "signals": " ".join(dict.fromkeys(("TERM", config.signal))),
    }
    return fill(_template(config), blanks, str(config.template or TEMPLATE))


def fill(template: str, blanks: dict[str, str], name: str) -> str:
    """The template with its blanks filled in, once: what is filled in may look like one.

    Raises:
        ValueError: a blank that nobody knows, or none for something that the site file says.
    """
    there = set(BLANK.findall(template))
    known = ", ".join(f"@{blank}@" for blank in blanks)
    for blank in sorted(there - set(blanks)):
        raise ValueError(f"template: {name} has @{blank}@, which nothing fills in; known: {known}")
    lost = [f"@{blank}@" for blank, text in blanks.items() if text and blank not in there]
    if lost:
        raise ValueError(f"template: {name} lacks {', '.join(lost)}, which would have no effect")
    return BLANK.sub(lambda found: blanks[found[1]], template)


def _template(config: Config) -> str:
    path = config.template or TEMPLATE
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"template: {path} cannot be read: {why}") from None


def _words(command: str) -> str:
    """Without the address at its end, which the script knows."""
    *words, address = shlex.split(command)
    assert address == "", "an order's commands end with the address"
    return shlex.join(words)


def _options(order: Order, config: Config, logs: Path) -> list[str]:
    """Of sbatch. A path is quoted as for a shell, which sbatch reads, and % is its own there."""
    for path in (logs, Path.cwd()):
        if any(sign in str(path) for sign in "\n\r\\"):
            raise ValueError(f"{str(path)!r}: a path that sbatch cannot be told; choose another")
    output = str(logs).replace("%", "%%") + "-%j.log"
    out = [
        f"--job-name={shlex.quote(order.name)}",
        f"--chdir={shlex.quote(os.getcwd())}",
        f"--output={shlex.quote(output)}",
        "--open-mode=append",
        f"--nodes={config.nodes}",
        "--ntasks-per-node=1",
        "--no-kill",  # a node that fails is the run's to mend
        "--requeue" if config.requeue else "--no-requeue",
        f"--signal=B:{config.signal}@{_grace(order, config)}",
    ]
    named = {name: getattr(config, name) for name in NAMED}
    out += [f"--{name}={shlex.quote(value)}" for name, value in named.items() if value]
    if config.gpus_per_node:
        out.append(config.gpu_request or f"--gpus-per-node={config.gpus_per_node}")
    out += [f"--cpus-per-task={config.cpus_per_node}"] * bool(config.cpus_per_node)
    out += [f"--mem={config.memory}"] * bool(config.memory)
    out += ["--exclusive"] * config.exclusive
    if config.pass_env:
        out.append(f"--export={','.join(dict.fromkeys((*SHELL, *config.pass_env)))}")
    return [*out, *config.sbatch]


def _grace(order: Order, config: Config) -> int:
    """Seconds before the time limit that the script is warned."""
    need = math.ceil(order.resolved.checkpoint.grace + CLOSING_S) + CLEARING_S + MARGIN_S
    if config.grace is not None and config.grace < need:
        warnings.warn(
            f"grace: {config.grace} s before the time limit is less than checkpoint.grace="
            f"{order.resolved.checkpoint.grace:g} and clearing up may take ({need} s): a run that "
            "needs them is killed in its checkpoint, and not queued again",
            stacklevel=2,
        )
    grace = config.grace or need
    limit = seconds(config.time) if config.time else math.inf
    if limit <= grace:
        raise ValueError(
            f"time: '{config.time}' is over before the run could be warned {grace} s ahead of it; "
            "give it more, or lower checkpoint.grace"
        )
    return grace


def seconds(time: str) -> float:
    """Of a time limit as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises:
        ValueError: it is none.
    """
    if time.lower() in ("unlimited", "infinite"):
        return math.inf
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    if not re.fullmatch(r"\d*", days) or not all(map(str.isdecimal, parts)) or len(parts) > 3:
        raise ValueError(f"'{time}' is no time limit; write e.g. '12:00:00' or '2-00:00:00'")
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return 86400 * int(days or 0) + sum(int(p) * u for p, u in zip(parts, units, strict=False))


def _modules(config: Config) -> list[str]:
    if not config.modules:
        return []
    load = f"module load {shlex.join(config.modules)}"
    # A batch script is no login shell.
    return ["type module >/dev/null 2>&1 || source /etc/profile", f"{load} || exit 1"]


def _container(config: Config) -> list[str]:
    if config.container is None:
        return list(config.container_command)
    mounts, here = config.container.mounts, os.getcwd()
    out = [f"--container-image={config.container.image}", f"--container-workdir={here}"]
    seen = [Path(m.split(":")[0]) for m in mounts if len(set(m.split(":")[:2])) == 1]
    if not any(Path(here).is_relative_to(path) for path in seen):
        warnings.warn(
            f"container.mounts: {here}, where it is launched from, is not among them under the "
            "same path; the job finds neither it nor what is relative to it unless the site "
            f"mounts it by itself; add {here}:{here}",
            stacklevel=2,
        )
    return [*out, f"--container-mounts={','.join(mounts)}"] if mounts else out


def _raynode(config: Config) -> list[str]:
    out = [f"--ports={config.ports}", f"--temp={config.temp}", f"--gpus={config.gpus_per_node}"]
    out += [f"--worker-ports={config.worker_ports}"] * bool(config.worker_ports)
    out += [f"--interface={config.interface}"] * bool(config.interface)
    return out + ["--dashboard"] * config.dashboard


def _setup(config: Config) -> list[str]:
    variables = [f"export {name}={shlex.quote(value)}" for name, value in config.env_vars.items()]
    return [*("  " + line for line in variables), *config.setup.splitlines()]


def _token(config: Config) -> str:
    if not config.token:
        return "export RAY_AUTH_MODE=disabled"
    made = "RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')"
    return f"{made}\nexport RAY_AUTH_MODE=token RAY_AUTH_TOKEN"


def parses(path: Path) -> None:
    """`setup` is the site's own shell."""
    if bash := shutil.which("bash"):
        done = subprocess.run([bash, "-n", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            why = done.stderr.strip().splitlines()[0].removeprefix(f"{path}: ")
            raise ValueError(f"{path} is no shell script ({why}); mend setup, or the template")
