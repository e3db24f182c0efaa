"""Risk: a trace that lies about time, misses a process, changes the run, or dies with it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import here
from trainer.config import Recipe, load
from trainer.metrics import MACHINE
from trainer.trace import Part, Watch, merge

SMALL = (
    "prompts_per_step=4", "rollouts_per_prompt=4", "rollout.max_tokens=96", "evaluation=null",
    "tokens_per_micro_batch=512",
)  # fmt: skip
Span = dict[str, Any]


class Trace:
    """A trace file, checked: whole spans that nest on every row, counters, named processes."""

    def __init__(self, path: Path) -> None:
        events = json.loads(path.read_text())["traceEvents"]
        names = {(e["pid"], e["name"], e["tid"]): e["args"] for e in events if e["ph"] == "M"}
        self.processes = {
            p: a["name"] for (p, what, _), a in names.items() if what == "process_name"
        }
        self.rows: dict[tuple[str, str], list[Span]] = defaultdict(list)
        self.counters: dict[tuple[str, str], list[Span]] = defaultdict(list)
        for event in events:
            process = self.processes[event["pid"]]
            assert event["ph"] in ("M", "X", "C")
            if event["ph"] == "X":
                assert event["ts"] >= 0
                assert event["dur"] >= 0
                row = names[event["pid"], "thread_name", event["tid"]]["name"]
                self.rows[process, row].append(event)
            elif event["ph"] == "C":
                self.counters[process, event["name"]].append(event)
        for spans in self.rows.values():
            spans.sort(key=lambda e: (e["ts"], -e["dur"]))
            nested(spans)

    def spans(self, process: str, name: str) -> list[Span]:
        """All of that name, on whatever row."""
        every = [e for (p, _), row in self.rows.items() if p == process for e in row]
        return sorted((e for e in every if e["name"] == name), key=lambda e: e["ts"])

    def count(self, process: str) -> dict[str, int]:
        counts: dict[str, int] = defaultdict(int)
        for (owner, _), row in self.rows.items():
            for event in row if owner == process else ():
                counts[event["name"]] += 1
        return dict(counts)

    def covered(self, process: str, row: str, span: Span) -> float:
        """Share of `span`'s time in which the row is in some span."""
        first, last = span["ts"], span["ts"] + span["dur"]
        total, until = 0.0, first
        for event in self.rows[process, row]:
            begin, end = max(event["ts"], until), min(event["ts"] + event["dur"], last)
            total += max(0.0, end - begin)
            until = max(until, end)
        return total / span["dur"]


def nested(spans: list[Span], slack_us: float = 0.01) -> None:
    """Each lies within the one that it began in."""
    open_: list[float] = []
    for span in spans:
        end = span["ts"] + span["dur"]
        while open_ and open_[-1] <= span["ts"] + slack_us:
            open_.pop()
        assert not open_ or end <= open_[-1] + slack_us, span
        open_.append(end)


def inside(span: Span, others: list[Span], slack_us: float) -> bool:
    """Whether it lies within one of the others."""
    end = span["ts"] + span["dur"]
    return any(
        o["ts"] - slack_us <= span["ts"] and end <= o["ts"] + o["dur"] + slack_us for o in others
    )


def recipe(folder: Path, *settings: str) -> Recipe:
    return load("grpo/find", (f"output={folder}", "steps=4", *SMALL, *settings))


