"""The seam: a component is one file, found by its name, with its config beside its function.

`algorithm: brpo` imports `trainer.algorithms.brpo` and nothing else; a dotted name imports a
user's own module. There is no registry.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class Component(BaseModel):
    """Base of every component's `Config`: frozen, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def names(package: str) -> list[str]:
    """Names of the components that ship in `package`."""
    folder = importlib.import_module(package).__path__
    files = [m.name for m in pkgutil.iter_modules(folder) if not m.name.startswith("_")]
    return sorted(name for name in files if name != "base")  # what all of a kind have in common


def find(package: str, name: str) -> ModuleType:
    """The module of component `name`: ours if plain, a user's if dotted.

    Raises:
        ValueError: no such component, with the nearest that exist.
    """
    kind = package.rsplit(".", 1)[-1].removesuffix("s")  # the field that names it
    known = names(package)
    if name in known:
        return importlib.import_module(f"{package}.{name}")
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        try:
            return _imported(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise  # the component exists and lacks a dependency of its own
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(
        f"{kind}: no component named '{name}'. Allowed: {', '.join(known)}, "
        f"or the import path of your own module (my_pkg.my_file){hint}"
    )


def split(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """('grpo' | {'name': 'grpo', ...}) -> (name, settings)."""
    if isinstance(spec, str):
        return spec, {}
    settings = dict(spec)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"a component is a name or a mapping with a 'name'; got {dict(spec)!r}")
    return name, settings


def resolve(package: str, spec: str | Mapping[str, Any]) -> tuple[ModuleType, Any]:
    """The module that `spec` names and its validated config (None where it has no `Config`)."""
    name, settings = split(spec)
    module = find(package, name)
    if not hasattr(module, "Config"):
        if settings:
            raise ValueError(f"{name}: takes no settings; got {', '.join(settings)}")
        return module, None
    return module, module.Config(**settings)


def told(package: str, spec: str | Mapping[str, Any]) -> tuple[ModuleType, Any]:
    """As `resolve`, for a spec that somebody wrote by hand.

    Raises:
        ValueError: no such component, or settings that it does not take, in one line.
    """
    try:
        return resolve(package, spec)
    except ValidationError as error:
        kind, name = package.rsplit(".", 1)[-1].removesuffix("s"), split(spec)[0]
        why = mistakes(error, find(package, name).Config.model_fields)
        raise ValueError(f"{kind}: {why}") from None


def mistakes(error: ValidationError, known: Iterable[str], *under: str) -> str:
    """pydantic's report about a config of the `known` fields, in one line; they stand `under`."""
    fields, lines = sorted(known), []
    for one in error.errors():
        text = one["msg"].removeprefix("Value error, ")
        if one["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(one["loc"][-1]), fields, n=1)
            there = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(fields)}"
            text = f"unknown field; {there if fields else 'it takes none'}"
        elif one["type"] != "value_error":
            text += f"; got {one['input']!r}"
        field = ".".join([*under, *map(str, one["loc"])])
        lines.append(f"{field}: {text}" if field else text)
    return "; ".join(lines)


def function(path: str) -> Any:
    """Import `my_pkg.my_file:fn`.

    Raises:
        ValueError: the module or the name in it does not exist.
    """
    module_name, _, name = path.partition(":")
    if module_name == "__main__":
        raise ValueError(
            f"'{path}': other processes cannot import what a script or notebook defines; put "
            f"{name} into a file of its own and write my_file:{name}"
        )
    try:
        return getattr(_imported(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"'{path}' cannot be imported ({error}); write my_pkg.my_file:fn and make sure that "
            "its folder is on PYTHONPATH"
        ) from None


def _imported(name: str) -> ModuleType:
    """A user's module.

    Raises:
        ValueError: it cannot be parsed.
    """
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}:{error.lineno}: {error.msg}; mend that line") from None
