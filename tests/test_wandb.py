"""Risk: W&B, its process, its network or its disk stops a run, or shows other figures than ours."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import disks
from tests.fake_wandb import Fake
from tests.processes import alive, until
from tests.screens import console, said
from trainer import tracking, wandb_sink
from trainer.tracking import Tracker, TrackingConfig

OFFLINE = TrackingConfig(wandb="offline")


@pytest.fixture
def fake(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path_factory.mktemp("fake"), monkeypatch)


def log_until(tracker: Tracker, what: Callable[[], Any]) -> int:
    """Log steps until something is so; how many there are then."""

    def one() -> Any:
        tracker.log(tracker.last + 1, {"x": 1.0})
        return what()

    assert until(one)
    return tracker.last + 1


def test_an_error_is_said_once_and_the_run_goes_on(tmp_path: Path, fake: Fake) -> None:
    screen, stream = console()
    fake.wrong(**{"raise": 2})
    with Tracker(tmp_path, OFFLINE, console=screen) as tracker:
        steps = log_until(tracker, lambda: said(stream)) + 3
        for step in range(steps - 3, steps):
            tracker.log(step, {"x": float("nan"), "y": 1.0})
    why = "W&B: ConnectionError: no route to host; metrics.jsonl goes on without it"
    assert said(stream) == [why]
    assert len(tracking.read(tmp_path)) == steps
    assert fake.steps()[-1] == 2


def test_no_step_waits_for_a_call_that_blocks(tmp_path: Path, fake: Fake) -> None:
    screen, stream = console()
    fake.wrong(block=0)
    config = TrackingConfig(wandb="offline", wandb_patience=0.3)
    with Tracker(tmp_path, config, console=screen) as tracker:
        tracker.log(0, {"x": 0})
        assert until(fake.steps)
        child = tracker._wandb._process  # type: ignore[union-attr]
        assert child is not None
        filling = {"x": "x" * 100_000}  # more than a pipe holds
        tracker.log(1, filling)
        log_until(tracker, lambda: said(stream))
        assert child.returncode is not None, "it is gone"
    assert len(said(stream)) == 1
    assert said(stream)[0].startswith("W&B: no answer within ")


@pytest.mark.parametrize("how", ["fail", "hang"])
def test_an_outage_at_the_start(tmp_path: Path, fake: Fake, how: str) -> None:
    """A start that fails goes on offline; one that hangs is left behind."""
    screen, stream = console()
    fake.wrong(online=how)
    config = TrackingConfig(wandb="online", wandb_patience=0.2 if how == "hang" else 20)
    with Tracker(tmp_path, config, console=screen) as tracker:
        tracker.log(1, {"x": 1})
        log_until(tracker, lambda: said(stream))
    if how == "fail":
        assert said(stream) == [
            "W&B: TimeoutError: server is away; metrics go to an offline run; send them with "
            "`wandb sync`"
        ]
        assert [given["mode"] for given in fake.calls("init")] == ["online", "offline"]
        assert sorted(set(fake.steps())) == list(range(1, tracker.last + 1))
    else:
        assert said(stream)[0].startswith("W&B: no answer within ")
    ids = {given["id"] for given in fake.calls("init")}
    assert ids == {tracker.wandb_id} == {(tmp_path / tracking.WANDB_ID).read_text().strip()}


@pytest.mark.parametrize(("patience", "interrupted", "told"), [(0.7, False, 0.7), (60, True, 0.5)])
def test_a_finish_that_hangs_is_left_behind(
    tmp_path: Path, fake: Fake, patience: float, interrupted: bool, told: float
) -> None:
    """By who leaves at once (Ctrl-C twice) at once."""
    screen, stream = console()
    fake.wrong(finish=True)
    config = TrackingConfig(wandb="online", wandb_patience=patience)
    with suppress(KeyboardInterrupt), Tracker(tmp_path, config, console=screen) as tracker:
        tracker.log(1, {"x": 1})
        assert until(fake.steps)
        process = psutil.Process(tracker._wandb._process.pid)  # type: ignore[union-attr]
        if interrupted:
            raise KeyboardInterrupt
    assert not alive(process.pid)
    where = fake.folder / "run"
    assert said(stream) == [
        f"W&B: not finished within {told} s; the rest is in {where}: send it with `wandb sync`"
    ]


def test_online_a_step_is_sent_once_and_what_w_and_b_lacks_is_sent(
    tmp_path: Path, fake: Fake
) -> None:
    with Tracker(tmp_path, TrackingConfig(), console=console()[0]) as tracker:
        for step in range(5):
            tracker.log(step, {"x": step})
    fake.wrong(starting_step=3)  # there are 0 to 2
    online = TrackingConfig(wandb="online")
    with Tracker(tmp_path, online, console=console()[0], wandb_id="kept1234") as tracker:
        tracker.log(5, {"x": 5})
        assert until(lambda: 5 in fake.steps())
        tracker.rewind(3)
        for step in range(4, 7):
            tracker.log(step, {"x": step})
    sent = [step for step, values in fake.calls("log") if values == {"x": step}]
    assert sent == sorted(sent)
    assert set(sent) == {3, 4, 5, 6}
    assert {step for step in sent if sent.count(step) > 1} <= {5}, "what is added to the last one"
    assert tracker.wandb_id == "kept1234", "a checkpoint's, for want of the file"
    assert fake.calls("init")[0]["resume"] == "allow"


# The real one, offline


def records(folder: Path) -> dict[int, dict[str, Any]]:
    """Steps in the one offline record that is there."""
    from wandb.proto import wandb_internal_pb2 as messages

    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    data, at, whole = path.read_bytes(), 7, b""
    steps: dict[int, dict[str, Any]] = {}
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record, whole = messages.Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                }
                assert items["_step"] not in steps, "one value a step"
                own = {name: value for name, value in items.items() if name[0] != "_"}
                steps[items["_step"]] = own
    return steps


def core(tracker: Tracker) -> list[psutil.Process]:
    process = psutil.Process(tracker._wandb._process.pid)  # type: ignore[union-attr]
    return [child for child in process.children() if child.name() == "wandb-core"]


@pytest.mark.slow
def test_offline_record_is_that_of_metrics_whatever_happened(tmp_path: Path) -> None:
    """Rewound in one process, killed, gone on with by another."""
    with Tracker(tmp_path, OFFLINE, console=console()[0]) as tracker:
        first = tracker.wandb_id
        for step in range(6):
            tracker.log(step, {"x": step})
        tracker.rewind(3)
        for step in range(4, 6):
            tracker.log(step, {"x": step * 10})
        assert until(lambda: core(tracker))
        tracker._wandb._process.kill()  # type: ignore[union-attr]
    with Tracker(tmp_path, OFFLINE, first_step=4, console=console()[0]) as tracker:
        tracker.log(5, {"x": 55.5})
    assert tracker.wandb_id == first
    assert records(tmp_path) == {0: {"x": 0}, 1: {"x": 1}, 2: {"x": 2}, 3: {"x": 3},
                                 4: {"x": 40}, 5: {"x": 55.5}}  # fmt: skip
    assert str(first) in next((tmp_path / "wandb").glob("offline-run-*")).name


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_its_core_killed_or_stopped_in_the_middle(tmp_path: Path, how: signal.Signals) -> None:
    screen, stream = console()
    config = TrackingConfig(wandb="offline", wandb_patience=3)
    with Tracker(tmp_path, config, console=screen) as tracker:
        tracker.log(0, {"x": 0})
        assert until(lambda: core(tracker))
        assert until(lambda: list((tmp_path / "wandb").glob("offline-run-*")))
        (process,) = core(tracker)
        process.send_signal(how)
        for step in range(1, 4):
            tracker.log(step, {"x": step})
    assert len(said(stream)) == 1
    assert said(stream)[0].startswith("W&B: ")
    assert not alive(process.pid)
    assert len(tracking.read(tmp_path)) == 4


@pytest.mark.slow
def test_its_disk_full_and_its_record_made_anew(tmp_path: Path) -> None:
    screen, stream = console()
    with disks.small(tmp_path, "1m") as (folder, fill):
        with Tracker(folder, OFFLINE, console=screen) as tracker:
            tracker.log(0, {"x": 0})
            assert until(lambda: list((folder / "wandb").glob("offline-run-*")))
            fill(True)
            for step in range(1, 50):
                tracker.log(step, {f"x{i}": step + i for i in range(20)})
            fill(False)
            tracker.log(50, {"x": 50})
        steps = records(folder)
        assert list(steps) == list(range(51))
        assert steps[50] == {"x": 50}
    assert not [line for line in said(stream) if "without it" in line]


@pytest.mark.slow
def test_nothing_of_it_stays_behind_when_we_are_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from trainer.tracking import *\n"
        "t = Tracker(Path(sys.argv[1]), TrackingConfig(wandb='offline')); t.log(0, {'x': 1})\n"
        "time.sleep(60)"
    )
    temporary = tmp_path / "t"
    temporary.mkdir()
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    assert until(lambda: list(tmp_path.glob("run/wandb/offline-run-*")))
    theirs = psutil.Process(run.pid).children(recursive=True)
    assert {"wandb-core"} <= {process.name() for process in theirs}
    run.kill()
    run.wait()
    assert not psutil.wait_procs(theirs, timeout=30)[1]
    assert not list(temporary.iterdir())
    assert records(tmp_path / "run") == {0: {"x": 1}}


@pytest.mark.slow
def test_what_both_left_when_both_were_killed_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_sink.tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"{wandb_sink.PREFIX}dead").mkdir()
    with Tracker(tmp_path / "one", OFFLINE, console=console()[0]):
        (held,) = tmp_path.glob(f"{wandb_sink.PREFIX}*")
        with Tracker(tmp_path / "two", OFFLINE, console=console()[0]):
            assert held.is_dir(), "another run's"
            assert len(list(tmp_path.glob(f"{wandb_sink.PREFIX}*"))) == 2
    assert not list(tmp_path.glob(f"*{wandb_sink.PREFIX}*"))


def test_a_process_that_cannot_be_started_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, stream = console()
    monkeypatch.setattr(wandb_sink.tempfile, "tempdir", str(tmp_path / "nowhere"))
    with Tracker(tmp_path, OFFLINE, console=screen) as tracker:
        tracker.log(0, {"x": 0})
    assert said(stream)[0].startswith("W&B's process cannot be ")
    assert len(tracking.read(tmp_path)) == 1
