"""A `wandb` for processes to import: what it is told to do wrong, and what it was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FAKE = '''
"""Just enough of W&B; what it is told to do wrong stands in a file."""
import json, os, pathlib, time
HERE = pathlib.Path(os.environ["FAKE_WANDB"])
def wrong(): return json.loads((HERE / "wrong").read_text())
def note(*what):
    with (HERE / "calls").open("a") as file: file.write(json.dumps(what) + "\\n")
class Settings:
    def __init__(self, **given): note("settings", given)
class Run:
    id, dir = "abc", str(HERE / "run" / "files")
    def __init__(self): self.starting_step = wrong().get("starting_step", 0)
    def log(self, values, step):
        note("log", step, values)
        if step == wrong().get("raise"): raise ConnectionError("no route to host")
        if step == wrong().get("block"): time.sleep(60)
    def alert(self, **given): note("alert", given)
    def finish(self):
        if wrong().get("finish"): time.sleep(60)
        note("finish")
def init(**given):
    given.pop("settings")
    note("init", given)
    how = wrong().get(given["mode"])
    if how == "hang": time.sleep(60)
    if how == "fail": raise TimeoutError("server is away")
    return Run()
'''


class Fake:
    """A `wandb` module that processes import instead of the real one."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "wandb.py").write_text(FAKE)
        patch.syspath_prepend(folder)
        patch.setenv("FAKE_WANDB", str(folder))
        self.wrong()

    def wrong(self, **what: Any) -> None:
        """What goes wrong: `online=` "fail" or "hang", `raise=` or `block=` a step, `finish=`."""
        (self.folder / "wrong").write_text(json.dumps(what))

    def calls(self, kind: str) -> list[Any]:
        """What `wandb.init`, `run.log`, ... were given so far."""
        path = self.folder / "calls"
        made = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [rest if len(rest) > 1 else rest[0] for name, *rest in made if name == kind if rest]

    def steps(self) -> list[int]:
        return [step for step, _ in self.calls("log")]
