"""Saved learner states: read back by any number of ranks at any ZeRO stage, or refused whole."""

from __future__ import annotations

import errno
import itertools
import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplers import seeds
from tests.adapters import LORA
from tests.ranks import on_ranks
from tests.test_learner import ADAMW, CE, MUON, Bench, weights
from tests.tiny import tiny_model, tiny_tokenizer
from trainer.losses import LossConfig
from trainer.state.fragments import Span, shares, sources
from trainer.together import disk_error

EMA = LossConfig(name="ce", kl="k2", kl_coef=0.1, reference="ema", reference_decay=0.5)
KINDS: dict[str, dict[str, Any]] = {
    "adamw": {"optim": ADAMW, "loss": EMA},
    "muon": {"optim": MUON, "loss": CE},
    "lora": {"optim": ADAMW, "loss": CE, "lora": LORA},
}
Case = tuple[str, str, int]
"""Kind, dtype, ZeRO stage."""
CASES: list[Case] = [
    *itertools.product(("adamw",), ("float32", "bfloat16"), range(4)),
    *itertools.product(("muon",), ("float32", "bfloat16"), range(3)),
    *itertools.product(("lora",), ("float32",), (0, 2, 3)),
    *itertools.product(("lora",), ("bfloat16",), (1, 3)),
]


@given(st.data())
def test_sources_are_the_wanted_elements_once_and_in_order(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 40))
    place = st.integers(0, size)
    cut = sorted({0, size, *data.draw(st.lists(place))})
    more = data.draw(st.lists(st.tuples(place, place).map(sorted), max_size=4))
    saved = [Span(*pair) for pair in [*itertools.pairwise(cut), *more]]
    saved = data.draw(st.permutations(saved))
    wanted = Span(*sorted((data.draw(place), data.draw(place))))
    lost = data.draw(st.sampled_from([None, *range(len(saved))]))
    if lost is not None:
        saved = saved[:lost] + saved[lost + 1 :]
    there = {i for span in saved for i in range(*span)}
    if not set(range(*wanted)) <= there:
        first = min(set(range(*wanted)) - there)
        with pytest.raises(ValueError, match=f"element {first} of"):
            sources(wanted, saved)
        return
    taken = []
    for index, span in sources(wanted, saved):
        assert span.size > 0
        values = range(*saved[index])
        taken += values[span.within(saved[index])]
    assert taken == list(range(*wanted))


@given(st.lists(st.integers(0, 30), max_size=6), st.integers(1, 5))
def test_shares_are_everything_once_and_even(counts: list[int], ranks: int) -> None:
    sizes = {f"p{i}": count for i, count in enumerate(counts)}
    parts = shares(sizes, ranks)
    for name, size in sizes.items():
        held = [i for part in parts if name in part for i in range(*part[name])]
        assert held == list(range(size))
    totals = [sum(span.size for span in part.values()) for part in parts]
    assert max(totals) - min(totals) <= 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    for name, sizes in (("model", {}), ("wide", {"intermediate_size": 64})):
        tiny_model(tied=True, **sizes).save_pretrained(path / name)
        tiny_tokenizer().save_pretrained(path / name)
    return path


def whole(learner: Any) -> dict[str, np.ndarray]:
    """Every state of every parameter, put together from all ranks; and the weights."""
    from trainer import zero
    from trainer.state import _held

    mine = [
        (f"{p.key} {p.name}", p.own, p.values[p.own.within(p.span)].float().numpy().copy())
        for p in _held(learner)
        if p.own.size
    ]
    out: dict[str, list] = {}
    for key, own, values in itertools.chain(*zero.gather_objects(mine)):
        out.setdefault(key, []).append((own, values))
    states = {}
    for key, found in out.items():
        found.sort(key=lambda pair: pair[0])
        assert found[0][0].start == 0
        assert all(a[0].stop == b[0].start for a, b in itertools.pairwise(found)), key
        states[key] = np.concatenate([values for _, values in found])
    return states | {f"weight {n}": w.ravel() for n, w in weights(learner).items()}


def place(root: str, ranks: int, case: Case) -> str:
    return f"{root}/{ranks} {' '.join(map(str, case))}"


def made(bench: Bench, case: Case) -> Any:
    kind, dtype, zero = case
    return bench.learner(zero, dtype=dtype, seed=5, **KINDS[kind])


def saving(rank: int, model: str, root: str, ranks: int) -> dict[Case, tuple[Any, list]]:
    """Of each case: all states after a step, which were saved; the weights of the next two."""
    import torch

    from trainer.state import files

    bench, out, usual = Bench(rank, model, ranks), {}, files.FILE_BYTES
    files.FILE_BYTES = 2**17  # several files a rank
    for case in CASES:
        loss = KINDS[case[0]]["loss"]
        learner = made(bench, case)
        learner.step(bench.updates(loss, 1, tokens_per_micro_batch=200))
        torch.manual_seed(100 + rank)
        learner.save(place(root, ranks, case))
        out[case] = whole(learner), further(bench, learner, loss, (2, 3))
        learner.close()
    files.FILE_BYTES = usual
    return out


