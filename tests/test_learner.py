"""The learner beyond its gradient: skipped steps, resuming, clipping, references, memory, dtypes.

All engines of one number of ranks live one after another in the same processes (`_measure`);
the tests read what was measured there.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ranks import on_ranks
from tests.test_learner_accumulation import DESCENT, SCALE, sequences
from tests.tiny import tiny_model, tiny_tokenizer
from trainer.batching import pack
from trainer.learner import Learner, LearnerConfig
from trainer.losses import LossConfig
from trainer.optim import OptimConfig
from trainer.types import MicroBatch

CE = LossConfig(name="ce")
with warnings.catch_warnings():  # k1 as a loss is pointless, and warned of; here it is infinite
    warnings.simplefilter("ignore")
    K1 = LossConfig(name="ce", kl="k1", kl_coef=0.1)
ADAMW = OptimConfig(lr=1e-3, weight_decay=0.1, schedule="cosine", warmup_steps=1)
MUON = OptimConfig(name="muon", lr=1e-3, muon_lr=0.02)
STAGES = (0, 1, 2, 3)
Weights = dict[str, np.ndarray]


class Bench:
    """One rank of the processes that a test's engines live in."""

    def __init__(self, rank: int, folder: str, ranks: int) -> None:
        self.rank, self.folder, self.ranks = rank, folder, ranks
        self.stages = STAGES if ranks > 1 else (0, 3)

    def learner(
        self, zero: int = 0, optim: OptimConfig = ADAMW, loss: LossConfig = CE, **settings: Any
    ) -> Learner:
        names = LearnerConfig.model_fields.keys() & settings.keys()
        config = {"clip_grad": 0.0} | {name: settings.pop(name) for name in names}
        config = LearnerConfig(zero=zero, ranks=self.ranks, **config)
        settings = {"rank": self.rank, "port": 0, "total_steps": 9} | settings
        return Learner(settings.pop("path", self.folder), config, optim, loss, **settings)

    def updates(self, loss: LossConfig = CE, seed: int = 0, **settings: Any) -> list:
        """A batch's micro-batches of this rank, per optimiser step."""
        settings = {"tokens_per_micro_batch": 40, "ranks": self.ranks} | settings
        rows = sequences(seed)[: settings.pop("rows", 7)]
        return [list(step[self.rank]) for step in pack(rows, loss, **settings).updates]


def weights(learner: Learner) -> Weights:
    return {n: t.float().numpy() for bucket in learner.buckets() for n, t in bucket}


def skipping(bench: Bench) -> Iterator[Any]:
    """A bad step on the last rank alone, between two good ones; then too many of them.

    In float32 the loss is infinite while its gradient is finite; in bfloat16 both are NaN.
    """
    cases = [
        *itertools.product(bench.stages, ["float32"]),
        *itertools.product(bench.stages, ["bfloat16"]),
    ]
    for zero, dtype in cases:
        after = []
        for spoil in (True, False):
            learner = bench.learner(zero, loss=K1, max_bad_steps=2, dtype=dtype)
            learner.step(_against(bench.updates(K1, seed=1)))
            before = weights(learner)
            bad = _against(bench.updates(K1))
            if bench.rank == bench.ranks - 1:
                worst = bad[0][0]
                if dtype == "float32":
                    worst = dataclasses.replace(worst, ref_N=worst.ref_N - np.inf)
                else:
                    worst = dataclasses.replace(worst, advantages_N=worst.advantages_N * np.nan)
                bad[0][0] = worst
            metrics = learner.step(bad) if spoil else {}
            unchanged = all((before[n] == w).all() for n, w in weights(learner).items())
            learner.step(_against(bench.updates(K1, seed=2)))
            after.append(weights(learner))
            if spoil:
                learner.step(bad)
                with pytest.raises(FloatingPointError, match=r"2 optimiser steps in a row.*\d"):
                    learner.step(bad)
                kept = (zero, dtype, metrics, unchanged, set(bad[0][0].prompts_B.tolist()))
            learner.close()
        yield *kept, all((after[0][n] == after[1][n]).all() for n in after[0])


