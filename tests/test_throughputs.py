"""The table of measured throughputs: which row is asked, and what rows may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import throughputs
from launch.throughputs import REACH, Row, Span, Table, Wanted, read, scaled, told

SIZES = st.floats(1e3, 1e12)


def row(what: str = "generate", parameters: float = 1e9, rate: Any = 1000.0, **more: Any) -> Row:
    name = "bytes_per_s" if what == "sync" else "tokens_per_s"
    fields = {"hardware": "H100", "engine": "vllm", "dtype": "bfloat16", "source": "a page"}
    return Row(**{**fields, "what": what, "parameters": parameters, name: rate, **more})


def wanted(parameters: float = 1e9, **more: Any) -> Wanted:
    fields: dict[str, Any] = {"what": "generate", "hardware": "H100", "engine": "vllm"}
    return Wanted(**{**fields, "parameters": parameters, "dtype": "bfloat16", **more})


def test_the_nearest_size_is_asked() -> None:
    small, large = row(parameters=1e9), row(parameters=8e9)
    table = Table(((small, large),))
    assert table.nearest(wanted(2e9)) is small
    assert table.nearest(wanted(5e9)) is large
    assert table.nearest(wanted(8e9 * REACH * 0.99)) is large
    assert table.nearest(wanted(8e9 * REACH * 1.01)) is None
    assert table.nearest(wanted(1e9 / REACH / 1.01)) is None


@pytest.mark.parametrize(
    "other",
    [{"what": "train"}, {"engine": "torch"}, {"dtype": "float32"}, {"hardware": "A100"}],
)
def test_a_row_of_something_else_tells_nothing(other: dict[str, Any]) -> None:
    assert Table(((row(),),)).nearest(wanted(**other)) is None


@pytest.mark.parametrize(
    ("kind", "name", "same"),
    [
        ("H100", "NVIDIA H100 80GB HBM3", True),
        ("h100", "H100", True),
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("H20", "NVIDIA H200", False),
        ("H100", "", False),
        ("cpu", "H100", False),
    ],
)
def test_a_kind_is_a_word_of_the_name(kind: str, name: str, same: bool) -> None:
    found = Table(((row(hardware=kind),),)).nearest(wanted(hardware=name))
    assert (found is not None) == same


def test_of_equal_sizes_the_row_that_was_trained_alike_is_asked() -> None:
    plain = row("train", engine="deepspeed")
    lora = row("train", engine="deepspeed", lora=True)
    table = Table(((plain, lora),))
    assert table.nearest(wanted(what="train", engine="")) is plain
    assert table.nearest(wanted(what="train", engine="", lora=True)) is lora


def test_ones_own_rows_win(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    (shipped, *_), text = read().layers[0], "tokens_per_s: 17"
    near = shipped.parameters * 3
    own.write_text(
        f"- {{what: {shipped.what}, hardware: {shipped.hardware}, engine: {shipped.engine}, "
        f"parameters: {near}, dtype: {shipped.dtype}, {text}, source: mine}}\n"
    )
    asked = wanted(
        shipped.parameters, hardware=shipped.hardware, engine=shipped.engine, dtype=shipped.dtype
    )
    assert read().nearest(asked) == shipped
    found = read(own).nearest(asked)
    assert found is not None
    assert found.source == "mine", "though a shipped row is nearer"


@settings(deadline=None)
@given(SIZES, SIZES, st.floats(1, 1e6))
def test_larger_models_are_slower_between_root_and_ratio(a: float, b: float, rate: float) -> None:
    one, ratio = row(parameters=a, rate=rate), b / a
    found = scaled(one, b)
    ends = sorted((rate / ratio, rate / ratio**0.5))
    assert (found.low, found.high) == pytest.approx(tuple(ends))
    larger = scaled(one, 2 * b)
    assert larger.low <= found.low * 1.000001
    assert larger.high <= found.high * 1.000001


def test_a_step_reaches_half_of_a_steady_rate_or_more() -> None:
    assert scaled(row(steady=True), 1e9) == Span(500, 1000)
    assert scaled(row("sync", steady=True), 7e9) == Span(500, 1000)


def test_bytes_in_a_second_do_not_depend_on_the_size() -> None:
    assert scaled(row("sync", rate=[3.0, 5.0]), 7e9) == Span(3, 5)


@pytest.mark.parametrize(
    ("checkpointing", "lora", "flops"),
    [(False, False, 6), (True, False, 8), (False, True, 4), (True, True, 6)],
)
def test_flops_of_training(checkpointing: bool, lora: bool, flops: int) -> None:
    assert throughputs.work(checkpointing, lora) == flops


GOOD = "what: generate, hardware: cpu, engine: torch, parameters: 3e5, dtype: float32, source: s"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1", r"it is a list of rows"),
        ("- 3", r"row 1 is a mapping of what, .*; got 3"),
        ("- [", r"cannot be read as YAML: "),
        (f"- {{{GOOD}}}", r"row 1: tokens_per_s is missing"),
        (f"- {{{GOOD}, tokens_per_s: -3}}", r"row 1: tokens_per_s: -3 is no rate; write a number"),
        (f"- {{{GOOD}, tokens_per_s: [3, 2]}}", r"\[3, 2\] is no rate; .* or \[low, high\]"),
        (f"- {{{GOOD}, tokens_per_s: fast}}", r"'fast' is no rate"),
        (f"- {{{GOOD}, tokens_per_s: .inf}}", r"inf is no rate"),
        (f"- {{{GOOD}, tokens_per_s: 3, bytes_per_s: 3}}", r"bytes_per_s is nothing that a row"),
        (f"- {{{GOOD}, tokens_per_s: 3, row: 3}}", r"row: unknown field; did you mean 'rows'\?"),
        (f"- {{{GOOD}, tokens_per_s: 3}}\n- {{what: fly}}", r"row 2: what: .* got 'fly'"),
    ],
)
def test_a_wrong_row_is_one_line(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=why) as error:
        read(file)
    assert str(error.value).startswith(f"--throughputs {file}: ")
    assert "\n" not in str(error.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--throughputs .*/none: no such file"):
        read(tmp_path / "none")


def test_rows_are_told_as_they_are_read(tmp_path: Path) -> None:
    rows = read().layers[0]
    file = tmp_path / "again.yaml"
    file.write_text(told(rows))
    assert read(file).layers[0] == rows


def test_every_shipped_number_has_a_source() -> None:
    rows = read().layers[0]
    assert {r.what for r in rows} >= {"generate", "train", "sync"}
    for one in rows:
        ours = "laconic " in one.source or "python -m" in one.source
        assert one.hardware == "cpu" if ours else "https://" in one.source, one
