"""Norms of per-row gradients: against plain autograd, one row after another, in float64.

Shape suffixes: B rows, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from launch import fleet
from launch.cluster import cluster
from tests import test_gradient_variance as gradient_variance
from tests.ranks import on_ranks
from tests.test_learner import Bench, weights
from tests.test_learner_accumulation import sequences
from tests.tiny import tiny_model, tiny_tokenizer
from trainer import gradnorms, measure, policy
from trainer.batching import pack
from trainer.config import load
from trainer.logprobs import Scorer
from trainer.lora import LoraConfig
from trainer.modelfolder import fetch
from trainer.rows import branches
from trainer.types import TrainSequence

torch.set_num_threads(1)
SCOPES: tuple[gradnorms.Scope, ...] = ("embedding", "last_layer", "full")
CLOSE = 1e-4
LORA = LoraConfig(rank=4)
Norms = dict[tuple[str, int], float]
"""By scope and row."""


def expected(model: Any, rows: list[TrainSequence], temperature: float = 1.0) -> Norms:
    """Each branch of each row alone and in full, one backward pass a row and scope."""
    out: Norms = {}
    for scope in SCOPES:
        exact = copy.deepcopy(model).double()
        head, embedding = exact.get_output_embeddings(), exact.get_input_embeddings()
        if scope == "last_layer":  # its use as a head alone, also where it is the embedding
            head.weight = nn.Parameter(head.weight.detach().clone())
        wanted = {
            "embedding": [embedding.weight],
            "last_layer": [head.weight],
            "full": [p for p in exact.parameters() if p.requires_grad],
        }[scope]
        for weight in wanted:
            weight.requires_grad_()
        for r, row in enumerate(rows):
            total = _likelihood(exact, row, temperature)
            grads = torch.autograd.grad(total, wanted, allow_unused=True)
            out[scope, r] = float(sum(g.square().sum() for g in grads if g is not None)) ** 0.5
    return out


def _likelihood(model: Any, row: TrainSequence, temperature: float) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for one in branches(row):
        ids_1T = torch.tensor(one.ids_T).long()[None]
        logp_TV = (model(ids_1T[:, :-1]).logits[0] / temperature).log_softmax(-1)
        logp_T = logp_TV.gather(1, ids_1T[0, 1:, None])[:, 0]
        total = total + logp_T[torch.tensor(one.mask_T[1:])].sum()
    return total


def close(got: Norms, wanted: Norms, where: str) -> None:
    assert got.keys() == wanted.keys(), where
    for key, norm in wanted.items():
        assert norm > 0.1, "nothing to measure"
        assert got[key] == pytest.approx(norm, rel=CLOSE), f"{where}: {key}"


# -- real learners --------------------------------------------------------------------------------


def _norms(learner: Any, rank: int, ranks: int, rows: list, **packing: Any) -> Norms:
    """Of the rows that this rank is dealt."""
    packing = {"tokens_per_micro_batch": 40} | packing
    found: Norms = {}
    for scope in SCOPES:
        for update in pack(rows, None, ranks=ranks, **packing).updates:
            measured = learner.norms(update[rank], scope)
            for micro, norms_B in zip(update[rank], measured, strict=True):
                assert norms_B.dtype == np.float32
                pairs = zip(micro.rows_B.tolist(), norms_B.tolist(), strict=True)
                found |= {(scope, r): norm for r, norm in pairs if r >= 0}
    return found


def _cases(bench: Bench) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name (the first word is the model), settings of the learner and of the packing."""
    untied = {"path": f"{bench.folder}/untied"}
    for zero in range(4):
        yield f"tied, zero={zero}", {"zero": zero}, {}
        yield f"untied, zero={zero}", untied | {"zero": zero}, {}
        yield f"lora, zero={zero}", {"zero": zero, "lora": LORA}, {}
        yield (
            f"tied, checkpointing, zero={zero}",
            {"zero": zero, "gradient_checkpointing": True},
            {},
        )
    yield "tied, head in chunks", {"head_elements": 100}, {}
    yield "untied, head in chunks", untied | {"head_elements": 100, "zero": 3}, {}
    yield "tied, one micro-batch", {}, {"tokens_per_micro_batch": 1000}
    yield "warm, eager", {"temperature": 0.7, "attention": "eager"}, {}
    yield "tied, packed", {}, {"packed": True}
    yield "untied, packed in one", untied, {"packed": True, "tokens_per_micro_batch": 1000}


