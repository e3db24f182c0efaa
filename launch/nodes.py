"""What every node of a cluster has, against what a run needs of it: a pure function.

Facts are gathered by launch/probe.py. A node that lacks something is a line of its own, with what
was found, what is needed and the fix; what all nodes have is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from launch.doctor import Check, Status, level, package
from launch.fits import human
from trainer.faults import Role

GIB, MIB = 2**30, 2**20
SOURCE, VLLM = "code", "vllm"
"""A hash of our own source files, which a version alone does not tell apart; the engine."""
MATCH = ("python", "laconic", SOURCE, "ray", "torch", "transformers", "deepspeed", "peft", VLLM)
"""What processes that talk to each other must have the same version of."""
TEMPORARY = (GIB, 256 * MIB)
"""Bytes of a node's disk for temporary files: good, and the least. Ray's logs lie there, and what
its store has no room for."""
SHARED = GIB
"""Of /dev/shm: NCCL lets the GPUs of a node meet there, and Docker gives it 64 MiB. Weights that
travel through shared memory do not lie there: theirs has no name (samplers/ring.py)."""
FILES = (4096, 512)
CLOCK_S = (1.0, 60.0)
"""Seconds that clocks may be apart: figures of several nodes are laid side by side by time; far
more, and certificates are refused."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a Ray cluster."""

    id: str
    name: str
    """As people know it."""
    gpus: int = 0
    """That Ray counts there."""
    store: int = 0
    """Bytes of Ray's object store."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What one node was found to have. None: nobody looked."""

    node: str
    """As people know it."""
    failed: str = ""
    """Why nothing else is known of it."""
    roles: frozenset[Role] = frozenset()
    """Of the processes that are placed there."""
    versions: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[str, ...] | None = None
    """'name, memory' of each that the machine has."""
    claimed: int = 0
    """GPUs that Ray counts there."""
    cuda: bool = True
    """Whether torch was built for GPUs."""
    ahead: tuple[float, float] | None = None
    """Seconds that its clock is ahead of the driver's: at least, at most."""
    room: int | None = None
    """Bytes free where the run folder is, as this node sees it."""
    temporary: int | None = None
    """Bytes free for temporary files."""
    shared: int | None = None
    """Bytes of /dev/shm."""
    store: int = 0
    """Bytes of Ray's object store."""
    files: int | None = None
    """Files that a process may have open."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """A fingerprint by path; '': it cannot be read."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Why a module cannot be imported; '': it can."""
    folder: str | None = None
    """Why the run folder cannot be used; '': it can."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a run needs, most of it as the driver has it. Empty: nothing of the kind."""

    versions: Mapping[str, str] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)
    """What the package needs of those that may differ."""
    vllm: bool = False
    ranks: int = 1
    """Learner ranks."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of model folders by path."""
    fetched: Mapping[str, str] = field(default_factory=dict)
    """Hub names by path, of those that came from there."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of data files: only the driver reads them, wherever it is started next."""
    modules: tuple[str, ...] = ()
    """The user's own that a stage cannot be read without: engines."""
    verifiers: tuple[str, ...] = ()
    """The user's own that reward workers import."""
    path: tuple[str, ...] = ()
    """Where those look for them too: the driver's sys.path."""
    folder: str = ""
    """The run's, or what there is of its path."""
    begins: bool = False
    """A stage's model is made in the run folder: engines read it there, too."""
    kept: float = 0.0
    """Bytes that checkpoints still need."""
    checkpoints: str = "the checkpoints"
    """They, in words."""


def judge(nodes: Sequence[Facts], needs: Needs) -> list[Check]:
    """Every check: what is wrong with a node by its name, what is well in one line for all.

    The order of the nodes does not matter.
    """
    ordered = sorted(nodes, key=lambda one: one.node)
    found = [check for one in ordered for check in _of_node(one, needs)]
    return _merged([*found, *_kinds(ordered, needs.ranks)])


def failures(checks: Iterable[Check]) -> list[str]:
    """The lines that a run is refused with."""
    return [check.line for check in checks if check.status == "FAIL"]


