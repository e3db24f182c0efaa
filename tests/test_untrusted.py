"""Risk: a file that somebody else made runs code here, or somebody else reaches a port of ours."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pickle
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
CALLS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads",
    "dill.load", "dill.loads", "joblib.load", "shelve.open", "marshal.load", "marshal.loads",
    "torch.load", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load",
    "eval", "exec", "compile", "__import__", "importlib.import_module", "runpy.run_path",
    "runpy.run_module", "tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive",
    "os.system", "os.popen", "tempfile.mktemp", "pd.read_pickle", "pandas.read_pickle",
}  # fmt: skip
UNSAFE = {("allow_pickle", True), ("shell", True), ("trust_remote_code", True),
          ("weights_only", False), ("verify", False)}  # fmt: skip
ALLOWED = {
    ("rewards/service/worker.py", "pickle.loads"): "of its owner, which it was forked by",
    ("rewards/sandbox/child.py", "marshal.loads"): "of the host, inside the sandbox",
    ("rewards/sandbox/child.py", "__import__"): "inside the sandbox",
    ("rewards/sandbox/child.py", "exec"): "inside the sandbox, which is for that",
    ("rewards/sandbox/child.py", "compile"): "inside the sandbox",
    ("launch/serve.py", "0.0.0.0"): "read, to tell the address at which this machine reaches it",
    ("launch/serve.py", "::"): "likewise",
    ("samplers/seam.py", "importlib.import_module"): "components that a recipe names",
    ("launch/probe.py", "importlib.import_module"): "those of the recipe that is launched",
    ("launch/manifests.py", "0.0.0.0"): "of a pod's dashboard: a Service stands before it",
    ("launch/shipping.py", "zipfile.ZipFile"): "written, of the user's own folder",
}


def found(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Calls and constants that can let somebody in, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS:
                yield name, node.lineno
            for given in node.keywords:
                if (
                    isinstance(given.value, ast.Constant)
                    and (given.arg, given.value.value) in UNSAFE
                ):
                    yield f"{given.arg}={given.value.value}", node.lineno
        elif isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
            yield str(node.value), node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module in {c.split(".")[0] for c in CALLS}:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in CALLS:
                    yield f"{node.module}.{alias.name}", node.lineno


def test_the_scan_finds_what_it_looks_for() -> None:
    text = (
        "import pickle\nfrom pickle import loads\npickle.loads(b)\nrun(x, shell=True)\nh='0.0.0.0'"
    )
    assert [name for name, _ in found(ast.parse(text))] == [
        "pickle.loads", "pickle.loads", "shell=True", "0.0.0.0",
    ]  # fmt: skip


def test_no_call_that_runs_what_a_file_holds() -> None:
    here = {
        (str(path.relative_to(ROOT)), name): line
        for storey in ("samplers", "rewards", "trainer", "launch", "recipes")
        for path in sorted((ROOT / storey).rglob("*.py"))
        for name, line in found(ast.parse(path.read_text()))
    }
    strange = [f"{file}:{line}: {name}" for (file, name), line in here.items()
               if (file, name) not in ALLOWED]  # fmt: skip
    assert not strange, "say in ALLOWED why it is fine, or find another way"
    assert not set(ALLOWED) - set(here), "no longer there"


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, sign: Path) -> None:
        self.sign = str(sign)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.sign,)


@pytest.fixture
def sign(tmp_path: Path) -> Iterator[Path]:
    """What a payload makes. A test uses it up, to show that it would have been made."""
    path = tmp_path / "sign"
    yield path
    assert not path.exists(), "somebody else's code ran"


def fires(sign: Path, how: Callable[[], object]) -> None:
    """`how` runs the payload."""
    with contextlib.suppress(Exception):
        how()
    assert sign.is_dir()
    sign.rmdir()


def test_a_checkpoint(tmp_path: Path, sign: Path) -> None:
    from trainer import checkpoint

    folder = tmp_path / "step-000001"
    folder.mkdir()
    bad = np.array([Payload(sign)], dtype=object)
    np.savez(folder / "driver.npz", **{"state": bad})  # type: ignore[arg-type]
    (folder / "driver.json").write_text(json.dumps({"stage": {"__array__": "state"}, "x": "state"}))
    stored = folder / "driver.npz"
    fires(sign, lambda: np.load(stored, allow_pickle=True)["state"])
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.driver_state(folder)


def model(folder: Path) -> Path:
    """base/find; its files may be changed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(ROOT / "recipes" / "base" / "find", folder)
    config = AutoConfig.from_pretrained(folder)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_model_in_an_old_format(tmp_path: Path, sign: Path) -> None:
    """transformers reads pytorch_model.bin as weights only."""
    import torch

    from samplers.engines import torch as engine
    from trainer import policy

    folder = model(tmp_path / "model")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    torch.save({"model.embed_tokens.weight": Payload(sign)}, folder / "pytorch_model.bin")
    fires(sign, lambda: torch.load(folder / "pytorch_model.bin", weights_only=False))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        policy.load(str(folder), dtype="float32", attention="sdpa")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        engine.start(str(folder), engine.Config())