def further(bench: Bench, learner: Any, loss: LossConfig, batches: Any) -> list:
    """The weights after each of these steps."""
    after = []
    for seed in batches:
        learner.step(bench.updates(loss, seed, tokens_per_micro_batch=200))
        after.append(weights(learner))
    return after


def loading(rank: int, model: str, root: str, ranks: int) -> list[Any]:
    """Each case's learner, fresh, goes on from its own state, then from all others of its kind:
    (case, saving ranks and case, states, whether the random state is right, weights after)."""
    import torch

    from trainer import zero

    bench, out = Bench(rank, model, ranks), []
    for case in CASES:
        loss = KINDS[case[0]]["loss"]
        others = [c for c in CASES if c[:2] == case[:2]]
        saved = [(n, c) for n in (1, 2) for c in others]
        saved.sort(key=lambda s: s != (ranks, case))
        learner = made(bench, case)
        for n, other in saved:
            more = 2 if (n, other) == (ranks, case) else int(case[:2] == ("adamw", "float32"))
            torch.manual_seed(7)
            learner.load(place(root, n, other))
            random = torch.get_rng_state()
            states = whole(learner)
            torch.manual_seed(100 + rank if rank < n else seeds.key(5, rank))
            right = all(zero.gather_objects(torch.equal(random, torch.get_rng_state())))
            assert learner.updates == 1
            after = further(bench, learner, loss, (2, 3)[:more])
            out.append((case, (n, other), states, right, after))
        learner.close()
    return out


@pytest.mark.slow
def test_any_ranks_and_stage_go_on_from_any_other(folder: Path, tmp_path: Path) -> None:
    args = str(folder / "model"), str(tmp_path)
    saved = {n: on_ranks(n, saving, *args, n)[0] for n in (1, 2)}
    for kind, dtype, first in [("adamw", "float32", 0), ("muon", "float32", 0)]:
        start = saved[1][kind, dtype, first][0]
        assert all(np.abs(values).max() > 0 for values in start.values()), "a state is all zeros"
        for n, cases in saved.items():  # the layouts are told apart right: states are as elsewhere
            for case in (c for c in cases if c[:2] == (kind, dtype)):
                for key, values in cases[case][0].items():
                    np.testing.assert_allclose(
                        values, start[key], rtol=1e-3, atol=2e-6, err_msg=f"{n} {case} {key}"
                    )
    for ranks in (1, 2):
        for case, (n, other), states, right, later in on_ranks(ranks, loading, *args, ranks)[0]:
            where = f"{n} ranks {other} -> {ranks} ranks {case}"
            expected, ends = saved[n][other]
            assert right, f"{where}: random state"
            assert states.keys() == expected.keys(), where
            for key, values in states.items():
                wanted = expected[key]
                if case == ("muon", "bfloat16", 2) and key.startswith("momentum"):
                    wanted = rounded(wanted)  # DeepSpeed keeps it in bfloat16 there
                assert (values == wanted).all(), f"{where}: {key}"
            exact = (n, other) == (ranks, case)
            for after, end in zip(later, ends, strict=exact):
                largest = max(float(np.abs(w).max()) for w in end.values())
                for name, weight in end.items():
                    error = np.abs(after[name] - weight).max() / largest
                    assert error <= (0 if exact else 1e-6), f"{where}: {name} is off by {error:.2g}"


def rounded(values: np.ndarray) -> np.ndarray:
    import torch

    return torch.from_numpy(values).bfloat16().float().numpy()


def refusing(rank: int, folder: str, root: str) -> Iterator[tuple[str, str, bool]]:
    """Other learners, or damaged files: (what, error, whether the learner stayed as it was)."""
    bench = Bench(rank, f"{folder}/model", 1)
    good = f"{root}/good"
    learner = made(bench, ("adamw", "float32", 0))
    learner.step(bench.updates(EMA, 1))
    learner.save(good)
    learner.close()
    settings: dict[str, Any] = {"optim": ADAMW, "loss": CE}
    others: dict[str, dict[str, Any]] = {
        "shape": settings | {"path": f"{folder}/wide"},
        "adapter": settings | {"lora": LORA},
        "optimiser": settings | {"optim": MUON},
    }
    for what, other in others.items():
        one = bench.learner(**other)
        yield (what, *_refused(one, good))
        if what == "adapter":
            one.save(f"{root}/lora")
        one.close()
    one = bench.learner(lora=LORA.model_copy(update={"alpha": 5.0}))
    yield ("alpha", *_refused(one, f"{root}/lora"))
    one.close()
    one = bench.learner()
    one.save(f"{root}/still")
    yield ("nothing there", *_refused(one, f"{root}/nowhere"))
    for what, path in _damaged(good, root):
        yield (what, *_refused(one, path))
    one.close()
    one = made(bench, ("adamw", "float32", 3))
    yield ("average", *_refused(one, f"{root}/still"))
    one.close()


