"""The torch engine, whose process ends at once when it is asked a certain question."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from samplers.engines import base
from samplers.types import Request


class Config(base.Config):
    question: str
    """Part of the rendered prompt."""


def start(model: Any, config: Config, trust_remote_code: bool = False) -> Any:
    from transformers import AutoTokenizer

    from samplers.engines._torch import TorchEngine

    tokenizer = AutoTokenizer.from_pretrained(model)

    class Poisoned(TorchEngine):
        def add(self, requests: Sequence[Request]) -> None:
            if any(config.question in tokenizer.decode(request.ids) for request in requests):
                os._exit(1)
            super().add(requests)

    return Poisoned(model, config, trust_remote_code)
