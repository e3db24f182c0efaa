"""The embedded engine: any causal LM with a dynamic KV cache, driven through a slot cache.

Settings only, so that a recipe is read without torch; the machinery is in `_torch.py`.
"""

from __future__ import annotations

from typing import Any

from samplers.engines import base


class Config(base.Config):
    """What every engine has (`samplers/engines/base.py`), and nothing else."""


def start(model: Any, config: base.Config, trust_remote_code: bool = False) -> base.Engine:
    """What `samplers.engines.base.start` calls."""
    from samplers.engines._torch import TorchEngine

    return TorchEngine(model, config, trust_remote_code)