def _refused(learner: Any, path: str) -> tuple[str, bool]:
    before = whole(learner)
    with pytest.raises(ValueError) as caught:
        learner.load(path)
    after = whole(learner)
    return str(caught.value), all((after[key] == value).all() for key, value in before.items())


def _damaged(good: str, root: str) -> Iterator[tuple[str, str]]:
    import shutil

    from safetensors.torch import load_file, save_file

    def copy(what: str) -> Path:
        return Path(shutil.copytree(good, f"{root}/{what}"))

    name = "rank00000-000.safetensors"
    (copy("missing") / name).unlink()
    file = copy("short") / name
    file.write_bytes(file.read_bytes()[:-9])
    file = copy("json") / "state.json"
    file.write_text(file.read_text()[:-9])
    file = copy("elsewhere") / "state.json"
    file.write_text(file.read_text().replace(name, f"../good/{name}"))
    file = copy("format") / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    file = copy("no index") / name
    save_file(load_file(file), file)
    file = copy("gap") / name
    tensors = load_file(file)
    held = {"x": tensors["exp_avg/model.norm.weight"][1:]}
    del tensors["exp_avg/model.norm.weight"]
    index = {t: [t.partition("/")[2], t.partition("/")[0], 0] for t in tensors if "/" in t}
    index["x"] = ["model.norm.weight", "exp_avg", 1]
    save_file(tensors | held, file, metadata={"index": json.dumps(index)})
    for what in ("missing", "short", "json", "elsewhere", "format", "no index", "gap"):
        yield what, f"{root}/{what}"


def _refusing(rank: int, folder: str, root: str) -> list[tuple[str, str, bool]]:
    return list(refusing(rank, folder, root))


def test_what_does_not_fit_is_refused_before_anything_changes(folder: Path, tmp_path: Path) -> None:
    found = on_ranks(1, _refusing, str(folder), str(tmp_path))[0]
    assert all(unchanged for *_, unchanged in found), found
    told = {what: error for what, error, _ in found}
    expected = {
        "shape": "model.layers.0.mlp.gate_proj.weight is 48x32 there and is 64x32 here; set",
        "adapter": "self_attn.q_proj.lora_A.default.weight is not trained there and is 4x32 here",
        "optimiser": "saved with adamw: model.layers.0.self_attn.q_proj.weight has no momentum",
        "alpha": "1.5 times there and 1.25 times here; set model.lora.alpha",
        "nothing there": f"{tmp_path}/nowhere/state.json: No such file",
        "average": "loss.reference=ema: ",
        "missing": "missing/rank00000-000.safetensors cannot be read: it is missing",
        "short": "short/rank00000-000.safetensors cannot be read: ",
        "json": "json/state.json is damaged",
        "elsewhere": "'../good/rank00000-000.safetensors' is no name of a file there",
        "format": "format 2 is not known",
        "no index": "no index/rank00000-000.safetensors is damaged",
        "gap": "exp_avg of model.norm.weight: element 0 of 0..32 is nowhere",
    }
    kinds = {file.suffix for file in (tmp_path / "good").iterdir()}
    assert kinds == {".json", ".safetensors"}
    assert told.keys() == expected.keys()
    for what, words in expected.items():
        assert words in told[what], f"{what}: {told[what]}"


def failing(rank: int, model: str, root: str) -> list[Any]:
    """Rank 1 may write little, or finds no files, or rank 0 cannot export; then all goes on."""
    bench, told = Bench(rank, model, 2), []
    learner = bench.learner(2)
    learner.save(f"{root}/good")
    before = whole(learner)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14 if rank else most[0], most[1]))
    try:
        learner.save(f"{root}/full")
    except OSError as error:
        told.append((error.errno, str(error)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    try:
        learner.load(f"{root}/{'nowhere' if rank else 'good'}")
    except ValueError as error:
        told.append(str(error))
    try:
        learner.export(f"{root}/good/state.json/model")
    except OSError as error:
        told.append(error.errno)
    learner.load(f"{root}/good")
    same = all((value == before[key]).all() for key, value in whole(learner).items())
    learner.close()
    return [*told, same]


@pytest.mark.slow
def test_where_one_rank_fails_all_raise(folder: Path, tmp_path: Path) -> None:
    for found in on_ranks(2, failing, str(folder / "model"), str(tmp_path)):
        (number, saving), loading, exporting, same = found
        assert number == errno.EFBIG
        assert "rank 1: File too large" in saving
        assert "full/rank00001-000.safetensors" in saving
        assert "nowhere/state.json" in loading
        assert exporting == errno.ENOTDIR
        assert same
    assert not (tmp_path / "full" / "state.json").exists()


def test_words_of_safetensors_are_errors_of_the_system() -> None:
    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    error = disk_error(Exception(full), Path("/x/y"))
    assert (error.errno, error.filename) == (errno.ENOSPC, "/x/y")
    assert disk_error(Exception("odd"), Path("/x")).errno is None
