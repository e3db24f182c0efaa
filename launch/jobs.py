"""Ray's job API, with its failures told in one line.

Its client honours RAY_ADDRESS above the address that it is given, and waits for ever for a port
that swallows what it gets: both are seen to here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from launch.joining import TOKEN
from launch.places.base import Order

CONNECT_S = 5.0
LOST_S = 60.0
"""How long a head may be silent while its job is followed."""
POLL_S = 1.0
NO_COMMAND = 127
TERMINATED = 143


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
    with _unswayed():
        return JobSubmissionClient(address)


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

    with _unswayed():
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
    known = {job.submission_id: job.status for job in client.list_jobs()}
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
    try:
        client.submit_job(
            entrypoint=command,
            submission_id=order.name,
            runtime_env=dict(runtime),
            metadata={"run": str(order.resolved.folder)},
            entrypoint_num_cpus=cpus or None,
            entrypoint_num_gpus=gpus or None,
        )
    except RuntimeError as error:
        last = str(error).strip().rstrip(".").splitlines()[-1]
        raise ValueError(f"{address}: Ray did not take the job: {last}") from None


def info(client: Any, address: str, job: str) -> Any:
    """What is known of a job.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" not in str(error):
            raise
    names = [one.submission_id for one in client.list_jobs() if one.submission_id]
    there = f"there: {', '.join(sorted(names))}" if names else "there is none at all"
    raise ValueError(f"{address} knows no job {job}; {there}")


def log(client: Any, job: str) -> str:
    """All that it has printed."""
    return str(client.get_job_logs(job))


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
    shown, told = 0, ""
    heard = time.monotonic()
    while time.monotonic() - heard < LOST_S:
        try:
            found = info(client, address, job)
            heard = time.monotonic()
            if found.status.value == "PENDING":
                if found.message and found.message != told:
                    told = found.message
                    print(f"laconic: {job} is PENDING: {_first(told)}", flush=True)
                time.sleep(POLL_S)
                continue
            shown = asyncio.run(_tail(client, job, shown))
            found = info(client, address, job)
            if found.status.is_terminal():
                return _ended(job, found)
        except (OSError, RuntimeError):  # requests' errors are OSErrors
            pass
        time.sleep(POLL_S)
    print(
        f"laconic: {address} has not answered for {LOST_S:.0f} s; {job} may go on", file=sys.stderr
    )
    return 1


async def _tail(client: Any, job: str, shown: int) -> int:
    """Print what comes after the first `shown` characters: every tail begins at the beginning."""
    seen = 0
    with contextlib.suppress(OSError, RuntimeError):  # asked for again from where it broke
        async for text in client.tail_job_logs(job):
            new = text[max(0, shown - seen) :]
            seen += len(text)
            if new:
                print(new, end="", flush=True)
    return max(shown, seen)


def _ended(job: str, found: Any) -> int:
    status = found.status.value
    if status == "SUCCEEDED":
        return 0
    why = failure(found)
    print(f"laconic: {job} has ended: {status}{f' ({why})' if why else ''}", file=sys.stderr)
    return TERMINATED if status == "STOPPED" else found.driver_exit_code or 1


def _first(text: str) -> str:
    return text.strip().splitlines()[0]
