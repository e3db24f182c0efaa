"""Secrets do not belong into recipes: config.yaml, reports and W&B would show them.

A setting names the environment variable that holds one (`api_key_env`) and is nothing to hide.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

SURE = re.compile(
    r"(api|access|secret|private|auth|account|wandb|hf|openai|azure)_?(key|token)s?$"
    r"|(secret|password|passwd|credentials?|authorization)$"
)
"""Names whose string is a secret whatever it looks like."""
MAYBE = re.compile(r"(key|token|secret|password)$")
"""... if it looks like one: `answer_key: solution` and `end_token: <eos>` do not."""
LOOKS = re.compile(r"(?=.*\d)[\w\-.+/=]{12,}$", re.ASCII)
KNOWN = re.compile(
    r"\b(sk|rk|pk)-[\w-]{16,}|\bhf_[A-Za-z0-9]{20,}|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{35}"
    r"|\b(gh[pousr]|github_pat|glpat|xox[abp])[_-][\w-]{16,}|\bwandb_v\d_\w{20,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|\b[Bb]earer\s+[\w\-.+/=]{8,}",
    re.ASCII,
)
"""Values that are one under any name."""
URL = re.compile(r"://[^/\s@:]*:[^/\s@]+@|[?&](api_?key|key|\w*token|sig|signature)=[^&\s]{8,}")
NAMED_BY = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")


def check(recipe: Mapping[str, Any]) -> None:
    """Refuse a literal secret, before anybody repeats it.

    Raises:
        ValueError: fields that hold one, by name alone.
    """
    ours = {value for name, value in os.environ.items() if NAMED_BY.search(name)}
    known = {value for value in ours if LOOKS.match(value) and not os.path.exists(value)}
    found = [
        f"{path}: holds {why}, which config.yaml and W&B would show; put it into an environment "
        f"variable and give that one's name ({fix})"
        for path, name, value in _strings(recipe)
        if (told := _secret(name, value, known))
        for why, fix in [told]
    ]
    if found:
        raise ValueError("\n".join(found))


def _secret(name: str, value: str, known: set[str]) -> tuple[str, str] | None:
    """What it is, and which setting would be right."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|-", "_", name).lower()
    if not value or name.endswith(("_env", "_file", "_path")):
        return None
    if URL.search(value):
        return "a URL with a password or key", "or none, and let the server know this machine"
    named = SURE.search(name) or (MAYBE.search(name) and LOOKS.match(value))
    if named or KNOWN.search(value) or any(secret in value for secret in known):
        return "a secret", f"{name}_env where there is such a setting, as in judge's api_key_env"
    return None


def _strings(tree: Any, path: str = "", name: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, name of its field, string) of each leaf; an item of a list has its list's name."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _strings(value, f"{path}.{key}" if path else str(key), str(key))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _strings(value, f"{path}.{i}", name)
    elif isinstance(tree, str):
        yield path, name, tree
