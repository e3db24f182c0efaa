"""What `laconic reward` prints: plain text for people, of the figures that --json gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

LISTED = 10
WIDTH = 100


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
    for status, count in sorted(result["statuses"].items(), key=lambda pair: -pair[1]):
        lines.append(f"{status:<12}{count:>8}{count / total:>9.2%}")
    lines.append("")
    if accuracy["n"]:
        lines.append(f"accuracy  {_interval(accuracy)} over {accuracy['n']} problems with verdicts")
        if "samples" in result:
            lines.append(
                f"          any of {result['samples']}: {result['any']:.3f}, "
                f"majority: {result['majority']:.3f}"
            )
        if abs(result["score"] - accuracy["value"]) > 1e-9 and "samples" not in result:
            lines.append(f"score     {result['score']:.3f}")
    if total < result["responses"]:
        lines.append(f"stopped after {total} of {result['responses']} responses")
    lines += [timed(timing), *_unknown(result["unknown"])]
    return "\n".join(lines)


def _interval(estimate: Mapping[str, Any]) -> str:
    if math.isnan(estimate["low"]):  # one row says nothing of spread
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def timed(timing: Mapping[str, Any]) -> str:
    """Grader, throughput, and the latencies of what went through processes."""
    seconds = max(timing["seconds"], 1e-9)
    line = (
        f"grader    {timing['grader']}: {timing['verdicts']} verdicts in {seconds:.2f} s "
        f"({timing['verdicts'] / seconds:.0f}/s)"
    )
    if "latency_p50" in timing:
        p50, p99, most = (ms(timing[f"latency_{q}"]) for q in ("p50", "p99", "max"))
        line += f"; in processes: p50 {p50}, p99 {p99}, max {most}"
    counted = ("at_once", "cached", "slow", "killed", "crashed")
    told = [f"{timing[k]:.0f} {k.replace('_', ' ')}" for k in counted if timing.get(k)]
    return line + (f"; {', '.join(told)}" if told else "")


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def _unknown(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return []
    more = [f"  ... and {len(rows) - LISTED} more"] if len(rows) > LISTED else []
    return [
        "",
        f"unknown ({len(rows)}), in no figure above:",
        *(f"  {r['row']} {r['status']}: {clean(r['detail'])}" for r in rows[:LISTED]),
        *more,
    ]


def differences(result: Mapping[str, Any]) -> str:
    """Statuses of one grader against the other's, then the findings, worst first."""
    first, second = (t["grader"] for t in result["timing"])
    counts = {(a, b): n for a, b, n in result["table"]}
    across = sorted({b for _, b in counts})
    width = max(map(len, across)) + 2
    corner = "first \\ second"
    lines = [f"{corner:<16}" + "".join(f"{b:>{width}}" for b in across)]
    for a in sorted({a for a, _ in counts}):
        row = "".join(f"{counts.get((a, b), 0) or '.':>{width}}" for b in across)
        lines.append(f"{a:<16}{row}")
    known, agree = result["known"], result["agree"]
    share = f"{agree / known:.2%}" if known else "none"
    kappa = result["kappa"]
    lines += [
        "",
        f"agree on {agree} of {known} answers that both could judge ({share})"
        + ("" if math.isnan(kappa) else f"; kappa {kappa:.3f}"),
        *(
            f"{name} {timed(t)}"
            for name, t in zip(("first ", "second"), result["timing"], strict=True)
        ),
    ]
    titles = {
        "false accept": f"likely false accepts of {first} ({second} rejects)",
        "false reject": f"likely false rejects of {first} ({second} accepts)",
        "unknown": "one of them could not judge",
    }
    for kind, title in titles.items():
        lines += _findings(title, result["answers"][kind], result["findings"][kind])
    return "\n".join(lines)


def _findings(title: str, answers: int, found: Mapping[str, Any]) -> list[str]:
    kinds, shown = found["different"], found["shown"]
    lines = ["", f"{title}: {answers} answers, {kinds} different"]
    for f in shown:
        times = f" x{len(f['where'])}" if len(f["where"]) > 1 else ""
        lines.append(
            f"  {f['weight']:+d}  gold {clean(f['gold'])} <- {clean(f['written']) or '(nothing)'}"
            f"   [{f['first']} / {f['second']}]  {f['where'][0]}{times}"
        )
        details = "; ".join(filter(None, (*f["why"], clean(f["detail"]))))
        lines += [f"      {details}"] if details else []
    if kinds > len(shown):
        lines.append(f"  ... and {kinds - len(shown)} more: --show {kinds}, or --out FILE")
    return lines


def clean(text: str) -> str:
    """One short line that a terminal can show, whatever a model wrote."""
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def speed(result: Mapping[str, Any]) -> str:
    """What `laconic reward bench` measured."""
    once, pool = result["at_once"], result["pool"]
    rate = f"{once['per_second']:.0f} verdicts/s on one core" if once["per_second"] else "none"
    lines = [
        f"{result['grader']}, {result['different']} different answers",
        f"at once       {once['share']:.1%} of answers, {rate}",
        f"by the pool   {_rate(pool)}; {_each(pool)}",
        *_latencies(pool),
        f"memory        {pool['memory_mib']:.0f} MiB, {pool['grown_mib']:+.1f} MiB over "
        f"{pool['verdicts']} verdicts",
    ]
    if "hanging" in result:
        sick = result["hanging"]
        lines += [f"hanging       {sick['hanging']} of {_rate(sick)}", *_latencies(sick)]
    return "\n".join(lines)


def _each(pool: Mapping[str, Any]) -> str:
    if not pool["workers"]:
        return "in this process"
    return f"{pool['per_second_and_worker']:.0f}/s a worker, of {pool['workers']}"


def _rate(timing: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{n} {status}" for status, n in sorted(timing["statuses"].items()))
    rate = timing["verdicts"] / max(timing["seconds"], 1e-9)
    return f"{timing['verdicts']} verdicts, {rate:.0f}/s: {counts}"


def _latencies(timing: Mapping[str, Any]) -> list[str]:
    return [
        f"  {name:<12}" + ", ".join(f"{q} {ms(timing[f'{name}_{q}'])}" for q in found)
        for name in ("latency", "wait", "others")
        if (found := [q for q in ("p50", "p99", "max") if f"{name}_{q}" in timing])
    ]
