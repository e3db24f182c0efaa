"""The torch engine, which writes down when weights come, and takes its time over them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from samplers.engines import base


class Config(base.Config):
    file: str
    """Lines 'loading V' and 'loaded V' are appended to it, V the version of the weights."""
    seconds: float = 0.1
    """Rest in the middle of every load."""


def start(model: Any, config: Config, trust_remote_code: bool = False) -> Any:
    from samplers.engines._torch import TorchEngine

    def note(text: str) -> None:
        with Path(config.file).open("a") as file:
            file.write(text + "\n")

    def slowly(weights: Iterable[tuple[str, Any]], version: int | None) -> Iterable[Any]:
        for i, weight in enumerate(weights):
            if i == 1:
                note(f"loading {version}")
                time.sleep(config.seconds)
            yield weight

    class Marking(TorchEngine):
        def load_weights(self, weights: Any, version: int | None = None) -> None:
            super().load_weights(slowly(weights, version), version)
            note(f"loaded {version}")

    return Marking(model, config, trust_remote_code)
