"""Frames: who is told what, numbers exactly as PostgreSQL wrote them, sizes in bytes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudsync.events import CREATE, DELETE, MATCHED_BEFORE, MATCHES_NOW, UPDATE, ChangeEvent
from cloudsync.protocol.frames import (
    batches,
    event_text,
    for_everyone,
    project_text,
    shared_verdict,
    single,
    size_of,
    snapshot_text,
    verdict_for,
)


def event(
    op: str = UPDATE,
    *,
    row: str | None = None,
    old: str | None = None,
    audience: list[str] | None = None,
    old_audience: list[str] | None = None,
    table: str = "public.t",
    key: str = '{"id": 1}',
    version: int = 5,
) -> ChangeEvent:
    return ChangeEvent(
        1, 2, 3, 3, 0, None, "acme", 1, table, op, version, key.encode(), row.encode() if row else None,
        old.encode() if old else None, audience, old_audience, None, None, 1_700_000_000_123_456, 1,
    )  # fmt: skip


AUDIENCES = {"everyone": None, "me": ["me"], "other": ["other"], "nobody": []}


@pytest.mark.parametrize(("old", "new", "bits"), list(itertools.product(AUDIENCES, AUDIENCES, range(4))))
def test_the_verdict_is_seen_before_and_seen_now(old: str, new: str, bits: int) -> None:
    change = event(audience=AUDIENCES[new], old_audience=AUDIENCES[old])
    before = bits & MATCHED_BEFORE and old in ("everyone", "me")
    now = bits & MATCHES_NOW and new in ("everyone", "me")
    wanted = {(0, 0): None, (1, 0): "delete", (0, 1): "create", (1, 1): "update"}[bool(before), bool(now)]
    assert verdict_for(change, bits, "me") == wanted
    if for_everyone(change):
        assert shared_verdict(bool(bits & MATCHED_BEFORE), bool(bits & MATCHES_NOW)) == wanted


@given(
    st.sampled_from([CREATE, UPDATE, DELETE]),
    st.none() | st.lists(st.sampled_from("ab")),
    st.none() | st.lists(st.sampled_from("ab")),
    st.integers(0, 3),
    st.sampled_from("abc"),
)
def test_what_is_for_everyone_is_the_same_for_each(
    op: str, audience: list[str] | None, old_audience: list[str] | None, bits: int, user: str
) -> None:
    change = event(op, audience=audience, old_audience=old_audience)
    if op == CREATE:
        bits &= MATCHES_NOW
        change.old_audience = []
    if op == DELETE:
        bits &= MATCHED_BEFORE
    if for_everyone(change):
        assert verdict_for(change, bits, user) == shared_verdict(
            bool(bits & MATCHED_BEFORE), bool(bits & MATCHES_NOW)
        )


HUGE = "123456789012345678901234567890.10"
EXACT = '{"id": 1, "big": "9007199254740993", "num": "1.10", "f": 1e-7, "huge": ' + HUGE + "}"


def test_numbers_pass_unchanged() -> None:
    create = single("create", event_text(event(CREATE, row=EXACT), "create", None)).frame(1, '"s"')
    update = single("update", event_text(event(row=EXACT, old='["huge", "f", "big"]'), "update", None)).frame(
        1, '"s"'
    )
    for frame in (create, update):
        assert "123456789012345678901234567890.10" in frame
        assert "1e-7" in frame
        assert '"9007199254740993"' in frame
    assert '"num"' not in update
    assert "123456789012345678901234567890.10" in project_text(EXACT, ("huge",))


def test_columns_are_projected_and_the_key_stays() -> None:
    change = event(row=EXACT, old='["big", "num"]')
    update = json.loads("{" + event_text(change, "update", ("num",)) + "}")
    assert update["changes"] == {"num": "1.10"}
    assert update["key"] == {"id": 1}
    assert (update["version"], update["prev_version"]) == (5, 4)
    untouched = json.loads("{" + event_text(change, "update", ("f",)) + "}")
    assert untouched["changes"] == {}
    create = json.loads("{" + event_text(change, "create", ("f",)) + "}")
    assert list(create["row"]) == ["f"]


@pytest.mark.parametrize("verdict", ["create", "update", "delete"])
@pytest.mark.parametrize("columns", [None, ("num",), ()])
def test_every_frame_is_json_with_its_type_first(verdict: Any, columns: tuple[str, ...] | None) -> None:
    change = event(row=EXACT, old='["num"]', table='we"ird\\schema.tä💥ble', key='{"i\\"d": "ä"}')
    text = single(verdict, event_text(change, verdict, columns)).frame(7, '"s\\"1"')
    assert text.startswith(f'{{"type":"data.{verdict}","n":7,')
    frame = json.loads(text)
    assert frame["sub"] == ['s"1']
    assert frame["table"] == 'we"ird\\schema.tä💥ble'
    assert frame["key"] == {'i"d': "ä"}


def test_a_delete_tells_key_and_version_only() -> None:
    change = event(DELETE, row=None, old='{"secret": "x"}', audience=None, old_audience=["me", "other"])
    frame = json.loads(single("delete", event_text(change, "delete", None)).frame(1, '"s"'))
    assert set(frame) == {"type", "n", "sub", "table", "key", "version"}


def test_a_row_that_left_shows_nothing_of_its_new_content() -> None:
    change = event(row='{"id": 1, "secret": "x"}', old='["secret"]')
    frame = json.loads(single("delete", event_text(change, "delete", None)).frame(1, '"s"'))
    assert set(frame) == {"type", "n", "sub", "table", "key", "version"}


rows = st.text(st.characters(exclude_categories=("Cs",)), max_size=120)


@given(st.lists(rows, max_size=40), st.integers(300, 1500), st.booleans())
def test_batches_keep_their_limit_order_and_count(values: list[str], limit: int, ended: bool) -> None:
    events: list[tuple[Any, str]] = [
        ("create", snapshot_text("public.t", f'{{"id":{n}}}', 1, json.dumps({"v": v}, ensure_ascii=False)))
        for n, v in enumerate(values)
    ]
    ending = ',"last":true' if ended else ""
    bodies = list(batches(events, limit_bytes=limit, ending=ending))
    frames = [json.loads(b.frame(9_999_999_999, '"s"')) for b in bodies]
    assert [e["row"]["v"] for f in frames for e in f["events"]] == values
    assert [bool(f.get("last")) for f in frames] == [False] * (len(frames) - 1) + [ended] * bool(frames)
    assert bool(frames) == bool(values or ended)
    for body, frame in zip(bodies, frames, strict=True):
        size = len(body.frame(9_999_999_999, '"s"').encode())
        if len(frame["events"]) > 1:
            assert size <= limit + 130  # the frame's own fields
        assert body.size_bytes >= size - 70


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_sizes_are_bytes_not_characters(text: str) -> None:
    assert size_of(text) == len(text.encode())
    body = single("create", text)
    assert body.size_bytes >= len(text.encode())


def test_a_batch_of_many_is_not_over_100_kb_as_sent() -> None:
    text = json.dumps({"v": "ü" * 997}, ensure_ascii=False)
    events: list[tuple[Any, str]] = [
        (
            "create",
            snapshot_text("public.t", f'{{"id":{n}}}', 1, text),
        )
        for n in range(200)
    ]
    bodies = list(batches(events, limit_bytes=100_000))
    assert all(len(b.frame(2**40, '"s12"').encode()) <= 100_000 + 200 for b in bodies)
    assert len(bodies) == 5
