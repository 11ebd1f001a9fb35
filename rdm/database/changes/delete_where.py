"""Conditions on a table's columns: Python comparisons, parsed without ever running anything.

Only the syntax tree is looked at: names are columns, everything else must be a plain value. So a
condition can do nothing but compare.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rdm.errors import UsageError

EXAMPLE = (
    "license == 'https://creativecommons.org/licenses/by/2.0/' and author in ['A. Bird', 'B. Bird']"
)
_ROW = " row"  # no column that a condition could name
_GREATEST = 2**63 - 1  # a number over it fits into no column
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}


def matching_rows(table: pa.Table, condition: str) -> pa.Table:
    """Return the rows for which a condition holds.

    An empty cell, null or "", fulfills no comparison but `== ''`: neither `author == 'A'` nor
    `not author == 'A'`, and not `author != 'A'` either.

    Raises:
        UsageError: the condition cannot be understood, names an unknown column, or compares a
            column with a value of another type.
    """
    expression = parse_condition(condition, table.column_names)
    try:
        # The row number travels along, so that the rows come back as they were, empty texts
        # included.
        holds = (
            _with_nulls(table)
            .add_column(0, _ROW, pa.array(range(table.num_rows), pa.int64()))
            .filter(expression)
        )
        return table.take(holds[_ROW].combine_chunks())
    except (pa.ArrowException, TypeError) as error:
        raise UsageError(
            f"the condition does not fit its columns: {str(error).splitlines()[0]}",
            where=condition,
            fix="; ".join(f"{field.name} is {field.type}" for field in table.schema),
        ) from error


def _with_nulls(table: pa.Table) -> pa.Table:
    """Return a table whose empty texts are null: conditions on them are neither true nor false."""
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            column = table.column(number)
            filled = pc.if_else(pc.equal(column, ""), pa.scalar(None, field.type), column)
            table = table.set_column(number, field, filled)
    return table


def parse_condition(condition: str, columns: Sequence[str]) -> pc.Expression:
    """Return a condition as an expression.

    It may have comparisons of columns with values, `in` lists, `and`, `or` and `not`.

    Raises:
        UsageError: it is anything else, or names an unknown column.
    """
    try:
        return _Parser(condition, columns).logical(ast.parse(condition.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(
            f"the condition is no expression: {error}",
            where=condition,
            fix=f"write for example {EXAMPLE}",
        ) from error


def _inside(column: pc.Expression, listed: list[Any]) -> pc.Expression:
    """Return whether a column's value is listed; unknown of an empty cell unless '' is listed."""
    values = [value for value in listed if value != ""]
    found = column.isin(values) if values else pc.scalar(False)
    if len(values) < len(listed):
        return column.is_null() | found
    return found | (column != column)  # false of a value, null of an empty cell


class _Parser:
    """Turns the syntax tree of one condition into an expression, node by node."""

    def __init__(self, condition: str, columns: Sequence[str]) -> None:
        self.condition = condition
        self.columns = columns

    def logical(self, node: ast.expr) -> pc.Expression:
        """Return the expression of a node that is true or false."""
        # `and` and `or` of whole columns.
        if isinstance(node, ast.BoolOp):
            first, *others = [self.logical(value) for value in node.values]
            for other in others:
                first = first & other if isinstance(node.op, ast.And) else first | other
            return first

        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.logical(node.operand)

        # Python's chains: `1 < x <= 3` is `1 < x and x <= 3`.
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]

            first, *others = [
                self._comparison(left, kind, right)
                for left, kind, right in zip(operands, node.ops, operands[1:], strict=False)
            ]
            for other in others:
                first = first & other
            return first

        # Nothing else is evaluated: a condition is data, not a program.
        raise self._refusal(node)

    def _comparison(self, left: ast.expr, kind: ast.cmpop, right: ast.expr) -> pc.Expression:
        """Return one comparison of a column with a value, a list or another column."""
        if isinstance(kind, ast.In | ast.NotIn):
            inside = _inside(self._column(left), self._list(right))
            return ~inside if isinstance(kind, ast.NotIn) else inside

        # `3 < width` is `width > 3`.
        if isinstance(right, ast.Name) and not isinstance(left, ast.Name):
            left, kind, right = right, _MIRRORED.get(type(kind), type(kind))(), left
        if type(kind) not in _COMPARISONS:
            raise self._refusal(left)

        # Only `==` and `!=` may ask for empty cells, which are null here.
        other = self._column(right) if isinstance(right, ast.Name) else self._value(right)
        if isinstance(other, str) and other == "" and isinstance(kind, ast.Eq | ast.NotEq):
            empty = self._column(left).is_null()
            return empty if isinstance(kind, ast.Eq) else ~empty

        return _COMPARISONS[type(kind)](self._column(left), other)

    def _column(self, node: ast.expr) -> pc.Expression:
        """Return a node that names a column."""
        if not isinstance(node, ast.Name):
            raise self._refusal(node)
        if node.id not in self.columns:
            raise UsageError(
                f"there is no column {node.id!r}",
                where=self.condition,
                fix=f"columns: {', '.join(self.columns)}",
            )
        return pc.field(node.id)

    def _value(self, node: ast.expr) -> str | int | float | bool:
        """Return a node that is a text or a number, which may be negative."""
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        constant = node.operand if isinstance(node, ast.UnaryOp) and negative else node

        if isinstance(constant, ast.Constant) and isinstance(constant.value, str | int | float):
            if isinstance(constant.value, int) and constant.value > _GREATEST:
                raise self._refusal(node)
            if not negative:
                return constant.value
            if not isinstance(constant.value, str):
                return -constant.value
        raise self._refusal(node)

    def _list(self, node: ast.expr) -> list[Any]:
        if not isinstance(node, ast.List | ast.Tuple | ast.Set) or not node.elts:
            raise self._refusal(node)
        return [self._value(element) for element in node.elts]

    def _refusal(self, node: ast.expr) -> UsageError:
        text = ast.get_source_segment(self.condition.strip(), node) or ast.dump(node)
        return UsageError(
            f"{text!r} is not allowed here: a condition compares columns with texts and "
            "numbers, with and, or, not, in",
            where=self.condition,
            fix=f"write for example {EXAMPLE}",
        )
