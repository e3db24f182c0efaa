"""What `laconic reward` prints: plain text for people, of the figures that --json gives."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from rewards.verdict import Status

LISTED = 10
WIDTH = 80
"""Columns of a terminal."""
SHOWN = 100
"""Characters of a text that are shown."""
ORDER = {status: place for place, status in enumerate(get_args(Status))}


def grades(result: Mapping[str, Any]) -> str:
    """Statuses, accuracy and speed of one grading; what is unknown row by row."""
    columns, timing, accuracy = result["columns"], result["timing"], result["accuracy"]
    total = timing["verdicts"]
    lines = [
        f"{result['rows']} rows, {result['responses']} responses; answer: {columns['answer']}, "
        f"response: {columns['response']}",
        "",
        f"{'status':<12}{'count':>8}{'share':>9}",
    ]
    for status, count in sorted(result["statuses"].items(), key=lambda pair: ORDER[pair[0]]):
        lines.append(f"{status:<12}{count:>8}{count / total:>9.2%}")
    lines.append("")
    if not accuracy["n"]:
        lines.append("accuracy  none: no verdict is known")
    else:
        lines.append(f"accuracy  {_interval(accuracy)} over {_problems(result)}")
        if "samples" in result:
            lines.append(
                f"          any of {result['samples']}: {result['any']:.3f}, "
                f"majority: {result['majority']:.3f}"
            )
        if abs(result["score"] - accuracy["value"]) > 1e-9 and "samples" not in result:
            lines.append(f"score     {result['score']:.3f}")
    if total < result["responses"]:
        lines.append(f"stopped after {total} of {result['responses']} responses")
    lines += [f"grader    {timing['grader']}", *timed(timing), *_unknown(result["unknown"])]
    return "\n".join(lines)


def _problems(result: Mapping[str, Any]) -> str:
    known, problems = result["accuracy"]["n"], result["problems"]
    count = f"{known}" if known == problems else f"{known} of {problems}"
    return f"{count} problem{'s' * (problems > 1)}"


def _interval(estimate: Mapping[str, Any]) -> str:
    if math.isnan(estimate["low"]):  # one row says nothing of spread
        return f"{estimate['value']:.3f}"
    low, high = max(estimate["low"], 0.0), min(estimate["high"], 1.0)
    return f"{estimate['value']:.3f} [{low:.3f}, {high:.3f}]"


def timed(timing: Mapping[str, Any]) -> list[str]:
    """Throughput, and the latencies of what went through processes."""
    seconds = max(timing["seconds"], 1e-9)
    counted = ("at_once", "cached", "slow", "killed", "crashed", "retried")
    told = [f"{timing[k]:.0f} {k.replace('_', ' ')}" for k in counted if timing.get(k)]
    done = timing["verdicts"]
    rate = f"{done} verdicts in {seconds:.2f} s ({done / seconds:.0f}/s)"
    lines = [f"speed     {rate}" + (f": {', '.join(told)}" if told else "")]
    if "latency_p50" in timing:
        p50, p99, most = (ms(timing[f"latency_{q}"]) for q in ("p50", "p99", "max"))
        lines.append(f"          in processes: p50 {p50}, p99 {p99}, max {most}")
    return lines


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def _unknown(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Rows by what went wrong: the first of each, and how many more."""
    if not rows:
        return []
    alike: dict[tuple[str, str], list[str]] = {}
    for r in rows:
        alike.setdefault((r["status"], clean(r["detail"], 2 * SHOWN)), []).append(r["row"])
    lines = ["", f"unknown ({len(rows)}), in no figure above:"]
    for (status, detail), names in list(alike.items())[:LISTED]:
        more = f"  (and {len(names) - 1} more)" if len(names) > 1 else ""
        lines.append(f"  {names[0]} {status}: {detail}{more}")
    if len(alike) > LISTED:
        lines.append(f"  ... and {len(alike) - LISTED} other reasons: --json, or --out FILE")
    return lines


