"""`laconic export`: a model folder that obeys budgets in plain engines, and whether it does."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import yaml

from samplers.render import ThinkingConfig
from trainer.export import read


def export(args: argparse.Namespace) -> int:
    """Write and, with --check, try what was written; 1 where a check failed.

    Raises:
        ValueError: nothing to export, or nothing to check.
    """
    ask, efforts = (_yaml(getattr(args, name), name) for name in ("ask", "efforts"))
    quiet()
    if args.out is None:
        return _check_only(args, ask, efforts)
    from trainer.export import source
    from trainer.export.folder import export as write

    start, end = args.markers
    out = write(
        args.checkpoint,
        args.out,
        thinking=None if args.no_thinking else ThinkingConfig(start=start, end=end),
        lora=args.lora,
        ask=ask,
        efforts=efforts,
        evaluation=args.evaluation,
    )
    print(out)
    model = source.find(args.checkpoint).model
    if args.evaluation is not None:
        _warn_of_others(args.evaluation, model, out)
    return _print(out, model) if args.check else 0


def _warn_of_others(evaluation: Path, *ours: Path) -> None:
    """The card's table is that of a folder that somebody named: its weights may be others."""
    from trainer.modelfolder import fingerprint

    try:
        said = json.loads((evaluation / "eval.json").read_text())
        name, files = said["model"], said["identity"]["model_files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if files not in [fingerprint(folder) for folder in ours]:
        warnings.warn(
            f"--eval: {evaluation} measured {name}, whose weights, config or tokenizer are others "
            "than those exported; the card's table is of that model",
            stacklevel=2,
        )


def _check_only(args: argparse.Namespace, ask: Any, efforts: Any) -> int:
    folder = Path(args.checkpoint).expanduser()
    if not args.check or (ask, efforts, args.evaluation) != (None, None, None):
        raise ValueError(
            "OUT: not given; name the folder to write, or check an export with --check"
        )
    if read(folder) is None:
        raise ValueError(
            f"'{folder}' is no exported model; export one: laconic export {folder} OUT"
        )
    return _print(folder, None)


def _print(folder: Path, source: Path | None) -> int:
    from trainer.export.check import checks

    failed = 0
    for finding in checks(folder, source=source):
        print(finding, flush=True)
        failed += finding.ok is False
    return int(failed > 0)


def _yaml(text: str | None, name: str) -> Any:
    if text is None:
        return None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--{name}: broken YAML: {' '.join(str(error).split())}") from None


def quiet() -> None:
    """No progress bars of transformers on top of what is printed here."""
    from transformers.utils import logging

    logging.disable_progress_bar()