def _of_node(one: Facts, needs: Needs) -> Iterator[Check]:
    if one.failed:
        fix = "look at that node with `ray status` and `ray list nodes`, or take it out"
        if "No module named" in one.failed:
            fix = "install the same Laconic there as here"
        yield Check("FAIL", "node", one.failed, "an answer", fix, one.node)
        return
    looks: tuple[Callable[[Facts, Needs], Iterator[Check]], ...] = (
        *(_versions, _gpus, _clock, _disks, _shared, _files),
        *(_folder, _models, _data, _modules),
    )
    for look in looks:
        yield from look(one, needs)


def _versions(one: Facts, needs: Needs) -> Iterator[Check]:
    """Those that must match, as the driver has them; the others by their pins."""
    engines = needs.vllm and "rollout" in one.roles
    for name in MATCH:
        want, found = needs.versions.get(name), one.versions.get(name)
        if engines if name == VLLM else want:
            yield _version(name, found, want, one.node)
    for name, pin in needs.pins.items():
        if name not in MATCH:
            yield package(name, pin, one.versions.get(name), one.node)


def _version(name: str, found: str | None, want: str | None, node: str) -> Check:
    """`want` is the driver's; it can do without vLLM, which is then to be there all the same."""
    good = found is not None and (want is None or _alike(name, found) == _alike(name, want))
    need = f"{want}, as the driver has" if want else "the recipe's engine"
    fix = f"pip install {name}=={_alike(name, want)} there" if want else f"install {name} there"
    if name in ("python", "laconic", SOURCE):
        fix = "install the same on all nodes, the driver's included"
    return Check("ok" if good else "FAIL", name, found or "not installed", need, fix, node)


def _alike(name: str, version: str | None) -> str | None:
    """What of a version counts: a patch of Python, or whether torch was built for CPU or GPU, does
    not hinder processes to talk."""
    if version is None:
        return None
    return version.rpartition(".")[0] if name == "python" else version.partition("+")[0]


def _gpus(one: Facts, _: Needs) -> Iterator[Check]:
    if one.gpus is None or not one.claimed:
        return
    there = len(one.gpus)
    if one.claimed > there:
        fix = f"see whether the driver lost some, or start Ray there with --num-gpus={there}"
        found = f"Ray counts {one.claimed}, nvidia-smi shows {there}"
        yield Check("FAIL", "gpu", found, "all that Ray counts", fix, one.node)
        return
    kinds = ", ".join(sorted(set(one.gpus)))
    yield Check("ok", "gpu", f"{one.claimed} x ({kinds})", "all that Ray counts", "", one.node)
    if not one.cuda:
        fix = "install the build of torch for its GPUs there"
        yield Check("FAIL", "torch", "built without CUDA", "CUDA", fix, one.node)


def _clock(one: Facts, _: Needs) -> Iterator[Check]:
    if one.ahead is None:
        return
    least, most = one.ahead
    apart = max(least, -most, 0.0)  # what the round trip leaves open is no offence
    direction = "ahead of" if least > 0 else "behind"
    found = f"{apart:.3g} s {direction} the driver's" if apart else "the driver's"
    status, need = level(-apart, -CLOCK_S[0], -CLOCK_S[1]), f"at most {CLOCK_S[0]:g} s apart"
    yield Check(status, "clock", found, need, "start chrony or ntpd there", one.node)


def _disks(one: Facts, needs: Needs) -> Iterator[Check]:
    if one.room is not None and needs.kept and "learner" in one.roles:
        found = f"{human(one.room)} free at {needs.folder}"
        fix = "free space, choose another output=..., or lower checkpoint.keep"
        need, good = f"{human(needs.kept)} for {needs.checkpoints}", one.room >= needs.kept
        yield Check("ok" if good else "FAIL", "disk", found, need, fix, one.node)
    if one.temporary is not None:
        status, need = level(one.temporary, *TEMPORARY), f">= {human(TEMPORARY[0])}"
        found, fix = f"{human(one.temporary)} free", "free space, or set TMPDIR before Ray starts"
        yield Check(status, "temporary", found, need, fix, one.node)


