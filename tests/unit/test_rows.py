"""Rows are taken apart whatever their columns hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudsync.rows import RowValues, columns_of

DEEP = b"[" * 5000 + b"]" * 5000
LONG = b"1" + b"0" * 5000
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def read(row: bytes) -> dict[str, Any]:
    return {name: json.loads(bytes(text)) for name, text in columns_of(row).items() if bytes(text) != DEEP}


@given(st.dictionaries(st.text(), values, max_size=6))
def test_a_row_that_is_too_deep_is_read_as_every_other(row: dict[str, Any]) -> None:
    row.pop("deep", None)
    for separators in ((", ", ": "), (",", ":")):
        text = json.dumps(row, separators=separators, ensure_ascii=False).encode()
        assert read(text) == row
        deep = text[:-1] + (b', "deep": ' if row else b'"deep": ') + DEEP + b"}"
        found = columns_of(deep)
        assert bytes(found["deep"]) == DEEP
        assert read(deep) == row


@pytest.mark.parametrize("document", [DEEP, LONG, b'{"a": 1e5000}', b'{"a": %s}' % LONG])
def test_what_cannot_be_decoded_does_not_hide_the_rest(document: bytes) -> None:
    row = RowValues(columns_of(b'{"n": 3, "doc": %s, "none": null, "t": "x"}' % document))
    assert (row.get("n"), row["n"], row.get("none"), row.get("t")) == (3, 3, None, "x")
    assert row.get("doc") is not None
    assert row.get("other") is None
    assert set(row) == {"n", "doc", "none", "t"}
    assert len(row) == 4
    with pytest.raises(KeyError):
        row["other"]
