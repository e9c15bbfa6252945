"""Operational transform of plain text: the type `text-unicode` of the ottypes collection.

An operation is a list that walks over the text from its beginning: `5` skips five code points, `"abc"`
inserts, `{"d": 3}` or `{"d": "xyz"}` deletes. What follows the last component stays as it is. In its normal
form no component is empty, no two neighbours are of one kind, and the last one does not skip. A deletion that
holds the text which it deletes can be inverted.

The algebra is the one described with the type (https://github.com/ottypes/text-unicode); that package is
what the JavaScript side uses, and a contract test holds both to the same results. Everything here is a pure
function of its arguments, so the server and the client share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

from cloudsync.errors import RequestError

Component = int | str | dict[str, Any]
Operation = list[Component]
Side = Literal["left", "right"]

_END: Final = 1 << 62  # longer than any text


class BadOperation(RequestError):
    """The operation is not in the normal form of text-unicode, or does not fit the text."""

    code = "bad_operation"


def check(operation: object) -> Operation:
    """`operation` if it is one in normal form. Raises BadOperation."""
    if not isinstance(operation, list):
        raise BadOperation("A text operation is a list of components.")
    before: type | None = None
    for component in operation:
        kind = type(component)
        if kind is dict:
            if component.keys() != {"d"} or type(component["d"]) not in (int, str):
                raise BadOperation('A deletion is {"d": number} or {"d": "text"}.')
            empty = component["d"] == "" or (type(component["d"]) is int and component["d"] <= 0)
        elif kind is int:
            empty = component <= 0
        elif kind is str:
            empty = not component
        else:
            raise BadOperation("A component is a number to skip, a text to insert, or a deletion.")
        if empty:
            raise BadOperation("A component that does nothing has no place in a text operation.")
        if kind is before:
            raise BadOperation("Neighbouring components of one kind are to be one component.")
        before = kind
    if before is int:
        raise BadOperation("A text operation does not end with a skip.")
    return operation


def normalize(operation: Operation) -> Operation:
    """The same change in normal form."""
    builder = _Builder()
    for component in operation:
        builder.add(component)
    return builder.finish()


def apply(text: str, operation: Operation) -> str:
    """The text after the operation. Raises BadOperation if it reaches beyond the text or deletes another."""
    parts: list[str] = []
    at = 0
    for component in operation:
        if isinstance(component, int):
            parts.append(text[at : at + component])
            at += component
        elif isinstance(component, str):
            parts.append(component)
        else:
            gone = _deleted(component)
            if isinstance(gone, str) and text[at : at + len(gone)] != gone:
                raise BadOperation("The operation deletes a text that is not there.")
            at += _length(component)
        if at > len(text):
            raise BadOperation(f"The operation reaches beyond the text, which has {len(text)} code points.")
    parts.append(text[at:])
    return "".join(parts)


def transform(operation: Operation, other: Operation, side: Side) -> Operation:
    """`operation` as it has to be after `other`, both made from the same text.

    Of two insertions at one place the one of the `left` operation comes first. TP1 holds: applying `a` then
    `transform(b, a, "right")` gives the text of applying `b` then `transform(a, b, "left")`.
    """
    # The servers' hot path: written out, with the parts of `operation` taken in place.
    result: Operation = []
    parts = iter(operation)
    part: Component | None = next(parts, None)
    for component in other:
        if type(component) is str:
            if side == "left" and type(part) is str:
                _add(result, part)
                part = next(parts, None)
            _add(result, len(component))
            continue
        is_kept = type(component) is int
        rest = component if is_kept else _length(component)
        assert type(rest) is int  # noqa: S101 - for the type checker
        while rest:
            if part is None:
                if is_kept:
                    _add(result, rest)
                break
            if type(part) is str:
                _add(result, part)
                part = next(parts, None)
                continue
            length = part if type(part) is int else _length(part)
            assert type(length) is int  # noqa: S101 - as above
            if length <= rest:
                if is_kept:
                    _add(result, part)
                part = next(parts, None)
                rest -= length
            else:
                if is_kept:
                    _add(result, _cut(part, 0, rest))
                part = _cut(part, rest, length)
                rest = 0
    while part is not None:
        _add(result, part)
        part = next(parts, None)
    if result and type(result[-1]) is int:
        result.pop()
    return result


def compose(first: Operation, second: Operation) -> Operation:
    """One operation that does what `first` and then `second` do."""
    builder = _Builder()
    reader = _Reader(first)
    for component in second:
        if isinstance(component, str):
            builder.add(component)
            continue
        rest = _length(component)
        done = 0
        while rest > done:
            part = reader.take(rest - done, whole=dict)
            if isinstance(part, dict):
                builder.add(part)
                continue
            length = _length(part)
            if isinstance(component, int):
                builder.add(part)
            elif isinstance(part, int):
                gone = _deleted(component)
                builder.add({"d": gone[done : done + length] if isinstance(gone, str) else length})
            # else: deletes what the first inserted
            done += length
    for part in reader.rest():
        builder.add(part)
    return builder.finish()


def invertible(operation: Operation, text: str) -> Operation:
    """The same operation on `text`, with the deleted text in its deletions. Raises BadOperation."""
    result: Operation = []
    at = 0
    for component in operation:
        if isinstance(component, dict):
            length = _length(component)
            component = {"d": text[at : at + length]}
            at += length
        elif isinstance(component, int):
            at += component
        if at > len(text):
            raise BadOperation(f"The operation reaches beyond the text, which has {len(text)} code points.")
        result.append(component)
    return result


def invert(operation: Operation) -> Operation:
    """What undoes the operation. Raises BadOperation if a deletion does not hold its text."""
    builder = _Builder()
    for component in operation:
        if isinstance(component, int):
            builder.add(component)
        elif isinstance(component, str):
            builder.add({"d": component})
        else:
            gone = _deleted(component)
            if not isinstance(gone, str):
                raise BadOperation(
                    "A deletion without its text cannot be inverted: make it invertible first."
                )
            builder.add(gone)
    return builder.finish()


def transform_position(position: int, operation: Operation, *, own: bool = False) -> int:
    """Where a cursor in front of code point `position` is after the operation.

    An insertion right at the cursor leaves it in front if somebody else's, and moves it behind if `own`.
    """
    at = 0  # in the text before
    moved = position
    for component in operation:
        if at > position or (at == position and not own):
            break
        if isinstance(component, int):
            at += component
        elif isinstance(component, str):
            moved += len(component)
        else:
            length = _length(component)
            moved -= min(length, position - at)
            at += length
    return moved


def counted(operation: Operation) -> Operation:
    """The same operation without the texts that it deletes: nobody needs them but whoever may undo it."""
    return [
        {"d": _length(component)} if isinstance(component, dict) else component for component in operation
    ]


def difference(before: str, after: str) -> Operation:
    """The operation from one text to another that changes the one stretch in which they differ."""
    if before == after:
        return []
    start = _common_prefix(before, after)
    end = _common_prefix(before[start:][::-1], after[start:][::-1])
    builder = _Builder()
    builder.add(start)
    builder.add({"d": before[start : len(before) - end]})
    builder.add(after[start : len(after) - end])
    return builder.finish()


def _common_prefix(one: str, other: str) -> int:
    """How many code points both begin with: halves what is in doubt, comparing slices at the speed of C."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _deleted(component: dict[str, Any]) -> int | str:
    value: int | str = component["d"]
    return value