EVIL = """
import os; os.makedirs({sign!r}, exist_ok=True)
from transformers import PreTrainedTokenizerFast, PretrainedConfig
class Evil(PreTrainedTokenizerFast): pass
class EvilConfig(PretrainedConfig): model_type = "evil"
"""


def test_a_model_with_code_of_its_own(tmp_path: Path, sign: Path) -> None:
    from transformers import AutoTokenizer

    from samplers import render
    from samplers.engines import torch as engine
    from trainer import policy
    from trainer.config import load
    from trainer.fresh import start_model

    folder = model(tmp_path / "model")
    (folder / "evil.py").write_text(EVIL.format(sign=str(sign)))
    for name, change in (
        ("tokenizer_config.json", {"tokenizer_class": "Evil",
                                   "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}),
        ("config.json", {"model_type": "evil", "auto_map": {
            "AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}}),
    ):  # fmt: skip
        whole = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(whole | change))
    fires(sign, lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=True))
    stage = load("grpo/find").stages[0]
    for read in (
        lambda: render.load(str(folder), None),
        lambda: policy.load(str(folder), dtype="float32", attention="sdpa"),
        lambda: engine.start(str(folder), engine.Config()),
    ):
        with pytest.raises((ValueError, OSError)):
            read()
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises((ValueError, OSError)):
        start_model(folder, tmp_path / "made", stage, 0)


def test_recipes_and_configurations(tmp_path: Path, sign: Path) -> None:
    import yaml

    from trainer import config

    path = tmp_path / "bad.yaml"
    path.write_text(f"extends: grpo/find\nseed: !!python/object/apply:os.mkdir [{sign}]\n")
    fires(sign, lambda: yaml.unsafe_load(path.read_text()))
    with pytest.raises(ValueError, match="broken YAML"):
        config.load(path)
    with pytest.raises(ValueError):
        config.load("grpo/find", (f"seed=!!python/object/apply:os.mkdir [{sign}]",))


def test_a_dataset(tmp_path: Path, sign: Path) -> None:
    """Rows are data: JSON lines, Parquet, and a pickle under either name."""
    import pyarrow as pa
    from pyarrow import parquet

    from samplers import files

    rows = [{"prompt": "!!python/object/apply:os.mkdir [x]", "answer": "__import__('os')"}]
    good = tmp_path / "good.jsonl"
    good.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = pa.field("prompt", pa.binary(), metadata={
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Payload(sign)),
    })  # fmt: skip
    table = pa.table([pa.array([b"x"])], schema=pa.schema([named]))
    parquet.write_table(table, tmp_path / "extended.parquet")
    fires(sign, lambda: pickle.loads(pickle.dumps(Payload(sign))))
    for name in ("pickle.jsonl", "pickle.parquet"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(sign)))
        with pytest.raises(ValueError, match=name):
            list(files.read(tmp_path / name))
    with contextlib.suppress(ValueError):
        list(files.read(tmp_path / "extended.parquet"))
    assert len(list(files.read(good))) == 1


def test_a_run_folder_that_is_reported(
    tmp_path: Path, sign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration names code that lies beside it, its figures and texts hold scripts."""
    import yaml

    from launch.reward import verifier
    from trainer import report, runfolder
    from trainer.config import load
    from trainer.export import source

    script = "<script>alert(1)</script>"
    folder = tmp_path / "run"
    folder.mkdir()
    made = yaml.safe_load(runfolder.resolved(load("grpo/find")))
    made["stages"][0] |= {"algorithm": "evil", "verifier": "evil:grade"}
    made["name"] = script
    (folder / "config.yaml").write_text(yaml.safe_dump(made))
    (folder / "evil.py").write_text(EVIL.format(sign=str(sign)))
    monkeypatch.syspath_prepend(folder)
    lines = [{"step": i, "accuracy": 0.5, script: 1.0, "think_tokens/mean": 3.0} for i in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "environment.json").write_text(json.dumps({script: script}))
    page = report.write([folder], tmp_path / "report.html")
    assert script not in Path(page).read_text()
    (folder / "checkpoints" / "step-000002" / "model").mkdir(parents=True)
    for read in (
        lambda: source.stage_of(folder / "checkpoints" / "step-000002" / "model"),
        lambda: verifier(Namespace(file=folder, verifier=None)),
    ):
        with pytest.raises(ValueError, match=r"names evil\S*, which lies in the run's own folder"):
            read()
