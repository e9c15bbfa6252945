"""Recorded editing through the text type alone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from cloudsync.resolve import text as ot

_TRACES = Path(__file__).parents[2] / "data" / "editing-traces"


def test_one_person_writing_a_component() -> None:
    trace: dict[str, Any] = json.loads(gzip.decompress((_TRACES / "sveltecomponent.json.gz").read_bytes()))
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
