"""Imports go down only, and what answers at once imports nothing heavy."""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BELOW = {
    "samplers": {"samplers"},
    "rewards": {"samplers", "rewards"},
    "trainer": {"samplers", "rewards", "trainer"},
    "launch": {"samplers", "rewards", "trainer", "launch"},
}
OF_SAMPLERS_FOR_REWARDS = (
    "samplers.types",
    "samplers.seam",
    "samplers.seeds",
    "samplers.facts",
    "samplers.render",
)
HEAVY = ("ray", "vllm", "deepspeed", "torch", "transformers")
TORCH_FILES = ("samplers.engines._torch", "samplers.engines._vllm")


def modules(package: str) -> Iterator[str]:
    """Names of all modules below `package`, without importing them."""
    yield package
    for info in pkgutil.iter_modules([str(ROOT / Path(*package.split(".")))]):
        name = f"{package}.{info.name}"
        yield from modules(name) if info.ispkg else [name]


def imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.lineno, node.module or ""


def offences(package: str, source: str) -> list[str]:
    """Imports of `source`, a file of `package`, that do not go down."""
    found = []
    for line, module in imports(source):
        top = module.split(".")[0]
        up = top in BELOW and top not in BELOW[package]
        if up or top in ("tests", "recipes"):
            found.append(f"{line}: {module}")
        if package == "rewards" and top == "samplers":
            names = {module, *_names(source, module)}
            if not any(n.startswith(OF_SAMPLERS_FOR_REWARDS) for n in names):
                found.append(f"{line}: {module}")
    return found


def _names(source: str, module: str) -> set[str]:
    return {
        f"{module}.{alias.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module == module
        for alias in node.names
    }


@pytest.mark.parametrize("package", BELOW)
def test_imports_go_down_only(package: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{offence}"
        for file in sorted((ROOT / package).rglob("*.py"))
        for offence in offences(package, file.read_text())
    ]
    assert wrong == []


def test_the_check_sees_an_import_that_goes_up() -> None:
    hidden = "def f():\n    from trainer.config import Recipe\n"
    assert offences("samplers", hidden) == ["2: trainer.config"]
    assert offences("trainer", "import launch.cli") == ["1: launch.cli"]
    assert offences("rewards", "from samplers import rollout") == ["1: samplers"]
    assert offences("rewards", "from samplers import seam") == []


def loaded_by(code: str) -> set[str]:
    """Heavy modules that a fresh interpreter holds after `code`."""
    report = f"\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code + report],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "from launch.cli import main; main(['--help'])",
        "from launch.cli import main; main(['train', '--help'])",
        "from launch.cli import main; assert main(['recipes']) == 0",
        "from launch.cli import main; assert main(['plan', 'grpo/find']) == 0",
        "from launch.cli import main; assert main(['plan', 'no/such']) == 2",
        "from launch.cli import main; assert main(['doctor']) in (0, 1)",
    ],
)
def test_commands_that_answer_at_once_import_nothing_heavy(code: str) -> None:
    assert loaded_by(code) == set()


def test_every_file_that_holds_a_config_is_light() -> None:
    """Files of the four storeys that define a Component import no torch at their top."""
    holders = [
        name
        for package in BELOW
        for name in modules(package)
        if name not in TORCH_FILES and "(Component)" in _source(name)
    ]
    assert len(holders) > 10
    assert loaded_by("\n".join(f"import {name}" for name in holders)) == set()


def test_every_file_is_importable_without_ray_and_vllm() -> None:
    block = "import sys\nfor name in ('ray', 'vllm'): sys.modules[name] = None\n"
    names = [name for package in BELOW for name in modules(package)]
    code = block + "\n".join(f"import {name}" for name in names)
    assert loaded_by(code + "\nfor name in ('ray', 'vllm'): del sys.modules[name]") <= {
        "torch",
        "transformers",
    }


def _source(name: str) -> str:
    path = ROOT / Path(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.read_text()
