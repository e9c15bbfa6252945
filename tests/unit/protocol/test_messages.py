"""Frames of clients: each wrong one gets its code and a short sentence that does not repeat what was sent."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudsync.errors import RequestError
from cloudsync.protocol.codes import ERROR_MEANINGS
from cloudsync.protocol.messages import (
    Ack,
    BadFrame,
    Hello,
    Subscribe,
    UnknownType,
    decode_client_frame,
    encode,
)

LONG = "geheim" * 500
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
TYPES = [
    "hello",
    "subscribe",
    "unsubscribe",
    "change",
    "text",
    "resolve",
    "refetch",
    "ack",
    "auth",
    "presence",
]
FIELDS = [
    "id",
    "table",
    "where",
    "columns",
    "client_id",
    "cursor",
    "n",
    "sub",
    "key",
    "token",
    "op",
    "mode",
    "values",
]


@pytest.mark.parametrize("type_", ["nonsense", "welcome", "data.create", "", "HELLO", "x" * 10_000])
def test_unknown_types_are_told_apart(type_: str) -> None:
    with pytest.raises(UnknownType) as caught:
        decode_client_frame(json.dumps({"type": type_, "id": LONG}))
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    "data",
    [
        "", " ", "{", "[]", "null", "5", '"hello"', "true", "[[]]", "{}", '{"type":null}', '{"type":5}',
        '{"type":["hello"]}', '{"id":1}', '{"type":"ack"}', '{"type":"ack","n":"1"}',
        '{"type":"ack","n":1.5}',
        '{"type":"ack","n":1}{}', '{"type":"ack","n":NaN}', '{"type":"ack","n":1e400}', "\x00",
        '{"type":"ack","n":' + "9" * 5000 + "}",
        "[" * 200_000, '{"a":' * 200_000, '{"type":"subscribe","where":' * 10_000,
        '{"type":"subscribe","id":"a","table":"t","where":' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"type":"subscribe","id":"a","table":"t","where":{"a":' + "[" * 50_000 + "]" * 50_000 + "}}",
        '{"type":"nonsense","x":' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"x":' + "[" * 50_000 + "]" * 50_000 + ',"type":"ack","n":1}',
        '{"type":"subscribe","id":"\\ud800","table":"t"}', b"\xff\xfe", b'{"type":"ack","n":"\xff"}',
        '{"type":"subscribe","id":1,"table":"t"}', '{"type":"subscribe","id":"a","table":"t","columns":[1]}',
        '{"type":"subscribe","id":"a","table":"t","where":[]}', '{"type":"hello","client_id":null}',
    ],
    ids=lambda data: repr(data[:30]),
)  # fmt: skip
def test_malformed_frames(data: str | bytes) -> None:
    with pytest.raises((BadFrame, UnknownType)) as caught:
        decode_client_frame(data)
    assert caught.value.code in ERROR_MEANINGS
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "subscribe", "id": "a", "table": "t", "mode": LONG},
        {"type": "change", "id": 1, "op": LONG, "table": "t", "key": {}},
        {"type": "resolve", "id": 1, "conflict_id": "c", "choice": LONG},
        {"type": "ack", "n": LONG},
        {"type": "subscribe", "id": {LONG: LONG}, "table": LONG},
        {"type": "subscribe", "id": "a", "table": "t", "where": {LONG: 1}, "columns": {LONG: 1}},
        {"type": LONG},
    ],
)
def test_what_was_sent_is_not_repeated(frame: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        decode_client_frame(json.dumps(frame))
    assert str(caught.value).count("geheim") <= 7  # 40 characters
    assert len(str(caught.value)) < 160


@given(json_values)
def test_any_json_is_answered_with_a_registered_code(value: Any) -> None:
    _decoded_or_refused(json.dumps(value))


@given(st.sampled_from(TYPES), st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_any_fields_are_answered_with_a_registered_code(type_: str, fields: dict[str, Any]) -> None:
    _decoded_or_refused(json.dumps({"type": type_, **fields}))


@given(st.binary(max_size=60))
def test_any_bytes_are_answered_with_a_registered_code(data: bytes) -> None:
    _decoded_or_refused(data)


def _decoded_or_refused(data: str | bytes) -> None:
    try:
        decode_client_frame(data)
    except (BadFrame, UnknownType) as error:
        assert len(str(error)) < 200  # noqa: PT017 - either way is right


def test_unknown_fields_are_ignored_and_fields_have_defaults() -> None:
    frame = decode_client_frame('{"later":[1],"type":"subscribe","id":"a","table":"t"}')
    assert frame == Subscribe("a", "t")
    assert isinstance(frame, Subscribe)
    assert (frame.snapshot, frame.mode, frame.where) == (True, "every", None)
    assert decode_client_frame('{"type":"ack","n":3}') == Ack(3)


def test_type_comes_first_on_the_wire() -> None:
    assert encode(Hello("c_x")).startswith(b'{"type":"hello",')
    assert msgspec.json.decode(encode(Ack(1))) == {"type": "ack", "n": 1}
