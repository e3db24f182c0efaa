"""Pieces that pages of reports share: the document, figures, tables, names in colour, thoughts."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.report import style
from trainer.report.css import CSS
from trainer.report.style import Figure

FOLD = 900
"""Characters of a thought that are shown before the rest is folded away."""


def document(title: str, parts: Iterable[str], css: str = "") -> str:
    """A whole page of its non-empty parts, with all that it needs inside."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)} - Laconic report</title>\n<style>{_variables()}{CSS}{css}</style>\n"
        f"</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def figure(shown: Figure) -> str:
    """A section with the figure for wide and for narrow pages; nothing where it is empty."""
    wide, narrow = style.inline(shown, narrow=False), style.inline(shown, narrow=True)
    if wide is None or narrow is None:
        return ""
    return (
        f"<section><h2>{text(shown.title)}</h2><figure><div class=wide>{wide}</div>"
        f"<div class=narrow>{narrow}</div><figcaption>{text(shown.caption)}</figcaption>"
        "</figure></section>"
    )


def grid(heads: Sequence[str], *rows: Sequence[str]) -> str:
    """A table of plain text."""
    top = "".join(f"<th scope=col>{text(head)}</th>" for head in heads)
    body = "".join(
        f"<tr><th scope=row>{text(first)}</th>{''.join(f'<td>{text(c)}</td>' for c in rest)}</tr>"
        for first, *rest in rows
    )
    return (
        f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def thought(said: str) -> str:
    """Folded where it is long."""
    if len(said) <= FOLD:
        return f"<pre>{text(said)}</pre>"
    return (
        f"<details class=more><summary><pre>{text(said[:FOLD])}</pre></summary>"
        f"<pre>{text(said[FOLD:])}</pre></details>"
    )


def verdict(status: str) -> str:
    words = {"ok": "right", "no_answer": "no answer"}.get(status, status)
    return f'<span class="{"right" if status == "ok" else "wrong"}">{text(words)}</span>'


def named(name: str, index: int | None) -> str:
    """In the arm's colour, with its marker in front: of many arms some share a colour."""
    if index is None:
        return f'<b class=arm style="color:var(--muted)">{text(name)}</b>'
    colour = f"s{index % len(style.SERIES)}"
    signed = f"<span class=sign>{style.sign(index)}</span>{text(name)}"
    return f'<b class=arm style="color:var(--{colour})">{signed}</b>'


def versions(found: Mapping[str, Any]) -> str:
    """The software that numbers were made with: it moves them too."""
    told = (f"{name} {text}" for name, text in found.items() if isinstance(text, str))
    return ", ".join(told)


def text(value: Any) -> str:
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


def place(out: Path) -> Path:
    """`out`, in a folder that exists.

    Raises:
        ValueError: no page can be written there.
    """
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"--out: {out} is a folder; name the page to write, {out / 'report.html'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{out.parent} cannot be made: {error.strerror}"
        raise ValueError(f"--out: {why}; name another page to write") from None
    return out


def save(page: str, out: Path) -> Path:
    """Write it."""
    out.write_text(page, encoding="utf-8")
    return out
