"""Recorded editing through the text type alone."""

from __future__ import annotations

import traces
from cloudsync.resolve import text as ot


def test_one_person_writing_a_component() -> None:
    trace = traces.read("sveltecomponent")
    text = trace["startContent"]
    undo: list[ot.Operation] = []
    for transaction in trace["txns"]:
        composed: ot.Operation = []
        for position, deleted, inserted in transaction["patches"]:
            composed = ot.compose(composed, ot.normalize([position, {"d": deleted}, inserted]))
        undo.append(ot.invert(ot.invertible(composed, text)))
        text = ot.apply(text, ot.check(composed))
    assert text == trace["endContent"]
    for operation in reversed(undo):
        text = ot.apply(text, operation)
    assert text == trace["startContent"]