def _against(updates: list) -> list:
    """With reference logprobs of 0, so that nothing has to be scored."""
    return [
        [dataclasses.replace(m, ref_N=np.zeros_like(m.weights_N)) for m in update]
        for update in updates
    ]


def resuming(bench: Bench) -> Iterator[Any]:
    """Three steps against one, a save, a load into a fresh learner and two more."""
    ema = LossConfig(name="ce", kl="k2", kl_coef=0.1, reference="ema", reference_decay=0.5)
    cases: list[tuple] = [(zero, "float32", ADAMW, ema) for zero in bench.stages]
    cases += [(zero, "bfloat16", ADAMW, CE) for zero in (0, 1)]
    cases += [(zero, "bfloat16", ADAMW, ema) for zero in (2, 3)]
    cases += [(0, "float32", MUON, CE), (1, "float32", MUON, CE), (1, "bfloat16", MUON, CE)]
    for zero, dtype, optim, loss in cases:
        target = Path(bench.folder) / f"saved-{bench.ranks}-{zero}-{dtype}-{optim.name}"
        batches = [bench.updates(loss, seed) for seed in (1, 2, 3)]
        straight = bench.learner(zero, optim, loss, dtype=dtype)
        straight.step(batches[0])
        straight.save(target / "state")
        for batch in batches[1:]:
            last = straight.step(batch)
        end, reference = weights(straight), straight.score(batches[0][0], "reference")
        straight.export(target / "model")
        straight.close()
        resumed = bench.learner(zero, optim, loss, dtype=dtype)
        resumed.load(target / "state")
        for batch in batches[1:]:
            again = resumed.step(batch)
        same = all((end[n] == w).all() for n, w in weights(resumed).items())
        same &= all(
            (a == b).all()
            for one, two in zip(reference, resumed.score(batches[0][0], "reference"), strict=True)
            for a, b in zip(one, two, strict=True)
        )
        resumed.close()
        same &= all(last[k] == again[k] for k in last if k not in ("seconds", "peak_memory_mb"))
        yield zero, dtype, optim.name, same, end, target / "model"


def moving(bench: Bench) -> Iterator[Any]:
    """A bfloat16 policy that stays a small way off: where its average is after 100 steps."""
    import torch

    ema = LossConfig(name="ce", kl="k2", kl_coef=0.1, reference="ema")
    for zero in (0, 3):
        learner = bench.learner(zero, loss=ema, dtype="bfloat16")
        start = {n: w.clone() for n, w in learner.reference.average.items()}
        other = tiny_model(tied=True).to(torch.bfloat16)
        other.load_state_dict(learner.reference.model.state_dict())
        with torch.no_grad():
            for weight in other.parameters():
                weight.mul_(1 + 2**-6)  # two bfloat16 steps
        for _ in range(100):
            learner.reference.follow(other, 0.99)
        average = learner.reference.average
        goal = dict(other.named_parameters())
        way = [((average[n] - start[n]).sum() / (goal[n].float() - start[n]).sum()) for n in start]
        scored = learner.reference.model.named_parameters()
        same = all(torch.equal(p, average[n].to(torch.bfloat16)) for n, p in scored)
        yield [float(share) for share in way], same
        learner.close()


def clipping(bench: Bench) -> Iterator[Any]:
    for zero in bench.stages:
        learner = bench.learner(zero, DESCENT, clip_grad=0.01)
        before = weights(learner)
        metrics = learner.step(bench.updates())
        moved = [(before[n] - w) / SCALE for n, w in weights(learner).items()]
        learner.close()
        yield zero, metrics, float(np.sqrt(sum((m.astype(np.float64) ** 2).sum() for m in moved)))


def muon(bench: Bench) -> Iterator[Any]:
    for zero in (0, 1, 2):
        learner = bench.learner(zero, MUON)
        for seed in (1, 2):
            learner.step(bench.updates(seed=seed))
        yield weights(learner)
        learner.close()


