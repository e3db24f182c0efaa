"""What the READMEs say is there: files they link, components they name, the recipe they show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launch.cli import main
from samplers import seam
from trainer.components import COMPONENTS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(p for p in ROOT.rglob("README.md") if not any(x[0] == "." for x in p.parts[1:]))
TEXT = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("field", ["algorithm", "shaping", "verifier", "budget", "allocation"])
def test_the_table_names_all_that_ships(field: str) -> None:
    (row,) = re.findall(rf"^\|[^|]*\| `{field}` \| ([^|]*) \|$", TEXT, re.MULTILINE)
    shipped = [n for n in seam.names(COMPONENTS[field]) if n != "base"]
    assert sorted(row.split(", ")) == sorted(shipped)


def test_the_recipe_shown_resolves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (shown,) = re.findall(r"```yaml\n(# mine.yaml\n.*?)```", TEXT, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(shown)
    row = json.dumps({"question": "A1+1-2?", "target": "2"}) + "\n"
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(row)
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "mine.yaml", "model.path=base/find", "rollout.max_tokens=512"]) == 0
    assert "prompts          64" in capsys.readouterr().out


def test_the_allocator_shown_works() -> None:
    """Asked twice where it was not solved."""
    from tests.test_asks import Returning, step

    text = (ROOT / "samplers" / "allocation" / "README.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope: dict[str, object] = {}
    exec(shown, scope)
    allocator = scope["Allocator"](None, 3, 8)  # type: ignore[operator]
    out = step(allocator.allocate, Returning())
    assert [len(group) for group in out.groups] == [8, 8, 8]  # only a prompt's sixth is right
    assert not out.discarded