def _length(component: Component) -> int:
    """In code points."""
    if isinstance(component, int):
        return component
    if isinstance(component, str):
        return len(component)
    assert isinstance(component, dict)  # noqa: S101 - the third kind
    value = component["d"]
    return value if isinstance(value, int) else len(value)


def _add(operation: Operation, component: Component) -> None:
    """Append a component that is not empty, as one with the last if that is of its kind."""
    if not operation or type(operation[-1]) is not type(component):
        operation.append(component)
        return
    last: Any = operation[-1]
    if isinstance(component, dict):
        gone, more = last["d"], component["d"]
        if isinstance(gone, str) and isinstance(more, str):
            operation[-1] = {"d": gone + more}
        else:
            operation[-1] = {"d": _length(last) + _length(component)}
    else:
        operation[-1] = last + component


class _Builder:
    """Collects components into an operation in normal form."""

    __slots__ = ("_operation",)

    def __init__(self) -> None:
        self._operation: Operation = []

    def add(self, component: Component) -> None:
        if _length(component):
            _add(self._operation, component)

    def finish(self) -> Operation:
        if self._operation and type(self._operation[-1]) is int:
            self._operation.pop()
        return self._operation


class _Reader:
    """Takes an operation apart, as many code points at a time as asked for; behind its end it skips."""

    __slots__ = ("_done", "_index", "_operation")

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._index = 0
        self._done = 0  # code points of the component at the index that have been taken

    def kind(self) -> type:
        """The kind of what comes next."""
        return type(self._operation[self._index]) if self._index < len(self._operation) else int

    def take(self, limit: int, *, whole: type) -> Component:
        """The next component, or `limit` code points of it; one of the kind `whole` is not cut."""
        if self._index == len(self._operation):
            return limit
        component = self._operation[self._index]
        start = self._done
        length = _length(component) - start
        if length <= limit or type(component) is whole:
            self._index += 1
            self._done = 0
            end = start + length
        else:
            self._done = end = start + limit
        if start == 0 and self._done == 0:
            return component
        return _cut(component, start, end)

    def rest(self) -> Iterator[Component]:
        while self._index < len(self._operation):
            yield self.take(_END, whole=int)


def _cut(component: Component, start: int, end: int) -> Component:
    if isinstance(component, int):
        return end - start
    if isinstance(component, str):
        return component[start:end]
    assert isinstance(component, dict)  # noqa: S101 - the third kind
    value = component["d"]
    return {"d": value[start:end] if isinstance(value, str) else end - start}
