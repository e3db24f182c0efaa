"""Fixtures that several files use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(params=["torch", "vllm"])
def start(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Starts an engine from a transformers module: each kind of `tests.engines.STARTS`."""
    from tests.engines import STARTS

    starter: Callable[..., Any] = STARTS[request.param]
    return starter
