"""GRPO that waits while a file `hold` is in its folder; `held` says that it was come to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from trainer.algorithms import grpo


class Config(grpo.Config):
    folder: str


def sequences(groups: Any, config: Config) -> Any:
    import ray

    if not ray.is_initialized():  # it is only tried out
        return grpo.sequences(groups, config)
    Path(config.folder, "held").touch()
    while Path(config.folder, "hold").exists():
        time.sleep(0.05)
    return grpo.sequences(groups, config)
