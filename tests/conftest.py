"""Fixtures that several files use."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(params=["torch", "vllm"])
def start(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Starts an engine from a transformers module: each kind of `tests.engines.STARTS`."""
    from tests.engines import STARTS

    starter: Callable[..., Any] = STARTS[request.param]
    return starter


@pytest.fixture
def short() -> Iterator[Path]:
    """For temporary files of a run: a path that Ray's sockets fit into."""
    with tempfile.TemporaryDirectory(prefix="lac-", dir="/tmp") as folder:
        yield Path(folder)