def several_updates(bench: Bench) -> dict[str, Any]:
    """Two optimiser steps, two epochs: old logprobs are those before the first."""
    loss = LossConfig(name="ppo_clip", kl="k3", kl_coef=0.5)
    batch = bench.updates(loss, updates=2)
    learner = bench.learner(0, loss=loss)
    learner.step(bench.updates(loss, seed=3))  # away from the reference
    old = [learner.score(update) for update in batch]
    reference = [learner.score(update, "reference") for update in batch]
    start = bench.learner_state = weights(learner)
    metrics = learner.step(batch, epochs=2)
    end = weights(learner)
    learner.close()
    learner = bench.learner(0, loss=loss)
    learner.step(bench.updates(loss, seed=3))
    given = [
        [
            dataclasses.replace(m, old_N=old[u][i][0], ref_N=reference[u][i][0])
            for i, m in enumerate(update)
        ]
        for u, update in enumerate(batch)
    ]
    assert all((start[n] == w).all() for n, w in weights(learner).items())
    for update in (*given, *given):
        learner.step([update])
    same = all((end[n] == w).all() for n, w in weights(learner).items())
    learner.close()
    return {"metrics": metrics, "same": same, "count": len(batch)}


def first_gap(bench: Bench) -> tuple[dict[str, Any], float, int]:
    """Metrics of two updates, two epochs, without old logprobs; the gap before the first."""
    import torch

    batch = bench.updates(updates=2)
    learner = bench.learner(0, threads=2)
    scored = zip(batch[0], learner.score(batch[0]), strict=True)
    gaps = [np.abs(logp_N + 1.5)[m.weights_N > 0] for m, (logp_N, _) in scored]
    metrics, threads = learner.step(batch, epochs=2), torch.get_num_threads()
    learner.close()
    torch.set_num_threads(1)
    return metrics, float(np.concatenate(gaps).mean()), threads


def equal_ways(bench: Bench) -> dict[str, Weights]:
    """One step, computed in ways that must not matter."""
    rows: dict[str, Any] = {"rows": 6}  # no branches: those cannot be packed
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "plain": ({}, rows),
        "checkpointing": ({"gradient_checkpointing": True}, rows),
        "checkpointing, ZeRO-3": ({"gradient_checkpointing": True, "zero": 3}, rows),
        "head in chunks": ({"head_elements": 100}, rows),
        "head in chunks, ZeRO-3": ({"head_elements": 100, "zero": 3}, rows),
        "eager attention": ({"attention": "eager"}, rows),
        "packed": ({}, rows | {"packed": True}),
        "untied, ZeRO-3": ({"path": f"{bench.folder}/untied", "zero": 3}, rows),
        "untied": ({"path": f"{bench.folder}/untied"}, rows),
    }
    out = {}
    for name, (settings, packing) in ways.items():
        learner = bench.learner(settings.pop("zero", 0), DESCENT, **settings)
        learner.step(bench.updates(**packing))
        out[name] = weights(learner)
        learner.close()
    return out


def short_of_memory(bench: Bench) -> dict[str, Any]:
    """Rows beyond two do not fit, in forward or in the middle of backward; then nothing fits."""
    out: dict[str, Any] = {}
    for dtype, where in itertools.product(("float32", "bfloat16"), ("", "forward", "backward")):
        learner = bench.learner(0, DESCENT, dtype=dtype)
        _starve(learner, where, most=2)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            metrics = learner.step(bench.updates(tokens_per_micro_batch=125))
        said_so = [str(w.message) for w in said if "halved and tried again" in str(w.message)]
        assert set(metrics["notes"]) == set(said_so)
        out[dtype, where] = (weights(learner), metrics["loss"], len(said_so))
        learner.close()
    for zero, most in ((0, 0), (2, 2)):
        learner = bench.learner(zero)
        _starve(learner, "forward", most)
        with pytest.raises(RuntimeError, match="lower tokens_per_micro_batch") as caught:
            learner.step(bench.updates(tokens_per_micro_batch=125))
        out[f"nothing fits, zero={zero}"] = str(caught.value)
        learner.close()
    return out


