"""report.html: one file, no network, light and dark, wide and narrow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

from trainer.report import table, tokens
from trainer.report.data import Arm, Evaluation, Row, Run, bases
from trainer.report.options import MANY, Options
from trainer.report.parts import document, figure, grid, named, text, thought, verdict, versions
from trainer.report.raised import raised, watched
from trainer.report.style import Figure


def render(
    found: Sequence[Arm],
    base: Evaluation | None,
    figures: Sequence[Figure],
    options: Options = table.NOTHING,
) -> str:
    names = ", ".join(arm.name for arm in found)
    if len(found) > MANY:
        names = f"{len(found)} arms"
    parts = [
        f"<header><h1>{text(names)}</h1>{_lede(found, base)}</header>",
        _summary(found, base, options),
        _alarms(found),
        *(figure(shown) for shown in figures),
        _asked(found),
        _tokens(found, options),
        _contrasts(found, options),
        _shown(found, base),
        _rollouts(found),
        _settings(found, base),
    ]
    return document(names, parts)


def _lede(found: Sequence[Arm], base: Evaluation | None) -> str:
    """One sentence per arm: where it began and where it ended."""
    sentences = []
    for i, arm in enumerate(found):
        if not arm.finals:
            continue
        now = [arm.estimate(m).value for m in ("accuracy", "think_tokens/mean")]
        said = f"accuracy {now[0]:.2f} with {now[1]:.0f} thinking tokens"
        if began := bases(found, base).get(arm.name):
            before = [began.estimate(m).value for m in ("accuracy", "think_tokens/mean")]
            said = (
                f"accuracy {before[0]:.2f} to {now[0]:.2f}, "
                f"thinking {before[1]:.0f} to {now[1]:.0f} tokens"
            )
        sentences.append(f"<li>{named(arm.name, i)} {said}</li>")
    return f"<ul class=lede>{''.join(sentences)}</ul>" if sentences else ""


def _summary(found: Sequence[Arm], base: Evaluation | None, options: Options) -> str:
    heads = table.columns(found, base, options)
    indices = {arm.name: i for i, arm in enumerate(found)}
    rows = []
    for line in table.lines(found, base, options):
        cells = "".join(f"<td>{_cell(line.cells[m], m)}</td>" for m in heads)
        rows.append(
            f"<tr><th scope=row>{named(line.name, indices.get(line.name))}</th>{cells}</tr>"
        )
    if not rows:
        return ""
    top = "".join(f"<th scope=col>{text(head)}</th>" for head in heads.values())
    note = table.interval_note(found).replace("+-", "&plusmn;", 1)
    return (
        "<section><h2>Summary</h2><div class=scroll><table><thead><tr><th></th>"
        f"{top}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        "<p class=note>Any-time: mean accuracy over the budgets. Area: accuracy where a thought "
        "must end by itself under a cap, mean over all caps up to the longest response. @b: "
        f"accuracy when the thought is cut at b tokens and answered. {note}.</p></section>"
    )


def _cell(estimate: Any, metric: str) -> str:
    value, _, half = table.cell(estimate, metric).partition(" +-")
    return f"{value}<small>&plusmn;{half}</small>" if half else value


def _alarms(found: Sequence[Arm]) -> str:
    """What looked wrong while the runs were trained; nothing where nobody looked."""
    looked = [(i, arm, run) for i, arm in enumerate(found) for run in arm.runs if watched(run)]
    lines = "".join(
        f"<li>{named(arm.name, i)} seed {run.seed}, at {text(alarm.spans)}: "
        f"<b>{text(alarm.name)}</b>. {text(alarm.why)}</li>"
        for i, arm, run in looked
        for alarm in raised(run)
    )
    if not lines:
        return "<p class=note>No alarm was raised in training.</p>" if looked else ""
    return (
        f"<section><h2>Alarms</h2><ul class=plain>{lines}</ul><p class=note>Signs of a reward that "
        "is fooled, or of a verifier that is sick; they stop nothing. What each says is what it "
        "said first; bounds: <code>alarms</code> in the configuration below.</p></section>"
    )


def _asked(found: Sequence[Arm]) -> str:
    tables = "".join(grid(*cells) for cells in table.asked_tables(found))
    if not tables:
        return ""
    return (
        f"<section><h2>What was asked for</h2>{tables}<p class=note>Each mode or number of tokens "
        "on the same problems, nothing cut. Deviation: mean of |used - asked| / asked; rank "
        "correlation: Spearman's, of asked and used, over all samples; used: the tokens that were "
        "sampled of the response.</p></section>"
    )


def _tokens(found: Sequence[Arm], options: Options) -> str:
    tables = "".join(
        f"<h3>{text(title)}</h3>{grid(*cells)}"
        for title, cells in table.token_tables(found, options)
    )
    if not tables:
        return ""
    notes = "; ".join(tokens.notes(found))
    return (
        f"<section><h2>For the tokens generated</h2>{tables}<p class=note>All tokens that engines "
        "sampled for training: discarded rollouts and answers at cuts count. Read off the line "
        f"between evaluations, seed by seed. {text(notes[:1].upper() + notes[1:])}.</p></section>"
    )


def _contrasts(found: Sequence[Arm], options: Options) -> str:
    rows = [table.contrast_cells(c) for c in table.contrasts(found, options)]
    if not rows:
        return ""
    return (
        f"<section><h2>Paired comparisons</h2>{grid(table.CONTRAST_HEADS, *rows)}<p class=note>"
        "Same seeds (or same problems) on both sides. p (t): paired t test; p (flip): sign-flip "
        "permutation test, which cannot go below 2/2<sup>n</sup> with n pairs. Not corrected for "
        "the number of comparisons.</p></section>"
    )


def _shown(found: Sequence[Arm], base: Evaluation | None) -> str:
    """The same problems as the base and the first seed of each arm think about them."""
    sides: list[tuple[str, int | None, dict[str, Row]]] = []
    if base:
        sides.append(("base", None, {row["id"]: row for row in base.shown}))
    for i, arm in enumerate(found):
        if arm.finals:
            sides.append((arm.name, i, {row["id"]: row for row in arm.finals[0].shown}))
    shared = [name for name in (sides[0][2] if sides else {}) if all(name in s[2] for s in sides)]
    problems = []
    for name in shared:
        first = sides[0][2][name]
        cards = "".join(_card(named(label, i), rows[name]) for label, i, rows in sides)
        level = "" if first["difficulty"] is None else f", difficulty {first['difficulty']}"
        problems.append(
            f"<article><h3><code>{text(first['prompt'])}</code></h3>"
            f"<p class=note>answer <b>{text(first['gold'])}</b>{level}</p>"
            f"<div class=cards>{cards}</div></article>"
        )
    if not problems:
        return ""
    return f"<section><h2>The same problems, read</h2>{''.join(problems)}</section>"


def _card(name: str, row: Row) -> str:
    """One thought with its answer, and what it would have answered at each budget."""
    answer = text(row["text"]) if row["text"] is not None else "none"
    budgets = "".join(
        f'<span class="{"right" if correct else "wrong"}" title="{text(found or "no answer")}">'
        f"{text('no limit' if budget == 'inf' else '@' + budget)}</span>"
        for budget, (found, correct) in row.get("answers", {}).items()
    )
    return (
        f"<div class=card><p class=head>{name}<span>{row['think_tokens']} tokens</span></p>"
        f"{thought(row['thought'])}<p class=foot>answer <b>{answer}</b> "
        f"{verdict(row['status'])}</p><p class=budgets>{budgets}</p></div>"
    )


def _rollouts(found: Sequence[Arm]) -> str:
    """Rollouts of the last training step with their rewards, folded."""
    blocks = []
    for i, arm in enumerate(found):
        rows = arm.runs[0].rollouts()
        cards = "".join(_rollout(row) for row in rows)
        if cards:
            blocks.append(
                f"<details><summary>{named(arm.name, i)} seed {arm.runs[0].seed}</summary>"
                f"<div class=cards>{cards}</div></details>"
            )
    if not blocks:
        return ""
    return f"<section><h2>Rollouts of the last training step</h2>{''.join(blocks)}</section>"


def _rollout(row: Row) -> str:
    rewards = ", ".join(
        f"{text(name)} {'unknown' if value is None else format(value, '.3g')}"
        for name, value in row["rewards"].items()
    )
    answer = text(row["text"]) if row["text"] is not None else "none"
    return (
        f"<div class=card><p class=head><code>{text(row['prompt'])}</code>"
        f"<span>{row['think_tokens']} tokens</span></p>{thought(row['thought'])}"
        f"<p class=foot>answer <b>{answer}</b>, gold <b>{text(row['gold'])}</b> "
        f"{verdict(row['status'])}</p>"
        f"<p class=note>{rewards}</p></div>"
    )


def _settings(found: Sequence[Arm], base: Evaluation | None) -> str:
    evaluations = [e for arm in found for e in arm.finals] + ([base] if base else [])
    how = sorted({_how(e) for e in evaluations})
    blocks = "".join(
        f"<details><summary>{named(arm.name, i)} configuration</summary>"
        f"<pre>{text(yaml.safe_dump(arm.runs[0].config, sort_keys=False))}</pre></details>"
        for i, arm in enumerate(found)
    )
    folders = ", ".join(text(run.path.name) for arm in found for run in arm.runs)
    how += sorted({_versions(run) for arm in found for run in arm.runs} - {""})
    lines = "".join(f"<p class=note>{text(line)}</p>" for line in how)
    return (
        f"<section><h2>How it was measured</h2>{lines}<p class=note>{folders}</p>{blocks}</section>"
    )


def _how(evaluation: Evaluation) -> str:
    s = evaluation.summary
    graders = ", ".join(s.get("graders") or ())
    return (
        f"{s['problems']} held-out problems, {s['samples']} thoughts each at temperature "
        f"{s['temperature']:g}, responses of at most {s['max_tokens']} tokens. Each thought is "
        "made once and cut at every budget; one that ended by itself keeps its own answer. "
        "Intervals and tests count problems or seeds, never samples."
        + (f" Graded by {graders}." if graders else "")
    )


def _versions(run: Run) -> str:
    """The software a run was made with: it moves numbers too."""
    path = run.path / "environment.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return versions(found)