def differences(result: Mapping[str, Any]) -> str:
    """Statuses of one grader against the other's, then the findings, worst first."""
    counts = {(a, b): n for a, b, n in result["table"]}
    across = sorted({b for _, b in counts}, key=ORDER.__getitem__)
    width = max(map(len, across)) + 2
    corner = "first \\ second"
    lines = [f"{corner:<16}" + "".join(f"{b:>{width}}" for b in across)]
    for a in sorted({a for a, _ in counts}, key=ORDER.__getitem__):
        row = "".join(f"{counts.get((a, b), 0) or '.':>{width}}" for b in across)
        lines.append(f"{a:<16}{row}")
    known, agree = result["known"], result["agree"]
    share = f"{agree / known:.2%}" if known else "none"
    kappa = result["kappa"]
    lines += [
        "",
        f"agree on {agree} of {known} answers that both could judge ({share})"
        + ("" if math.isnan(kappa) else f"; kappa {kappa:.3f}"),
    ]
    for name, t in zip(("first", "second"), result["timing"], strict=True):
        lines += [f"{name:<10}{t['grader']}", *timed(t)]
    titles = {
        "false accept": "likely false accepts (the first says right, the second wrong)",
        "false reject": "likely false rejects (the first says wrong, the second right)",
        "unknown": "one of them could not judge",
    }
    for kind, title in titles.items():
        lines += _findings(title, result["answers"][kind], result["findings"][kind])
    return "\n".join(lines)


def _findings(title: str, answers: int, found: Mapping[str, Any]) -> list[str]:
    kinds, shown = found["different"], found["shown"]
    lines = ["", f"{title}: {answers or 'none'}"]
    lines[-1] += f", {kinds} different" if kinds < answers else ""
    for f in shown:
        times = f" x{len(f['where'])}" if len(f["where"]) > 1 else ""
        lines.append(
            f"  {f['weight']:+d}  {f['where'][0]}{times}  first {f['first']}, second {f['second']}"
        )
        gold, written = clean(f["gold"]), clean(f["written"]) or "(nothing)"
        apart = " <- " if len(gold) + len(written) < WIDTH - 15 else "\n       <- "
        lines.append(f"      gold {gold}{apart}{written}")
        lines += textwrap.wrap(
            "; ".join(filter(None, (*f["why"], clean(f["detail"])))),
            WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6,
        )  # fmt: skip
    if kinds > len(shown):
        lines.append(f"  ... and {kinds - len(shown)} more: --show {kinds}, or --out FILE")
    return lines


def clean(text: str, most: int = SHOWN) -> str:
    """One short line that a terminal can show, whatever a model wrote."""
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def speed(result: Mapping[str, Any]) -> str:
    """What `laconic reward bench` measured."""
    once, pool = result["at_once"], result["pool"]
    rate = f", {once['per_second']:.0f} verdicts/s on one core" if once["per_second"] else ""
    which = "the others" if 0 < once["share"] < 1 else "all"
    each = f"{pool['per_second_and_worker']:.0f}/s in each of {pool['workers']} processes"
    lines = [
        f"grader        {result['grader']}",
        f"at once       {once['share']:.1%} of {result['different']} different answers{rate}",
        f"{which:<14}{_rate(pool)}" + (f": {each}" if pool["workers"] else ""),
        *_latencies(pool),
        f"memory        {pool['memory_mib']:.0f} MiB, {pool['grown_mib']:+.1f} MiB over "
        f"{pool['verdicts']} verdicts",
    ]
    if "hanging" in result:
        sick = result["hanging"]
        lines += [f"hanging       {sick['hanging']} of {_rate(sick)}", *_latencies(sick)]
    return "\n".join(lines)


def _rate(timing: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{n} {status}" for status, n in sorted(timing["statuses"].items()))
    rate = timing["verdicts"] / max(timing["seconds"], 1e-9)
    return f"{timing['verdicts']} verdicts ({counts}), {rate:.0f}/s"


def _latencies(timing: Mapping[str, Any]) -> list[str]:
    return [
        f"  {name:<12}" + ", ".join(f"{q} {ms(timing[f'{name}_{q}'])}" for q in found)
        for name in ("latency", "wait", "others")
        if (found := [q for q in ("p50", "p99", "max") if f"{name}_{q}" in timing])
    ]