def _starve(learner: Learner, where: str, most: int) -> None:
    import torch

    untouched = learner._forward

    def forward(micro: MicroBatch) -> Any:
        too_large = len(micro.ids_BT) > most
        if where == "forward" and too_large:
            raise torch.OutOfMemoryError("CUDA out of memory. (pretended)")
        first = learner.model.model.layers[0].input_layernorm
        hook = first.register_forward_hook(lambda m, i, out: late(out, too_large))
        loss = untouched(micro)
        hook.remove()
        return loss

    def late(out: Any, too_large: bool) -> None:
        def fail(grad: Any) -> None:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

        if where == "backward" and too_large:
            out.register_hook(fail)  # later layers have their gradients by then

    learner._forward = forward  # type: ignore[method-assign]


def _measure(rank: int, folder: str, ranks: int) -> dict[str, Any]:
    bench = Bench(rank, folder, ranks)
    return {
        "skipping": list(skipping(bench)),
        "resuming": list(resuming(bench)),
        "moving": list(moving(bench)),
        "clipping": list(clipping(bench)),
        "muon": list(muon(bench)),
    }


def _measure_alone(rank: int, folder: str) -> dict[str, Any]:
    bench = Bench(rank, folder, 1)
    return {
        "several updates": several_updates(bench),
        "first gap": first_gap(bench),
        "equal ways": equal_ways(bench),
        "memory": short_of_memory(bench),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model(tied=True).save_pretrained(path)
    tiny_model(tied=False).save_pretrained(path / "untied")
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=[1, 2])
def measured(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    """Per rank."""
    return on_ranks(request.param, _measure, str(folder), request.param, deadline=280)


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    return on_ranks(1, _measure_alone, str(folder), deadline=280)[0]


def test_a_bad_step_is_taken_by_no_rank_and_leaves_no_trace(measured: list[dict]) -> None:
    for first, last in zip(measured[0]["skipping"], measured[-1]["skipping"], strict=True):
        zero, dtype, metrics, unchanged, _, no_trace = first
        where = f"zero={zero} {dtype}"
        assert (metrics["steps"], metrics["skipped_steps"]) == (0, 1), where
        assert set(metrics["bad_prompts"]) == last[4], where  # those of the rank that had the NaN
        assert unchanged, where
        (note,) = metrics["notes"]
        assert note.endswith(f"skipped; its prompts {sorted(last[4])}"), where
        assert first[2]["notes"] == last[2]["notes"], where
        assert no_trace, where


def test_resuming_is_exact(measured: list[dict]) -> None:
    for zero, dtype, optim, same, *_ in measured[0]["resuming"]:
        assert same, f"zero={zero} {dtype} {optim}"


def test_a_moving_average_moves_in_bfloat16(measured: list[dict]) -> None:
    for shares, scored_with in measured[0]["moving"]:
        assert shares == pytest.approx([1 - 0.99**100] * len(shares), rel=1e-3)
        assert scored_with, "the reference scores with the average, rounded once"


def test_an_export_is_the_model(measured: list[dict], folder: Path) -> None:
    """transformers loads it, with the very weights, in their dtype, and with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for zero, dtype, optim, _, end, exported in measured[0]["resuming"]:
        model = AutoModelForCausalLM.from_pretrained(exported, dtype="auto")
        assert model.dtype == getattr(torch, dtype)
        loaded = {n: p.detach().float().numpy() for n, p in model.named_parameters()}
        assert loaded.keys() == end.keys(), f"zero={zero} {dtype} {optim}"
        assert all((loaded[n] == w).all() for n, w in end.items())
        tokenizer = AutoTokenizer.from_pretrained(exported)
        assert tokenizer.chat_template == AutoTokenizer.from_pretrained(folder).chat_template


def test_clipping_is_the_same_at_every_stage(measured: list[dict]) -> None:
    """The norm reported is the one before; the step has exactly the length allowed."""
    norms = []
    for zero, metrics, length in measured[0]["clipping"]:
        norms.append(metrics["grad_norm"])
        assert metrics["grad_norm"] > 0.1, "nothing was clipped: the test shows nothing"
        assert length == pytest.approx(0.01, rel=1e-4), f"zero={zero}"
    assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-6)


def test_metrics_do_not_depend_on_the_ranks(folder: Path, measured: list[dict]) -> None:
    by_rank = [{k: m["clipping"][0][1][k] for k in ("loss", "tokens", "steps")} for m in measured]
    assert all(metrics == by_rank[0] for metrics in by_rank)
    assert by_rank[0]["tokens"] == sum(int(row.mask_T.sum()) for row in sequences())


def test_muon_is_the_same_at_zero_0_1_2(measured: list[dict]) -> None:
    first, *others = measured[0]["muon"]
    for other in others:
        for name, weight in first.items():
            np.testing.assert_allclose(other[name], weight, rtol=1e-4, atol=2e-6, err_msg=name)


def test_old_logprobs_are_those_before_the_first_update(alone: dict[str, Any]) -> None:
    found = alone["several updates"]
    assert found["count"] == 2
    assert found["metrics"]["steps"] == 4
    assert found["same"]
    assert found["metrics"]["ref_kl"] > 0
    assert found["metrics"]["ppo_kl"] != 0


def test_the_engine_gap_is_that_of_the_first_update(alone: dict[str, Any]) -> None:
    """Later ones compare other weights than those that sampled, where no old logprobs are kept."""
    metrics, gap, threads = alone["first gap"]
    assert metrics["steps"] == 4
    assert metrics["engine_gap"] == pytest.approx(gap, rel=1e-6)
    assert threads == 2


def test_ways_that_must_not_matter(alone: dict[str, Any]) -> None:
    ways = dict(alone["equal ways"])
    untied, untied3 = ways.pop("untied"), ways.pop("untied, ZeRO-3")
    plain = ways.pop("plain")
    for expected, name, got in [(plain, *way) for way in ways.items()] + [
        (untied, "untied, ZeRO-3", untied3)
    ]:
        largest = max(float(np.abs(w).max()) for w in expected.values())
        for parameter, weight in expected.items():
            error = np.abs(got[parameter] - weight).max() / largest
            assert error < 2e-6, f"{name}: {parameter} is off by {error:.2g}"


def test_what_does_not_fit_is_halved_once(alone: dict[str, Any]) -> None:
    found = alone["memory"]
    for dtype, tolerance in (("float32", 2e-6), ("bfloat16", 2e-2)):
        expected, loss, said = found[dtype, ""]
        assert said == 0
        for where in ("forward", "backward"):
            got, again, said = found[dtype, where]
            assert said >= 1
            assert again == pytest.approx(loss, rel=1e-2 if dtype == "bfloat16" else 1e-6)
            largest = max(float(np.abs(w).max()) for w in expected.values())
            for name, weight in expected.items():
                assert np.abs(got[name] - weight).max() / largest < tolerance, (dtype, where, name)
    assert "out of memory in a micro-batch" in found["nothing fits, zero=0"]
    assert "out of memory in a micro-batch" in found["nothing fits, zero=2"]


def _twice(rank: int, folder: str) -> list[bool]:
    """Is the process in a group after each of two learners, one after the other?"""
    import torch

    left = []
    for _ in range(2):
        learner = Learner(folder, LearnerConfig(zero=1), ADAMW, CE, total_steps=1)
        learner.step([Bench(rank, folder, 1).updates()[0]])
        learner.close()
        left.append(torch.distributed.is_initialized())
    return left


def test_a_learner_leaves_the_group_it_joined(folder: Path) -> None:
    assert on_ranks(1, _twice, str(folder), fresh=True) == [[False, False]]
