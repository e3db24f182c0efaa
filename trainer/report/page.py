"""report.html: one file, no network, light and dark, wide and narrow."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainer.report import style, table, tokens
from trainer.report.css import CSS
from trainer.report.data import Arm, Evaluation, Row, Run, bases
from trainer.report.options import MANY, Options
from trainer.report.raised import raised, watched
from trainer.report.style import Figure

FOLD = 900
"""Characters of a thought that are shown before the rest is folded away."""


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
        f"<header><h1>{_text(names)}</h1>{_lede(found, base)}</header>",
        _summary(found, base, options),
        _alarms(found),
        *(_figure(figure) for figure in figures),
        _asked(found),
        _tokens(found, options),
        _contrasts(found, options),
        _shown(found, base),
        _rollouts(found),
        _settings(found, base),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(names)} - Laconic report</title>\n<style>{_variables()}{CSS}</style>\n"
        f"</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _lede(found: Sequence[Arm], base: Evaluation | None) -> str:
    """One sentence per arm: where it began and where it ended."""
    sentences = []
    for i, arm in enumerate(found):
        if not arm.finals:
            continue
        now = [arm.estimate(m).value for m in ("accuracy", "think_tokens/mean")]
        text = f"accuracy {now[0]:.2f} with {now[1]:.0f} thinking tokens"
        if began := bases(found, base).get(arm.name):
            before = [began.estimate(m).value for m in ("accuracy", "think_tokens/mean")]
            text = (
                f"accuracy {before[0]:.2f} to {now[0]:.2f}, "
                f"thinking {before[1]:.0f} to {now[1]:.0f} tokens"
            )
        sentences.append(f"<li>{_name(arm.name, i)} {text}</li>")
    return f"<ul class=lede>{''.join(sentences)}</ul>" if sentences else ""


def _summary(found: Sequence[Arm], base: Evaluation | None, options: Options) -> str:
    heads = table.columns(found, base, options)
    indices = {arm.name: i for i, arm in enumerate(found)}
    rows = []
    for line in table.lines(found, base, options):
        cells = "".join(f"<td>{_cell(line.cells[m], m)}</td>" for m in heads)
        rows.append(
            f"<tr><th scope=row>{_name(line.name, indices.get(line.name))}</th>{cells}</tr>"
        )
    if not rows:
        return ""
    top = "".join(f"<th scope=col>{_text(head)}</th>" for head in heads.values())
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
        f"<li>{_name(arm.name, i)} seed {run.seed}, at {_text(alarm.spans)}: "
        f"<b>{_text(alarm.name)}</b>. {_text(alarm.why)}</li>"
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


def _figure(figure: Figure) -> str:
    wide, narrow = style.inline(figure, narrow=False), style.inline(figure, narrow=True)
    if wide is None or narrow is None:
        return ""
    return (
        f"<section><h2>{_text(figure.title)}</h2><figure><div class=wide>{wide}</div>"
        f"<div class=narrow>{narrow}</div><figcaption>{_text(figure.caption)}</figcaption>"
        "</figure></section>"
    )


def _asked(found: Sequence[Arm]) -> str:
    tables = "".join(_grid(*cells) for cells in table.asked_tables(found))
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
        f"<h3>{_text(title)}</h3>{_grid(*cells)}"
        for title, cells in table.token_tables(found, options)
    )
    if not tables:
        return ""
    notes = "; ".join(tokens.notes(found))
    return (
        f"<section><h2>For the tokens generated</h2>{tables}<p class=note>All tokens that engines "
        "sampled for training: discarded rollouts and answers at cuts count. Read off the line "
        f"between evaluations, seed by seed. {_text(notes[:1].upper() + notes[1:])}.</p></section>"
    )


def _grid(heads: Sequence[str], *rows: Sequence[str]) -> str:
    top = "".join(f"<th scope=col>{_text(head)}</th>" for head in heads)
    body = "".join(
        f"<tr><th scope=row>{_text(first)}</th>{''.join(f'<td>{_text(c)}</td>' for c in rest)}</tr>"
        for first, *rest in rows
    )
    return (
        f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _contrasts(found: Sequence[Arm], options: Options) -> str:
    rows = [table.contrast_cells(c) for c in table.contrasts(found, options)]
    if not rows:
        return ""
    return (
        f"<section><h2>Paired comparisons</h2>{_grid(table.CONTRAST_HEADS, *rows)}<p class=note>"
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
        cards = "".join(_card(_name(label, i), rows[name]) for label, i, rows in sides)
        level = "" if first["difficulty"] is None else f", difficulty {first['difficulty']}"
        problems.append(
            f"<article><h3><code>{_text(first['prompt'])}</code></h3>"
            f"<p class=note>answer <b>{_text(first['gold'])}</b>{level}</p>"
            f"<div class=cards>{cards}</div></article>"
        )
    if not problems:
        return ""
    return f"<section><h2>The same problems, read</h2>{''.join(problems)}</section>"


def _card(name: str, row: Row) -> str:
    """One thought with its answer, and what it would have answered at each budget."""
    answer = _text(row["text"]) if row["text"] is not None else "none"
    budgets = "".join(
        f'<span class="{"right" if correct else "wrong"}" title="{_text(found or "no answer")}">'
        f"{_text('no limit' if budget == 'inf' else '@' + budget)}</span>"
        for budget, (found, correct) in row.get("answers", {}).items()
    )
    return (
        f"<div class=card><p class=head>{name}<span>{row['think_tokens']} tokens</span></p>"
        f"{_thought(row['thought'])}<p class=foot>answer <b>{answer}</b> {_verdict(row)}</p>"
        f"<p class=budgets>{budgets}</p></div>"
    )


def _rollouts(found: Sequence[Arm]) -> str:
    """Rollouts of the last training step with their rewards, folded."""
    blocks = []
    for i, arm in enumerate(found):
        rows = arm.runs[0].rollouts()
        cards = "".join(_rollout(row) for row in rows)
        if cards:
            blocks.append(
                f"<details><summary>{_name(arm.name, i)} seed {arm.runs[0].seed}</summary>"
                f"<div class=cards>{cards}</div></details>"
            )
    if not blocks:
        return ""
    return f"<section><h2>Rollouts of the last training step</h2>{''.join(blocks)}</section>"


def _rollout(row: Row) -> str:
    rewards = ", ".join(
        f"{_text(name)} {'unknown' if value is None else format(value, '.3g')}"
        for name, value in row["rewards"].items()
    )
    answer = _text(row["text"]) if row["text"] is not None else "none"
    return (
        f"<div class=card><p class=head><code>{_text(row['prompt'])}</code>"
        f"<span>{row['think_tokens']} tokens</span></p>{_thought(row['thought'])}"
        f"<p class=foot>answer <b>{answer}</b>, gold <b>{_text(row['gold'])}</b> "
        f"{_verdict(row)}</p>"
        f"<p class=note>{rewards}</p></div>"
    )


def _thought(text: str) -> str:
    if len(text) <= FOLD:
        return f"<pre>{_text(text)}</pre>"
    return (
        f"<details class=more><summary><pre>{_text(text[:FOLD])}</pre></summary>"
        f"<pre>{_text(text[FOLD:])}</pre></details>"
    )


def _verdict(row: Row) -> str:
    right = row["status"] == "ok"
    words = {"ok": "right", "no_answer": "no answer"}.get(row["status"], row["status"])
    return f'<span class="{"right" if right else "wrong"}">{_text(words)}</span>'


def _settings(found: Sequence[Arm], base: Evaluation | None) -> str:
    evaluations = [e for arm in found for e in arm.finals] + ([base] if base else [])
    how = sorted({_how(e) for e in evaluations})
    blocks = "".join(
        f"<details><summary>{_name(arm.name, i)} configuration</summary>"
        f"<pre>{_text(yaml.safe_dump(arm.runs[0].config, sort_keys=False))}</pre></details>"
        for i, arm in enumerate(found)
    )
    folders = ", ".join(_text(run.path.name) for arm in found for run in arm.runs)
    how += sorted({_versions(run) for arm in found for run in arm.runs} - {""})
    lines = "".join(f"<p class=note>{_text(text)}</p>" for text in how)
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
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _name(name: str, index: int | None) -> str:
    """In the arm's colour, with its marker in front: of many arms some share a colour."""
    if index is None:
        return f'<b class=arm style="color:var(--muted)">{_text(name)}</b>'
    colour = f"s{index % len(style.SERIES)}"
    text = f"<span class=sign>{style.sign(index)}</span>{_text(name)}"
    return f'<b class=arm style="color:var(--{colour})">{text}</b>'


def _text(value: Any) -> str:
    return html.escape(str(value))


def _variables() -> str:
    """Colours as CSS variables: by the reader's system, or as data-theme says."""

    def block(colours: Iterable[tuple[str, str]]) -> str:
        return "{" + "".join(f"--{k}:{v};" for k, v in colours) + "}"

    light, dark = block(style.LIGHT.items()), block(style.DARK.items())
    return (
        f":root{light}@media (prefers-color-scheme:dark){{:root{dark}}}"
        f":root[data-theme=light]{light}:root[data-theme=dark]{dark}"
    )


def save(text: str, out: Path) -> Path:
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return out
