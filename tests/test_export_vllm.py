"""Exported models in plain vLLM: every mode's ids, bad values refused, hard budgets exact."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from samplers.render import ThinkingConfig
from tests.exported import EFFORTS, TEMPLATES, folder
from trainer.export.check import check
from trainer.export.folder import export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
THINK = ThinkingConfig()


def engine(out: Path) -> str:
    found = {finding.name: finding for finding in check(out)}
    assert [str(f) for f in found.values() if f.ok is False] == []
    assert found["vLLM"].ok is True
    return found["vLLM"].text


def test_modes(tmp_path: Path) -> None:
    out = export("base/modes", tmp_path / "out", thinking=THINK, efforts=EFFORTS)
    assert "hard budgets 0, 3, 8 hold (longest thought 8)" in engine(out)


def test_numbers_with_a_system_message_and_a_prefill(tmp_path: Path) -> None:
    """A template that does not open the thought, and a prefill that does."""
    model = folder(tmp_path / "model", TEMPLATES["indented"])
    ask = {"system": "Be \"brief\": {% x %} 'y'", "prefill": "<think>At most {budget}: "}
    out = export(str(model), tmp_path / "out", thinking=THINK, ask=ask)
    assert "hold" in engine(out)
