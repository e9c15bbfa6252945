"""Conditions as people write them on a command line, turned into a where-clause.

    done=false    n>=3    name != 'it''s'    due is null    state in (open, 'on hold')    "Odd name"=1

Values travel as texts, which the server reads by the column's type, but for unquoted true and false.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from cloudsync.errors import BadFilter
from cloudsync.protocol.messages import Where

_COLUMN: Final = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^\W\d][\w$]*))\s*')
_OPERATOR: Final = re.compile(
    r"(<=|>=|!=|<>|==|=|<|>|(?:is\s+not\s+null|is\s+null)\s*\Z|in\s*\()", re.IGNORECASE
)
_QUOTED: Final = re.compile(r"\s*'((?:[^']|'')*)'\s*")
_SYMBOLS: Final = {
    "=": "eq",
    "==": "eq",
    "!=": "ne",
    "<>": "ne",
    "<": "lt",
    "<=": "lte",
    ">": "gt",
    ">=": "gte",
}


def parse(conditions: Iterable[str]) -> Where | None:
    """All conditions as one where-clause, ANDed; None for none. Raises BadFilter with one sentence."""
    found: dict[str, dict[str, Any]] = {}
    for text in conditions:
        column, operator, operand = _condition(text)
        operators = found.setdefault(column, {})
        if operator in operators and operators[operator] != operand:
            raise BadFilter(f"The conditions give `{operator}` on {column!r} twice.")
        operators[operator] = operand
    return {
        column: operators["eq"] if set(operators) == {"eq"} else operators
        for column, operators in found.items()
    } or None


def _condition(text: str) -> tuple[str, str, Any]:
    column = _COLUMN.match(text)
    if column is None:
        raise _unreadable(text, "it does not begin with a column's name")
    operator = _OPERATOR.match(text, column.end())
    if operator is None:
        raise _unreadable(text, "after the column comes none of = != < <= > >=, `is null`, `in (…)`")
    name = (column[1] or column[2]).replace('""', '"')
    symbol, rest = operator[1].lower(), text[operator.end() :]
    if symbol.startswith("is"):
        return name, "is_null", "not" not in symbol
    if symbol.startswith("in"):
        return name, "in", _list(text, rest)
    return name, _SYMBOLS[symbol], _value(text, rest)


def _value(text: str, part: str) -> str | bool:
    quoted = _QUOTED.fullmatch(part)
    if quoted is not None:
        return quoted[1].replace("''", "'")
    bare = part.strip()
    if not bare:
        raise _unreadable(text, "there is no value; an empty text is written ''")
    if bare.startswith("'"):
        raise _unreadable(text, "its quotes do not match")
    if bare.lower() == "null":
        raise _unreadable(text, "nothing compares with null; write `is null`")
    if bare.lower() in ("true", "false"):
        return bare.lower() == "true"
    return bare


def _list(text: str, rest: str) -> list[str | bool]:
    body = rest.rstrip()
    if not body.endswith(")"):
        raise _unreadable(text, "the list has no closing parenthesis")
    parts = re.findall(r"((?:'(?:[^']|'')*'|[^,'])*)(?:,|\Z)", body[:-1])
    if "".join(parts).count("'") % 2 or sum(map(len, parts)) + body[:-1].count(",") < len(body) - 1:
        raise _unreadable(text, "its quotes do not match")
    # The pattern finds an empty part at the very end, too.
    if len(parts) > 1 and parts[-1] == "" and not body[:-1].endswith(","):
        parts.pop()
    return [_value(text, part) for part in parts]


def _unreadable(text: str, why: str) -> BadFilter:
    return BadFilter(f"The condition {text[:100]!r} cannot be read: {why}.")
