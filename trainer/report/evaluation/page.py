"""The page of an evaluation: one file, no network, light and dark, wide and narrow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.report import parts
from trainer.report.evaluation import table
from trainer.report.evaluation.models import EXPERIMENTS, Model
from trainer.report.evaluation.panels import Sheet
from trainer.report.parts import grid, named, text
from trainer.report.style import Figure

READ, CARDS = 4, 3
"""Problems to read, and most ways of asking of one model beside each other."""
SKIPPED = ("identity", "asked", "server", "version")
"""Of eval.json: told twice, or elsewhere."""
CSS = """
h2.task{margin-top:3.6rem;padding-top:.5rem;border-top:1px solid var(--rule);font-size:1.35rem}
td small+small{margin-top:.1rem}
.warn{list-style:none;padding:0;margin:.8rem 0 0}
.warn li{border-left:3px solid var(--s1);padding:.1rem .7rem;margin:.35rem 0}
.card .head{flex-wrap:wrap;gap:.1rem 1rem}
.card .head .sign{color:inherit}
.all td,.all th{padding:.12rem .42rem;font-size:.8rem}
"""


def render(
    models: Sequence[Model],
    sheets: Sequence[tuple[Sheet, Sequence[Figure]]],
    show: Sequence[str] = (),
) -> str:
    names = ", ".join(m.name for m in models if not m.baseline or len(models) == 1)
    pieces = [f"<header><h1>{text(names)}</h1>{_lede(models, sheets)}</header>", _findings(models)]
    for sheet, figures in sheets:
        if sheet.prefix:
            pieces.append(f"<h2 class=task>{text(sheet.task)}</h2>")
        pieces += [_summary(sheet, show), *(parts.figure(shown) for shown in figures)]
        pieces += [_kept(sheet), _contrasts(sheet), _read(sheet)]
    pieces += [_across(models, show), _settings(models), _every(models)]
    return parts.document(names, pieces, CSS)


def _lede(models: Sequence[Model], sheets: Sequence[tuple[Sheet, Sequence[Figure]]]) -> str:
    """One sentence a model and task."""
    lines = []
    for model in models:
        for sheet, _ in sheets:
            right, spent = (
                model.estimate(f"{sheet.task}/{name}@inf").value for name in ("accuracy", "tokens")
            )
            if right == right:
                where = f" on {text(sheet.task)}" if sheet.prefix else ""
                kind = " (baseline)" if model.baseline else ""
                lines.append(
                    f"<li>{named(model.name, model.index)}{kind} accuracy {right:.3f} with "
                    f"{spent:,.1f} tokens a sample{where}</li>"
                )
    return f"<ul class=lede>{''.join(lines)}</ul>"


def _findings(models: Sequence[Model]) -> str:
    """What is wrong, where something is."""
    lines = "".join(
        f"<li>{named(model.name, model.index) if len(models) > 1 else ''} {text(line)}</li>"
        for model in models
        for line in model.findings
    )
    if not lines:
        return ""
    return f"<section><h2>To know first</h2><ul class=warn>{lines}</ul></section>"


def _summary(sheet: Sheet, show: Sequence[str]) -> str:
    heads = table.columns(sheet.models, sheet.task, show)
    blocks = _headed(sheet.models, heads)
    health = table.columns(sheet.models, sheet.task, heads=table.HEALTH)
    for kind, experiment in EXPERIMENTS.items():
        order, found = table.by_budget(sheet.models, sheet.task, kind)
        if found:
            lines = [(s.model, [table.budget_cell(s, at) for at in order]) for s in found]
            names = ["no limit" if at == "inf" else at for at in order]
            blocks += f"<h3>Accuracy, {experiment.title}</h3>{_cells(names, lines)}"
    if health:
        blocks += f"<h3>Too long, too short, not graded</h3>{_headed(sheet.models, health)}"
    return (
        f"<section><h2>Summary</h2>{blocks}<p class=note>{sheet.measured()} &plusmn;: 95% interval "
        "for problems like these (the problem is the unit; t, or bootstrap of ratios); set "
        "&plusmn;: for these very problems, which more samples make smaller. Any-time: mean "
        "accuracy over the budgets, octaves weighing the same. Area: accuracy where a thought must "
        "end by itself under a cap, mean over caps. E3: accuracy squared per token. "
        "Harm: right at an earlier budget and wrong at the end; waste: share of a right thought "
        "after its answer was settled; left a right idea: share of a wrong thought after its first "
        "right answer; compression: tokens saved at a loss of so much accuracy.</p></section>"
    )


def _headed(models: Sequence[Model], heads: Mapping[str, str]) -> str:
    """A line a model, of metrics by name."""
    rows = [(m, [table.cell(m.metrics.get(name), name) for name in heads]) for m in models]
    return _cells(list(heads.values()), rows) if heads else ""


def _cells(heads: Sequence[str], rows: Sequence[tuple[Model, Sequence[table.Cell]]]) -> str:
    top = "".join(f"<th scope=col>{text(head)}</th>" for head in heads)
    body = "".join(
        f"<tr><th scope=row>{named(model.name, model.index)}</th>"
        + "".join(f"<td>{_cell(c)}</td>" for c in cells)
        + "</tr>"
        for model, cells in rows
    )
    return (
        f"<div class=scroll><table><thead><tr><th></th>{top}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(found: table.Cell) -> str:
    small = "".join(f"<small>{text(t).replace('+-', '&plusmn;')}</small>" for t in found.below)
    return text(found.value) + small


def _kept(sheet: Sheet) -> str:
    cells = table.kept(sheet.models, sheet.task)
    if not cells:
        return ""
    return (
        f"<section><h2>How announced budgets were kept</h2>{grid(*cells)}<p class=note>Nothing "
        "cut. Deviation: mean of |used - asked| / asked; over: share of samples that think longer; "
        "overshoot: mean excess over asked; used: mean of used / asked; leak: answer tokens, over "
        "those without a budget.</p></section>"
    )


def _contrasts(sheet: Sheet) -> str:
    rows = table.contrasts(sheet.models, sheet.task)
    if not rows:
        return ""
    return (
        f"<section><h2>Paired comparisons</h2>{grid(table.CONTRAST_HEADS, *rows)}<p class=note>"
        "The same problems on both sides, without a limit. p (t): paired t test; p (flip): "
        "sign-flip permutation test. Not corrected for the number of comparisons.</p></section>"
    )


def _read(sheet: Sheet) -> str:
    """The same problems as each model thinks about them."""
    found: dict[str, list[tuple[Model, Mapping[str, Any]]]] = {}
    for model in sheet.models:
        seen: dict[str, set[str]] = {}
        ways = [d.asked for d in model.of(sheet.task)]
        rows = model.folder.examples(sheet.task)
        for row in sorted(rows, key=lambda r: (r["sample"], ways.index(r["asked"]))):
            asked = seen.setdefault(row["id"], set())
            if row["asked"] not in asked and len(asked) < CARDS:
                asked.add(row["asked"])
                found.setdefault(row["id"], []).append((model, row))
    shared = sorted(found, key=lambda name: -len({m.name for m, _ in found[name]}))[:READ]
    blocks = []
    for name in shared:
        first = found[name][0][1]
        level = "" if first.get("difficulty") is None else f", difficulty {first['difficulty']}"
        cards = "".join(_card(model, row) for model, row in found[name])
        blocks.append(
            f"<article><h3><code>{text(first['prompt'])}</code></h3><p class=note>answer "
            f"<b>{text(first['gold'])}</b>{level}</p><div class=cards>{cards}</div></article>"
        )
    if not blocks:
        return ""
    return f"<section><h2>Problems to read</h2>{''.join(blocks)}</section>"


def _card(model: Model, row: Mapping[str, Any]) -> str:
    """A thought, its answer, and what it would have answered at each budget."""
    last, (status, canonical) = row["cuts"][-1], row["verdicts"][-1]
    said = last["text"] if last["text"] is not None else canonical
    answer = "none" if said is None else text(said)
    asked = f", asked for {text(row['asked'])}" if row["asked"] else ""
    budgets = "".join(
        f'<span class="{"right" if verdict[0] == "ok" else "wrong"}" '
        f'title="{text(verdict[1] if verdict[1] is not None else "no answer")}">'
        f"{'no limit' if cut['budget'] == 'inf' else '@' + text(cut['budget'])}</span>"
        for cut, verdict in zip(row["cuts"], row["verdicts"], strict=True)
    )
    return (
        f"<div class=card><p class=head>{named(model.name, model.index)}<span>"
        f"{row['think_tokens']} tokens{asked}</span></p>{parts.thought(row['thought'])}"
        f"<p class=foot>answer <b>{answer}</b> {parts.verdict(status)}</p>"
        f"<p class=budgets>{budgets}</p></div>"
    )


def _across(models: Sequence[Model], show: Sequence[str]) -> str:
    """Macro averages over tasks, where there are any."""
    heads = table.columns(models, "all", show)
    if not heads:
        return ""
    return (
        f"<section><h2 class=task>All tasks</h2>{_headed(models, heads)}"
        "<p class=note>Mean over tasks, each counting once.</p></section>"
    )


def _settings(models: Sequence[Model]) -> str:
    blocks = []
    for model in models:
        path = model.path / "environment.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        lines = [f"<p class=note>{text(line)}</p>" for line in told(model.settings)]
        if found:
            lines.append(f"<p class=note>{text(parts.versions(found))}</p>")
        blocks.append(
            f"<h3>{named(model.name, model.index)}</h3>{''.join(lines)}<details><summary>"
            "eval.json</summary><pre>"
            f"{text(json.dumps(model.settings, indent=1))}</pre></details>"
        )
    return f"<section><h2>How it was measured</h2>{''.join(blocks)}</section>"


def told(settings: Mapping[str, Any]) -> list[str]:
    """The plain settings as 'name value', then those that hold others, a line each."""
    bound = settings.get("identity", {})
    kept = {k: v for k, v in ({"model": ""} | bound | settings).items() if k not in SKIPPED}
    plain = [f"{k} {v}" for k, v in kept.items() if isinstance(v, str | int | float) and v != ""]
    nested = {k: v for k, v in kept.items() if isinstance(v, Mapping | list) and v}
    rest = [f"{k}: {', '.join(_flat(v))}" for k, v in nested.items()]
    return [", ".join(plain), *rest] if plain else rest


def _flat(value: Any, before: str = "") -> list[str]:
    """'a.b value' of every leaf."""
    if isinstance(value, Mapping):
        return [leaf for k, v in value.items() for leaf in _flat(v, f"{before}{k}.")]
    if isinstance(value, list) and all(isinstance(v, Mapping) for v in value):
        return [leaf for v in value for leaf in _flat(v, before)]
    said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return [f"{before[:-1]} {said}".strip()]


def _every(models: Sequence[Model]) -> str:
    blocks = "".join(
        f"<details><summary>{named(m.name, m.index)}: {len(m.metrics):,} metrics</summary>"
        f"<div class=all>{grid(table.EVERY_HEADS, *table.every(m))}</div></details>"
        for m in models
        if m.metrics
    )
    return f"<section><h2>Every metric</h2>{blocks}</section>" if blocks else ""