def same(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    of_the_machine = (*MACHINE, "seconds", "peak_memory_mb")
    return [{k: v for k, v in s.items() if not k.startswith(of_the_machine)} for s in metrics]


def test_a_run_traced(tmp_path: Path) -> None:
    """Three of its four steps, in every row, and the run is the one that it would have been."""
    plain = here.run(recipe(tmp_path / "plain", "evaluation={every: 2, problems: 4, budgets: [8]}"))
    traced = recipe(tmp_path / "traced", "evaluation={every: 2, problems: 4, budgets: [8]}")
    assert same(here.run(traced, profile=3)) == same(plain)
    trace = Trace(traced.folder / "trace.json")
    assert list(trace.processes.values()) == ["driver", "learner-0", "rollout-0", "grader-0"]
    steps = trace.rows["driver", "steps"]
    assert [s["name"] for s in steps] == ["step 1", "step 2", "step 3"]
    for step in steps:
        assert trace.covered("driver", "MainThread", step) > 0.95
    lines = (
        "sample",
        "generate",
        "verify",
        "reward",
        "annotate",
        "credit",
        "pack",
        "train",
        "sync",
    )
    driver = trace.count("driver")
    assert all(driver[line] == 3 for line in (*lines, "finish")), driver
    assert driver["evaluate"] == 2  # before the first step, and after the second
    learner = trace.count("learner-0")
    assert learner["train"] == learner["update"] == learner["optimiser"] == 3
    assert learner["forward"] == learner["backward"] >= 3
    assert trace.count("rollout-0")["generate"] == 3 + 2
    assert trace.count("rollout-0")["load_weights"] == 3
    assert trace.count("grader-0")["verify"] == 3 + 2
    for process, name, inner in (("learner-0", "train", "train"), ("rollout-0", "generate", None)):
        around = trace.spans("driver", inner) if inner else trace.spans("driver", "generate")
        spans = [s for s in trace.spans(process, name) if s["ts"] >= steps[0]["ts"]]
        where = around + trace.spans("driver", "evaluate")
        assert all(inside(s, where, slack_us=5) for s in spans)
    assert not (traced.folder / "profile" / "parts").exists()


def test_engine_steps_are_told_by_intervals(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    metrics = here.run(made, profile=4)
    trace = Trace(made.folder / "trace.json")
    shares = trace.counters["rollout-0", "time"]
    for event in shares:
        assert set(event["args"]) == {"prefill", "decode", "idle"}
        assert sum(event["args"].values()) in (0, pytest.approx(1, abs=1e-6))
    # rates times the intervals that they hold for are the tokens that were sampled
    sampled, rates = 0.0, trace.counters["rollout-0", "tokens per s"]
    for one, after in pairwise(rates):
        sampled += one["args"]["sampled"] * (after["ts"] - one["ts"]) / 1e6
    assert sampled == pytest.approx(sum(s["tokens/sampled"] for s in metrics), rel=1e-3)
    requests = [e["args"]["in flight"] for e in trace.counters["rollout-0", "requests"]]
    assert 1 <= max(requests) <= 16
    assert requests[-1] == 0


def test_operators_of_a_step(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    here.run(made, profile=3)
    folder = made.folder / "profile"
    for name, operator in (("learner-0", "backward"), ("rollout-0", "aten::")):
        by_time, by_memory = (folder / f"{name}.txt").read_text().split("\n\n\n")[:2]
        assert operator in by_time.lower()
        assert "CPU Mem" in by_memory
        with gzip.open(folder / f"{name}.json.gz") as stream:
            assert len(json.load(stream)["traceEvents"]) > 100


def test_without_it_nothing_is_watched(tmp_path: Path) -> None:
    made = recipe(tmp_path, "steps=1")
    here.run(made)
    assert not (made.folder / "trace.json").exists()
    assert not (made.folder / "profile").exists()


def test_generating_while_training_is_seen(tmp_path: Path) -> None:
    made = recipe(tmp_path, "max_staleness=1", "deterministic=false")
    here.run(made, profile=4)
    trace = Trace(made.folder / "trace.json")
    producer = [row for process, row in trace.rows if process == "driver" and row == "sampling"]
    assert producer, trace.rows.keys()
    trains = trace.spans("driver", "train")
    generates = [s for s in trace.rows["driver", "sampling"] if s["name"] == "generate"]
    assert len(trains) == len(generates) == 4
    assert any(
        g["ts"] < t["ts"] + t["dur"] and t["ts"] < g["ts"] + g["dur"]
        for g in generates
        for t in trains
    )
    assert trace.count("driver")["wait"] >= 4


def test_a_run_that_fails_keeps_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, step = recipe(tmp_path), here.Here.step

    def failing(world: here.Here, batch: Any) -> Any:
        if world.version:
            raise RuntimeError("the second step")
        return step(world, batch)

    monkeypatch.setattr(here.Here, "step", failing)
    with pytest.raises(RuntimeError, match="the second step"):
        here.run(made, profile=3)
    trace = Trace(made.folder / "trace.json")
    assert [s["name"] for s in trace.rows["driver", "steps"]] == ["step 1"]
    assert (trace.count("driver")["train"], trace.count("rollout-0")["generate"]) == (2, 2)


def test_what_a_killed_process_was_at_is_there(tmp_path: Path) -> None:
    """Its last line is half written, and its spans have no end."""
    part = Part(tmp_path / "parts", "learner-0")
    with part.span("train"), part.span("forward"):
        text = (tmp_path / "parts" / "learner-0.jsonl").read_text()
    part.close()
    (tmp_path / "parts" / "learner-0.jsonl").write_text(text + '{"ph":"E","ti')
    driver = Part(tmp_path / "parts", "driver")
    with driver.span("train"):
        pass
    merge(tmp_path / "parts", tmp_path / "trace.json")
    trace = Trace(tmp_path / "trace.json")
    spans = trace.spans("learner-0", "train") + trace.spans("learner-0", "forward")
    assert [s["args"] for s in spans] == [{"unfinished": True}] * 2
    (last,) = trace.spans("driver", "train")
    assert all(s["ts"] + s["dur"] == pytest.approx(last["ts"] + last["dur"]) for s in spans)


def test_threads_that_are_in_spans_at_once_have_rows_of_their_own(tmp_path: Path) -> None:
    part, together = Part(tmp_path, "one"), threading.Barrier(3)

    def work() -> None:
        with part.span("outer"):
            together.wait(timeout=10)
            with part.span("inner"):
                together.wait(timeout=10)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    merge(tmp_path, tmp_path / "trace.json")
    trace = Trace(tmp_path / "trace.json")
    assert {row for _, row in trace.rows} == {"call", "call 2", "call 3"}
    assert all([e["name"] for e in row] == ["outer", "inner"] for row in trace.rows.values())


def test_a_watch_leaves_things_as_they_were(tmp_path: Path) -> None:
    class Thing:
        def work(self, items: list[int]) -> Any:
            return (item for item in items)

    thing, watch = Thing(), Watch(Part(tmp_path, "one"))
    watch.spans(thing, {"work": "working"})
    for _ in range(2):
        helper = threading.Thread(target=lambda: list(thing.work([1, 2])), name="helping")
        helper.start()
        helper.join()
    assert list(thing.work([5, 6, 7])) == [5, 6, 7]
    with ThreadPoolExecutor(3) as pool:  # nameless threads, one after the other: one row
        for _ in range(3):
            pool.submit(lambda: thing.work([])).result()
    watch.close()
    assert "work" not in vars(thing)
    assert list(thing.work([8])) == [8]
    merge(tmp_path, tmp_path / "trace.json")
    trace = Trace(tmp_path / "trace.json")
    assert set(trace.rows) == {("one", row) for row in ("MainThread", "call", "helping")}
    # a call, each of its items, and its end
    assert [len(trace.rows["one", r]) for r in ("MainThread", "call", "helping")] == [5, 3, 8]
    assert trace.rows["one", "MainThread"][0]["args"] == {"items": 3}


def train(folder: Path, *settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch.cli", "train", "grpo/find", f"output={folder}"]
    return subprocess.Popen(
        [*command, *SMALL, *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_processes_of_a_fleet_share_one_clock(tmp_path: Path) -> None:
    run = train(tmp_path, "steps=3", "rollout.workers=2", "--profile", "2")
    out, error = run.communicate(timeout=200)
    assert run.returncode == 0, error[-3000:]
    folder = tmp_path / "grpo-find-seed0"
    assert f"{folder / 'trace.json'} (open it at ui.perfetto.dev)" in out
    assert "bound by " in out
    trace = Trace(folder / "trace.json")
    processes = ["driver", "learner-0", "rollout-0", "rollout-1", "grader-0"]
    assert list(trace.processes.values()) == processes
    steps = trace.rows["driver", "steps"]
    assert len(steps) == 2
    assert all(trace.covered("driver", "MainThread", step) > 0.95 for step in steps)
    for process, name, caller in (
        ("learner-0", "train", "train"),
        ("learner-0", "publish", "sync"),
        ("rollout-0", "generate", "generate"),
        ("rollout-1", "generate", "generate"),
        ("rollout-1", "receive", "sync"),
        ("grader-0", "verify", "verify"),
    ):
        spans = trace.spans(process, name)
        assert len(spans) == 2, (process, name)
        where = trace.spans("driver", caller)
        assert all(inside(s, where, slack_us=2000) for s in spans), (process, name)
    files = {f.name for f in (folder / "profile").iterdir()}
    assert {"learner-0.txt", "rollout-0.txt", "rollout-1.json.gz"} <= files


@pytest.mark.slow
def test_an_engine_that_is_killed_is_in_the_trace(tmp_path: Path) -> None:
    run = train(tmp_path, "steps=30", "--profile", "20")
    metrics = tmp_path / "grpo-find-seed0" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert run.poll() is None, run.communicate()[1][-3000:]
        time.sleep(0.1)
    below = psutil.Process(run.pid).children(recursive=True)
    (engine,) = [p for p in below if "RolloutActor" in "".join(p.cmdline())]
    engine.kill()
    _, error = run.communicate(timeout=100)
    assert run.returncode == 0, error[-3000:]
    assert "engine 0 died" in (metrics.parent / "faults.jsonl").read_text()
    trace = Trace(metrics.parent / "trace.json")
    assert len(trace.rows["driver", "steps"]) >= 2
    assert len(trace.spans("rollout-0", "generate")) >= 2
    assert len(trace.spans("learner-0", "train")) >= 2
