"""Programs with one thing changed: an operator, a comparison, a constant or what is returned."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitXor: ast.BitOr, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
}  # fmt: skip
COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
KINDS = ("operator", "comparison", "constant", "returned")


def mutants(source: str, kind: str) -> Iterator[str]:
    """`source` with one place of that kind changed, every place in turn."""
    tree = ast.parse(source)
    for at, node in enumerate(ast.walk(tree)):
        changed = copy.deepcopy(tree)
        place = next(n for i, n in enumerate(ast.walk(changed)) if i == at)
        if type(place) is type(node) and _change(place, kind):
            yield ast.unparse(ast.fix_missing_locations(changed))


def _change(node: ast.AST, kind: str) -> bool:
    """Change this node in its place; whether there was anything to change."""
    if kind == "operator" and isinstance(node, ast.BinOp | ast.AugAssign):
        other = ARITHMETIC.get(type(node.op))
        if other:
            node.op = other()
        return other is not None
    if kind == "comparison" and isinstance(node, ast.Compare):
        other = COMPARED.get(type(node.ops[0]))
        if other:
            node.ops[0] = other()
        return other is not None
    if kind == "constant" and isinstance(node, ast.Constant):
        if type(node.value) is int:
            node.value += 1
            return True
        return False
    if kind == "returned" and isinstance(node, ast.FunctionDef):
        return _return_otherwise(node)
    return False


def _return_otherwise(function: ast.FunctionDef) -> bool:
    """Whatever it returned, it now returns it in a list."""
    returns = [n for n in ast.walk(function) if isinstance(n, ast.Return) and n.value]
    for statement in returns:
        assert statement.value is not None
        statement.value = ast.List([statement.value], ast.Load())
    return bool(returns)
