"""Checkpoints are verified before they are gone on from, and read without trusting them."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kept import KINDS, RECIPE, fill, state
from trainer import checkpoint


def made(root: Path, *steps: int) -> list[Path]:
    root.mkdir(exist_ok=True)
    texts = {RECIPE: "name: one\n"}
    return [checkpoint.write(root, s, fill, state(s), {"facts": {}}, texts) for s in steps]


def quiet(root: Path) -> Path | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return checkpoint.intact(root)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    (folder,) = made(tmp_path / "checkpoints", 7)
    assert folder == quiet(tmp_path / "checkpoints") == checkpoint.newest(folder.parent)
    back = checkpoint.driver_state(folder)
    np.testing.assert_array_equal(back.pop("allocation")["seen"], np.arange(7))
    assert back == {"stage": 0, "first": 0, "step": 7}
    told = checkpoint.manifest(folder)
    assert (told["step"], told["stage"], told["laconic"]) == (7, 0, "0.1.0")
    assert {*told["files"], "COMPLETE"} == set(KINDS)
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {*KINDS}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "gone", "a link"])
def test_damage_of_every_kind_is_told_and_an_older_one_used(
    name: str, how: str, tmp_path: Path
) -> None:
    older, newer = made(tmp_path / "checkpoints", 1, 2)
    path = newer / name
    data = path.read_bytes()
    path.unlink()
    if how == "flipped":
        middle = data.index(b'"sha256": "') + 15 if name == "COMPLETE" else len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif how == "cut":
        path.write_bytes(data[:-3])
    elif how == "emptied":
        path.touch()
    elif how == "a link":
        shutil.copy(older / name, tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    if name == "COMPLETE" and how == "gone":  # then it is no checkpoint
        assert quiet(older.parent) == older
        return
    if name == "COMPLETE" and how == "a link":  # to another's
        assert checkpoint.damage(newer)
        return
    with pytest.warns(UserWarning, match="is damaged") as told:
        assert checkpoint.intact(older.parent) == older
    first, second = (str(warning.message) for warning in told)
    words = {"flipped": "sha256", "cut": "bytes", "gone": "missing", "a link": "link"}
    assert f"{newer} is damaged: {name} " in first
    assert "\n" not in first
    assert name == "COMPLETE" or words.get(how, "has 0 bytes and should have") in first
    assert "gone on from instead" in second


def test_a_file_that_nobody_wrote_is_told(tmp_path: Path) -> None:
    older, newer = made(tmp_path / "checkpoints", 1, 2)
    (newer / "model" / "pytorch_model.bin").write_bytes(b"pickle")
    (newer / "model" / "more").symlink_to(tmp_path)
    with pytest.warns(UserWarning, match="model") as told:
        assert checkpoint.intact(older.parent) == older
    assert "model/more is none of its files; remove it (and 1 more)" in str(told[0].message)


def test_none_intact_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folders = made(tmp_path / "checkpoints", 1, 2)
    for folder in folders:
        (folder / "driver.json").write_text("{}")
    with (
        pytest.warns(UserWarning, match="driver.json has 2 bytes"),
        pytest.raises(ValueError, match=r"no checkpoint is intact \(step-000002: driver.json .*1:"),
    ):
        checkpoint.intact(folders[0].parent)
    assert checkpoint.intact(tmp_path / "none") is None
    assert checkpoint.intact(folders[0].parent, "model/") == folders[1]


def test_the_older_format_is_taken_with_a_warning(tmp_path: Path) -> None:
    (folder,) = made(tmp_path / "checkpoints", 1)
    (folder / "COMPLETE").write_text("")
    assert checkpoint.damage(folder) == ["COMPLETE is empty"], "a learner's state of today"
    shutil.rmtree(folder / "learner")
    with pytest.warns(UserWarning, match="older format: whether it is whole cannot be checked"):
        assert checkpoint.intact(folder.parent) == folder


@pytest.mark.parametrize(
    "name", ["../../outside", "/etc/passwd", "model/../../x", "./driver.json", "model//a"]
)
def test_a_manifest_names_only_what_is_inside(name: str, tmp_path: Path) -> None:
    (folder,) = made(tmp_path / "checkpoints", 1)
    edited(folder, lambda told: told["files"].update({name: {"size": 0, "sha256": "0"}}))
    assert checkpoint.damage(folder) == [
        f"COMPLETE names '{name}', which is no file of a checkpoint"
    ]


@pytest.mark.parametrize("file", [{}, 7, {"size": "x", "sha256": ""}, None, {"size": 1}])
def test_a_strangers_manifest_is_not_believed(file: Any, tmp_path: Path) -> None:
    (folder,) = made(tmp_path / "checkpoints", 1)
    edited(folder, lambda told: told["files"].update({"driver.json": file}))
    assert checkpoint.damage(folder) == ["COMPLETE says no size and sha256 of driver.json"]
    for text in ("[]", "7", '{"sha256": 1}', "{", '{"format": 9, "sha256": ""}', "\x00"):
        (folder / "COMPLETE").write_text(text)
        assert len(checkpoint.damage(folder)) == 1


def edited(folder: Path, change: Any) -> None:
    """A manifest of whoever knows how they are sealed."""
    from trainer.checkpoint.files import _seal

    told = checkpoint.manifest(folder)
    change(told)
    (folder / "COMPLETE").write_text(json.dumps(told | {"sha256": _seal(told)}))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (tmp_path / "evil").touch, ()

    (folder,) = made(tmp_path / "checkpoints", 1)
    np.savez(folder / "driver.npz", **{"allocation.seen": np.array([Evil()], dtype=object)})
    with pytest.raises(ValueError, match="driver's state cannot be read: Object arrays"):
        checkpoint.driver_state(folder)
    assert not (tmp_path / "evil").exists()
    with pytest.raises(AssertionError, match="would be pickled"):
        checkpoint.write(folder.parent, 2, fill, {"a": np.array([None])})
    assert not list(folder.parent.glob("step-000002*"))


def test_leftovers_go_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    (first,) = made(tmp_path / "checkpoints", 1)
    root = first.parent
    for name in ("step-000009.partial", "step-000008", "step-000001.old"):
        shutil.copytree(first, root / name)
    (root / "step-000008" / "COMPLETE").unlink()
    for name in ("step-000001-mine", "step-old"):
        (root / name).mkdir()
    assert checkpoint.complete(root) == [root / "step-000001.old", first]
    checkpoint.clean(root)
    assert {path.name for path in root.iterdir()} == {"step-000001", "step-000001-mine", "step-old"}


def test_what_is_beyond_the_one_gone_on_from_is_given_up(tmp_path: Path) -> None:
    """Else a damaged one would count among the newest, and the good ones be dropped for it."""
    one, two, three = made(tmp_path / "checkpoints", 1, 2, 3)
    checkpoint.abandon(one.parent, two)
    assert checkpoint.complete(one.parent) == [one, two]
    assert not three.exists()
