"""Ray's job API, with its failures told in one line.

Its client honours RAY_ADDRESS above the address that it is given, and waits for ever for a port
that swallows what it gets, and for a head that has vanished: these are seen to here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from launch.joining import TOKEN
from launch.places.base import Order

CONNECT_S = 5.0
ANSWER_S = 10.0
"""For an answer to a question."""
TAKEN_S = 600.0
"""For all that is shipped to arrive, and what is asked for to be done."""
QUIET_S = 10.0
"""After so long without a word of a job that is followed its head is asked how it is."""
LOST_S = 60.0
"""How long a head may be silent while its job is followed."""
POLL_S = 1.0
NO_COMMAND = 127
TERMINATED = 143


class Unanswered(ValueError):  # noqa: N818 - it names what happened
    """The head did not answer, or with an error."""


@contextlib.contextmanager
def _asking(address: str, what: str) -> Iterator[None]:
    """Around what asks the head.

    Raises:
        Unanswered: in one line; `what` says what failed.
    """
    try:
        yield
    except _failures() as error:
        raise Unanswered(f"{address}: {what}: {_last(error)}") from None


def _failures() -> tuple[type[Exception], ...]:
    """What the client raises; requests' errors are OSErrors."""
    from aiohttp import ClientError
    from ray.exceptions import RayError
    from ray.util.state.exception import RayStateApiException

    return OSError, RuntimeError, ClientError, RayError, RayStateApiException


def _last(error: Exception) -> str:
    """A head tells the whole traceback."""
    lines = str(error).strip().rstrip(".").splitlines()
    return lines[-1].strip()[:300] if lines else type(error).__name__


def connect(address: str) -> Any:
    """A client of the cluster whose dashboard is at `address`.

    Raises:
        ValueError: nothing there, no Ray, another version of it, or it wants a token.
    """
    try:
        answer = httpx.get(f"{address}/api/version", timeout=CONNECT_S, headers=_token())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(
            f"{address}: no Ray dashboard answers there ({' '.join(str(error).split())}); is it up "
            "(`ray start --head` with ray[default] installed), and this its address?"
        ) from None
    if answer.status_code in (401, 403):
        raise ValueError(f"{address}: Ray lets nobody in without its token; {TOKEN}")
    try:
        there = str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{address}: what answers there is no Ray dashboard; give the head's, usually port 8265"
        ) from None
    return _client(address, there)


def _client(address: str, there: str) -> Any:
    import ray

    if there != ray.__version__:
        raise ValueError(
            f"{address}: the cluster has Ray {there} and this version of laconic needs "
            f"{ray.__version__}; start the cluster with that one"
        )
    try:
        import aiohttp  # noqa: F401 - the client's, and it does not say what is missing
    except ImportError:
        raise ValueError("--on ray: pip install 'laconic[cluster]' for Ray's job client") from None
    from ray.dashboard.modules import dashboard_sdk
    from ray.dashboard.modules.job import sdk
    from ray.job_submission import JobSubmissionClient

    for module in (dashboard_sdk, sdk):
        module.logger.setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        """Which does not wait for ever."""

        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
            limit = ANSWER_S if method == "GET" else TAKEN_S
            return super()._do_request(method, endpoint, timeout=(CONNECT_S, limit), **more)

    with _unswayed(), _asking(address, "no job client"):
        return Client(address)


def _token() -> Mapping[str, str]:
    from ray._private.authentication.http_token_authentication import (
        get_auth_headers_if_auth_enabled,
    )

    headers: Mapping[str, str] = get_auth_headers_if_auth_enabled({})
    return headers


