"""The torch engine, of which the first that starts, or each, takes long over every step."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from samplers.engines import base


class Config(base.Config):
    folder: str = ""
    """The one that is first to write its process id here is slow; empty: all are."""
    seconds: float = 0.1
    """Rest after each of its steps."""


def start(model: Any, config: Config, trust_remote_code: bool = False) -> Any:
    from samplers.engines._torch import TorchEngine

    class Slow(TorchEngine):
        def step(self) -> Any:
            time.sleep(config.seconds)
            return super().step()

    if not config.folder:
        return Slow(model, config, trust_remote_code)
    try:
        with (Path(config.folder) / "slow").open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return TorchEngine(model, config, trust_remote_code)
    return Slow(model, config, trust_remote_code)