def _measure(rank: int, folder: str, ranks: int) -> list[tuple[str, Norms]]:
    bench = Bench(rank, folder, ranks)
    out = []
    for name, chosen, packing in _cases(bench):
        rows = sequences()[: 6 if "packed" in packing else 7]
        learner = bench.learner(chosen.pop("zero", 0), **chosen)
        out.append((name, _norms(learner, rank, ranks, rows, **packing)))
        learner.close()
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model(tied=True).save_pretrained(path)
    tiny_model(tied=False).save_pretrained(path / "untied")
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[str, Norms]:
    from transformers import AutoModelForCausalLM

    tied = AutoModelForCausalLM.from_pretrained(folder)
    untied = AutoModelForCausalLM.from_pretrained(folder / "untied")
    adapted = policy.load(str(folder), dtype="float32", attention="sdpa", lora=LORA, seed=0)
    return {
        "tied": expected(tied, sequences()),
        "untied": expected(untied, sequences()),
        "lora": expected(adapted, sequences()),
        "warm": expected(tied, sequences(), temperature=0.7),
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_norms_are_those_of_autograd(folder: Path, truth: dict[str, Norms], ranks: int) -> None:
    """ZeRO 0 to 3; tied, untied, adapters; checkpointing; packed rows, rows with branches."""
    by_rank = on_ranks(ranks, _measure, str(folder), ranks, deadline=280)
    for found in zip(*by_rank, strict=True):
        name = found[0][0]
        together: Norms = {}
        for _, norms in found:
            assert not together.keys() & norms.keys()
            together |= norms
        wanted = truth[name.split(",")[0]]
        if "packed" in name:
            wanted = {(scope, r): norm for (scope, r), norm in wanted.items() if r < 6}
        close(together, wanted, f"{name}, ranks={ranks}")


def _undisturbed(rank: int, folder: str, ranks: int) -> list[tuple[str, bool, bool]]:
    """Per way to train: are weights bit for bit those of a learner that measured nothing?"""
    bench, out = Bench(rank, folder, ranks), []
    ways = [(zero, dtype) for zero in range(4) for dtype in ("float32", "bfloat16")]
    for zero, dtype in ways:
        ends, clean = [], True
        for measured in (False, True):
            learner = bench.learner(zero, dtype=dtype, gradient_checkpointing=zero % 2 == 1)
            for seed in (1, 2):
                if measured:
                    _norms(learner, rank, ranks, sequences())
                    clean &= all(p.grad is None for p in learner.model.parameters())
                learner.step(bench.updates(seed=seed))
            ends.append(weights(learner))
            learner.close()
        same = all((ends[0][n] == w).all() for n, w in ends[1].items())
        out.append((f"zero={zero} {dtype}", clean, same))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_training_goes_on_as_if_nothing_had_been_measured(folder: Path, ranks: int) -> None:
    for way, clean, same in on_ranks(ranks, _undisturbed, str(folder), ranks, deadline=280)[0]:
        assert clean, way
        assert same, way


# -- any model ------------------------------------------------------------------------------------


def stand_in(model: Any, elements: int = 2**20, zero: int = 0, temperature: float = 1.0) -> Any:
    """What `norms` needs of a learner."""
    return SimpleNamespace(
        model=model.train(),
        scorer=Scorer(model, temperature, elements),
        device=torch.device("cpu"),
        config=SimpleNamespace(head_elements=elements, zero=zero),
        engine=SimpleNamespace(optimizer=None),
    )


def measured(learner: Any, rows: list[TrainSequence], tokens: int = 120) -> Norms:
    return _norms(
        SimpleNamespace(norms=lambda ms, scope: [gradnorms.norms(learner, m, scope) for m in ms]),
        0, 1, rows, tokens_per_micro_batch=tokens,
    )  # fmt: skip


MODELS: dict[str, dict[str, Any]] = {
    "padding row": {"arch": "llama", "pad_token_id": 7},
    "biases": {"arch": "llama", "tied": False, "attention_bias": True, "mlp_bias": True},
    "gpt2": {"arch": "gpt2"},
    "gemma3_text": {},
    "gemma2": {"final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.25},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": {"tied": False},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_architectures(name: str, temperature: float) -> None:
    """Scaled embeddings, capped and scaled logits, norms with biases, learned positions."""
    sizes = dict(MODELS[name])
    model = tiny_model(sizes.pop("arch", name), **sizes).eval()
    for parameter in model.parameters():  # no norm's weight is just 1
        with torch.no_grad():
            parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()).reshape(parameter.shape))
    rows = sequences()[:6]
    wanted = expected(model, rows, temperature)
    learner = stand_in(model, temperature=temperature)
    model.eval()
    close(measured(learner, rows), wanted, name)


class Odd(nn.Module):
    """Not affine in its weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight.square()


def odd_model() -> Any:
    model = tiny_model()
    model.model.norm = Odd(32)
    return model


def test_a_module_of_an_unknown_kind_costs_a_pass_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = odd_model(), sequences()[:4]
    passes = _count(monkeypatch)
    close(measured(stand_in(model), rows), expected(model, rows), "odd")
    assert passes, "the patch did not work"
    passes.clear()
    for scope, each in {"embedding": 1, "last_layer": 0, "full": 1 + 4}.items():
        (micro,) = pack(rows, None, tokens_per_micro_batch=1000).updates[0][0]
        gradnorms.norms(stand_in(model), micro, scope)  # type: ignore[arg-type]
        assert len(passes) == each, scope
        passes.clear()


def test_a_weight_used_twice_has_one_gradient() -> None:
    model, rows = tiny_model(), sequences()[:4]
    first, second = model.model.layers
    second.mlp.up_proj = first.mlp.up_proj  # the module
    second.self_attn.q_proj.weight = first.self_attn.q_proj.weight  # the weight alone
    second.input_layernorm = first.input_layernorm
    close(measured(stand_in(model), rows), expected(model, rows), "shared")


def test_it_is_refused_where_a_pass_a_row_is_no_way() -> None:
    (micro,) = pack(sequences()[:2], None, tokens_per_micro_batch=1000).updates[0][0]
    with pytest.raises(ValueError, match=r"'qwen3' uses model\.norm\.weight .* set learner\.zero"):
        gradnorms.norms(stand_in(odd_model(), zero=3), micro, "full")
    model = tiny_model()
    model.get_input_embeddings().scale_grad_by_freq = True
    with pytest.raises(ValueError, match=r"uses model\.embed_tokens\.weight .* scope last_layer"):
        gradnorms.norms(stand_in(model), micro, "embedding")


def _count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    passes: list[int] = []
    real = torch.autograd.grad

    def grad(*args: Any, **settings: Any) -> Any:
        passes.append(1)
        return real(*args, **settings)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    return passes


def test_one_backward_pass_for_all_rows_and_none_for_the_last_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes, learner = _count(monkeypatch), stand_in(tiny_model())
    (micro,) = pack(sequences(), None, tokens_per_micro_batch=1000).updates[0][0]
    assert len(micro.rows_B) == 7
    for scope, each in {"embedding": 1, "last_layer": 0, "full": 1}.items():
        gradnorms.norms(learner, micro, scope)  # type: ignore[arg-type]
        assert len(passes) == each, scope
        passes.clear()


class Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("width", [8, 64])
def test_no_tensor_of_tokens_by_vocabulary(scope: gradnorms.Scope, width: int) -> None:
    """Narrow: the head's gradient is made in chunks; wide: inner products of tokens are."""
    model = tiny_model(vocab_size=3000, hidden_size=width, tie_word_embeddings=True)
    (micro,) = pack(sequences(), None, tokens_per_micro_batch=1000).updates[0][0]
    limit, largest = 20_000, Largest()
    whole = gradnorms.norms(stand_in(model), micro, scope)
    with largest:
        chunked = gradnorms.norms(stand_in(model, limit), micro, scope)
    np.testing.assert_allclose(chunked, whole, rtol=CLOSE)
    assert largest.elements <= max(limit, model.get_output_embeddings().weight.numel())
    assert largest.elements < len(micro.targets_N) * 3000 / 2, "the bound shows something"


def test_what_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, real = stand_in(tiny_model()), gradnorms._norms
    (micro,) = pack(sequences(), None, tokens_per_micro_batch=1000).updates[0][0]
    whole = gradnorms.norms(learner, micro, "full")

    def short(learner: Any, micro: Any, scope: Any) -> Any:
        if len(micro.lengths_B) > 2:
            raise RuntimeError("out of memory")
        return real(learner, micro, scope)

    monkeypatch.setattr(gradnorms, "_norms", short)
    np.testing.assert_allclose(gradnorms.norms(learner, micro, "full"), whole, rtol=CLOSE)
    learner.config.zero = 3
    with pytest.raises(RuntimeError, match="out of memory"):
        gradnorms.norms(learner, micro, "full")


# -- through Ray ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fleet_measures_as_one_learner_does(tmp_path: Path) -> None:
    """Two ranks: norms in the order of scores; the variance that of the groups."""
    settings = ("learner.ranks=2", "loss={name: ce, aggregation: token_mean}")
    stage = load("warmup/find", (f"output={tmp_path}", *settings, "evaluation=null")).stages[0]
    path, rows = fetch("base/find"), gradient_variance.rows()
    batch = pack(rows, None, tokens_per_micro_batch=40, ranks=2)
    micros = [micro for update in batch.updates for rank in update for micro in rank]
    with cluster(cpus=4), fleet.Fleet(stage, str(path)) as world:
        scores, found = world.score(batch, "policy"), world.norms(batch, "full")
        figures = measure.variance(world, rows, stage)
    assert len({micro.rows_B.tobytes() for micro in micros}) > 3
    assert [len(s) for s in scores] == [len(micro.targets_N) for micro in micros]
    learner = stand_in(policy.load(str(path), dtype="float32", attention="sdpa"))
    for micro, norms_B in zip(micros, found, strict=True):
        np.testing.assert_allclose(norms_B, gradnorms.norms(learner, micro, "full"), rtol=CLOSE)
    variance, norm2 = gradient_variance.brute(path, rows)
    assert figures["gradient/variance"] == pytest.approx(variance, rel=CLOSE)
    assert figures["gradient/norm2"] == pytest.approx(norm2, rel=CLOSE)