@contextlib.contextmanager
def _unswayed() -> Iterator[None]:
    """The address that is given counts, whatever the environment says."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ |= before


def nodes(address: str, client: Any) -> list[dict[str, Any]]:
    """As `ray.nodes()` has them."""
    from ray.util.state import list_nodes

    with _unswayed(), _asking(address, "its nodes cannot be listed"):
        found = list_nodes(address, limit=10_000, raise_on_missing_output=False)
    return [
        {
            "Alive": node.state == "ALIVE",
            "Resources": node.resources_total or {},
            "NodeManagerHostname": node.node_name,
            "NodeID": node.node_id,
        }
        for node in found
    ]


def unused(client: Any, address: str, order: Order) -> None:
    """Refuse a name that the cluster knows: it keeps those of jobs that have ended, too.

    Raises:
        ValueError: with how to see or stop the other, or a name that is free.
    """
    known = {job.submission_id: job.status for job in _jobs(client, address)}
    if order.name not in known:
        return
    status = known[order.name]
    numbers = (f"{order.name[:49]}-{n}" for n in range(2, len(known) + 3))
    free = next(name for name in numbers if name not in known)
    if status.is_terminal():
        why = f"a job of that name has ended ({status.value}), and Ray keeps names; choose"
    else:
        care = f"{order.command('logs', '--follow')}; {order.command('stop')}"
        why = f"it is {status.value} ({care}); choose"
    raise ValueError(f"--name {order.name} is in use: {why} another, as --name {free}")


def submit(
    client: Any,
    address: str,
    order: Order,
    command: str,
    runtime: Mapping[str, Any],
    cpus: float,
    gpus: float,
) -> None:
    """Submit the job.

    Raises:
        ValueError: Ray refuses it.
    """
    with _asking(address, "Ray did not take the job"):
        client.submit_job(
            entrypoint=command,
            submission_id=order.name,
            runtime_env=dict(runtime),
            metadata={"run": str(order.resolved.folder)},
            entrypoint_num_cpus=cpus or None,
            entrypoint_num_gpus=gpus or None,
        )


def info(client: Any, address: str, job: str) -> Any:
    """What is known of a job.

    Raises:
        ValueError: there is none of that name.
    """
    with _asking(address, f"{job} cannot be looked at"):
        try:
            return client.get_job_info(job)
        except RuntimeError as error:
            if "404" not in str(error):
                raise
    names = [one.submission_id for one in _jobs(client, address) if one.submission_id]
    there = f"there: {', '.join(sorted(names))}" if names else "there is none at all"
    raise ValueError(f"{address} knows no job {job}; {there}")


def _jobs(client: Any, address: str) -> list[Any]:
    with _asking(address, "its jobs cannot be listed"):
        return list(client.list_jobs())


def log(client: Any, address: str, job: str) -> str:
    """All that it has printed."""
    with _asking(address, f"the log of {job} cannot be read"):
        return str(client.get_job_logs(job))


def stop(client: Any, address: str, job: str) -> None:
    """Ask it to end."""
    with _asking(address, f"{job} cannot be stopped"):
        client.stop_job(job)


def failure(found: Any) -> str:
    """Why a job failed, in one line; '' where it did not."""
    if found.status.value != "FAILED":
        return ""
    code = found.driver_exit_code
    if code == NO_COMMAND:
        return "laconic is not installed there: put it into the nodes' image, or under pip:"
    if code is not None:
        return f"exit code {code}"
    lines = [line for line in (found.message or "").splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else "for no reason that Ray knows"


def follow(client: Any, address: str, job: str) -> int:
    """Print what a job prints until it ends; its exit code."""
    return _Followed(client, address, job).to_its_end()


@dataclass
class _Followed:
    client: Any
    address: str
    job: str
    shown: int = 0
    """Characters that are printed."""
    seen: int = 0
    """Characters that came with this tail: every one begins at the beginning."""
    heard: float = field(default_factory=time.monotonic)
    """When the head said anything."""
    told: str = ""

    def to_its_end(self) -> int:
        while time.monotonic() - self.heard < LOST_S:
            found = self._info()
            if found is not None and found.status.value == "PENDING":
                if found.message:
                    self._tell(f"{self.job} is PENDING: {_first(found.message)}", sys.stdout)
            elif found is not None:
                asyncio.run(self._tail())
                found = self._info()
                if found is not None and found.status.is_terminal():
                    return _ended(self.job, found)
            time.sleep(POLL_S)
        lost = f"{self.address} has not answered for {LOST_S:.0f} s; {self.job} may go on"
        print(f"laconic: {lost}", file=sys.stderr)
        return 1

    def _info(self) -> Any:
        """None: no answer."""
        try:
            found = info(self.client, self.address, self.job)
        except Unanswered:
            return None
        self.heard = time.monotonic()
        return found

    async def _tail(self) -> None:
        """Print on until the log ends; or nothing comes, and the head or the job is gone."""
        reading = asyncio.ensure_future(self._print())
        before = -1
        while not (await asyncio.wait({reading}, timeout=QUIET_S))[0]:
            if self.seen == before:
                found = self._info()
                if found is None or found.status.is_terminal():
                    reading.cancel()
                    return
            before = self.seen
        await reading  # raises what is no failure of the head's

    async def _print(self) -> None:
        self.seen = 0
        try:
            async for text in self.client.tail_job_logs(self.job):
                self.heard = time.monotonic()
                new = text[max(0, self.shown - self.seen) :]
                self.seen += len(text)
                self.shown = max(self.shown, self.seen)
                if new:
                    print(new, end="", flush=True)
        except BrokenPipeError:  # `laconic logs JOB --follow | head`
            raise
        except _failures() as error:
            self._tell(f"{self.address}: the log broke off: {_last(error)}; asked again")

    def _tell(self, text: str, file: Any = None) -> None:
        """Once."""
        if text != self.told:
            self.told = text
            print(f"laconic: {text}", file=file or sys.stderr, flush=True)


def _ended(job: str, found: Any) -> int:
    status = found.status.value
    if status == "SUCCEEDED":
        return 0
    why = failure(found)
    print(f"laconic: {job} has ended: {status}{f' ({why})' if why else ''}", file=sys.stderr)
    return TERMINATED if status == "STOPPED" else found.driver_exit_code or 1


def _first(text: str) -> str:
    return text.strip().splitlines()[0]
