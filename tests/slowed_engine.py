"""The torch engine, slow while a file `slow` is in its folder; `generating` says it is at it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from samplers.engines import base


class Config(base.Config):
    folder: str


def start(model: Any, config: Config, trust_remote_code: bool = False) -> Any:
    from samplers.engines._torch import TorchEngine

    class Slowed(TorchEngine):
        def step(self) -> Any:
            if Path(config.folder, "slow").exists():
                Path(config.folder, "generating").touch()
                time.sleep(0.03)
            return super().step()

    return Slowed(model, config, trust_remote_code)
