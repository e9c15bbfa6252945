"""Undo and redo of one person's edits among those of others."""

from __future__ import annotations

from typing import Final

from cloudsync.resolve import text as ot

STEPS_KEPT: Final = 200


class _Step:
    """What takes an edit back, made from the text behind it, and what others did before the next step."""

    __slots__ = ("after", "at_s", "inverse")

    def __init__(self, inverse: ot.Operation, at_s: float) -> None:
        self.inverse = inverse
        self.after: ot.Operation = []
        self.at_s = at_s


class Undo:
    """Two stacks of inverse operations. Each is moved to the present only when its turn comes."""

    def __init__(self) -> None:
        self._undo: list[_Step] = []
        self._redo: list[_Step] = []

    @property
    def can_undo(self) -> bool:
        return bool(self._undo)

    @property
    def can_redo(self) -> bool:
        return bool(self._redo)

    def did(self, inverse: ot.Operation, at_s: float, *, within_s: float) -> None:
        """An edit was made; it is one step with the one before, if that is as recent and undisturbed."""
        self._redo.clear()
        top = self._undo[-1] if self._undo else None
        if top is not None and not top.after and at_s - top.at_s <= within_s:
            top.inverse, top.at_s = ot.compose(inverse, top.inverse), at_s
            return
        self._undo.append(_Step(inverse, at_s))
        del self._undo[:-STEPS_KEPT]

    def others(self, operation: ot.Operation) -> None:
        """The text was changed by somebody else."""
        for stack in (self._undo, self._redo):
            if stack:
                stack[-1].after = ot.compose(stack[-1].after, operation)

    def undo(self, text: str) -> ot.Operation:
        """The operation that takes the latest step back, now on the redo stack; empty: nothing is left."""
        return _turn(self._undo, self._redo, text)

    def redo(self, text: str) -> ot.Operation:
        """The operation that does again what was undone last."""
        return _turn(self._redo, self._undo, text)


def _turn(source: list[_Step], target: list[_Step], text: str) -> ot.Operation:
    while source:
        step = source.pop()
        operation = ot.transform(step.inverse, step.after, "left")
        if source:
            below = source[-1]
            below.after = ot.compose(below.after, ot.transform(step.after, step.inverse, "right"))
        if operation:
            operation = ot.invertible(operation, text)
            target.append(_Step(ot.invert(operation), float("-inf")))
            return operation
    return []