def _shared(one: Facts, _: Needs) -> Iterator[Check]:
    if one.shared is None:
        return
    least = SHARED if one.claimed > 1 else 0
    need = max(SHARED, one.store)
    status = level(one.shared, need, least)
    fix = f"Ray falls back to a slower folder; in Docker use --shm-size={-(-need // GIB)}g"
    if status == "FAIL":
        fix = f"NCCL cannot work with less; in Docker use --shm-size={-(-need // GIB)}g"
    yield Check(status, "/dev/shm", human(one.shared), f">= {human(need)}", fix, one.node)


def _files(one: Facts, _: Needs) -> Iterator[Check]:
    if one.files is not None:
        status, fix = level(one.files, *FILES), "ulimit -n 65536 before Ray starts"
        yield Check(status, "open files", str(one.files), f">= {FILES[0]}", fix, one.node)


def _folder(one: Facts, needs: Needs) -> Iterator[Check]:
    """Every rank writes its part of a checkpoint there, and reads it again."""
    wanted = one.roles & ({"learner", "rollout"} if needs.begins else {"learner"})
    if one.folder is None or not wanted:
        return
    found = f"{needs.folder} {one.folder or 'is there'}"
    fix = "choose an output=... that all nodes share (NFS, Lustre, a volume)"
    yield Check("FAIL" if one.folder else "ok", "run folder", found, "it there", fix, one.node)


def _models(one: Facts, needs: Needs) -> Iterator[Check]:
    for path, want in needs.models.items():
        if not one.roles & {"learner", "rollout"}:
            continue
        fix = "copy it there, or put it where all nodes see it"
        if name := needs.fetched.get(path):
            fix = f"set HF_HOME to a folder that all nodes share, or there: hf download {name}"
        yield _same("FAIL", "model", path, want, one, fix)


def _data(one: Facts, needs: Needs) -> Iterator[Check]:
    for path, want in needs.data.items():
        fix = "a run that is resumed on that node needs it there"
        yield _same("warn", "data", path, want, one, fix)


def _same(otherwise: Status, name: str, path: str, want: str, one: Facts, fix: str) -> Check:
    found = one.paths.get(path, "")
    words = "cannot be read" if not found else "is there" if found == want else "is another copy"
    status = "ok" if found == want else otherwise
    return Check(status, name, f"{path} {words}", "the driver's", fix, one.node)


def _modules(one: Facts, needs: Needs) -> Iterator[Check]:
    wanted = needs.modules if one.roles else ()
    wanted += needs.verifiers if "grader" in one.roles else ()
    for name in wanted:
        why = one.modules.get(name, "nobody tried")
        fix = "put its folder on PYTHONPATH before Ray starts there, or where all nodes see it"
        found = f"cannot be imported: {why}" if why else "can be imported"
        yield Check("FAIL" if why else "ok", name, found, "your own module", fix, one.node)


def _kinds(nodes: Sequence[Facts], ranks: int) -> Iterator[Check]:
    """Learner ranks compute in step, on GPUs that are alike: Ray's names for them say no memory."""
    kinds: dict[str, list[str]] = {}
    for one in nodes:
        for kind in sorted(set(one.gpus or ())) if one.claimed and "learner" in one.roles else ():
            kinds.setdefault(kind, []).append(one.node)
    if len(kinds) > 1 and ranks > 1:
        found = "; ".join(f"{kind} on {', '.join(where)}" for kind, where in sorted(kinds.items()))
        fix = "start Ray on nodes of one kind, or lower learner.ranks until they fit on such nodes"
        yield Check("FAIL", "gpu kinds", found, f"one kind for learner.ranks={ranks}", fix)


def _merged(found: Sequence[Check]) -> list[Check]:
    """Equal ones as one of many nodes, in the order of their kinds; wells are counted."""
    order = list(dict.fromkeys(check.name for check in found))
    alike: dict[tuple[str, ...], list[Check]] = {}
    for check in found:
        alike.setdefault((check.name, check.status, check.found, check.need), []).append(check)
    out = []
    for same in sorted(alike.values(), key=lambda some: order.index(some[0].name)):
        one, nodes = same[0], [check.where for check in same if check.where]
        where = ", ".join(nodes)
        if one.status == "ok" and len(nodes) > 1:
            where = f"{len(nodes)} nodes"
        out.append(Check(one.status, one.name, one.found, one.need, one.fix, where))
    return out
