"""Frames as a receiver reads them: shared parts met once, and everything else as it is."""

from __future__ import annotations

import pytest

from cloudsync.bench.payloads import PayloadReader
from cloudsync.events import ChangeEvent
from cloudsync.protocol.frames import Body, batches, event_text, single


def event(number: int, op: str = "u", version: int = 2) -> ChangeEvent:
    return ChangeEvent(
        10, number, 7, 7, 0, None, "bench", 1, "public.t", op, version, f'{{"id": "{number}"}}'.encode(),
        b'{"id": "1", "n": 2}', b'["n"]', None, None, None, None, 90, 100, 110, 120,
    )  # fmt: skip


def frame(body: Body, n: int = 1) -> bytes:
    return body.frame(n, '"s1"').encode()


def update(number: int, version: int = 2) -> Body:
    return single("update", event_text(event(number, version=version), "update", None))


def test_a_single_event() -> None:
    found = PayloadReader().read(frame(update(1000), n=3))
    assert found is not None
    n, sent_us, payload = found
    assert n == 3
    assert sent_us > 1_600_000_000_000_000
    assert payload.rows == [("1000", 2)]
    assert payload.times == (((100, 110, 120), 1),)
    assert not payload.last
    assert payload.sentinels == []


def test_a_delete_has_no_times() -> None:
    found = PayloadReader().read(frame(single("delete", event_text(event(1000, "d"), "delete", None))))
    assert found is not None
    n, sent_us, payload = found
    assert (n, sent_us, payload.rows, payload.times) == (1, 0, [("1000", 2)], ())


def test_a_batch_counts_events_of_one_transaction_together() -> None:
    texts = [("update", event_text(event(number), "update", None)) for number in (1000, 1001, 1002)]
    (body,) = batches(texts, limit_bytes=100_000)  # type: ignore[arg-type]  # the literal is a verdict
    found = PayloadReader().read(frame(body))
    assert found is not None
    assert found[2].rows == [("1000", 2), ("1001", 2), ("1002", 2)]
    assert found[2].times == (((100, 110, 120), 3),)


def test_the_end_of_a_snapshot() -> None:
    (body,) = batches((), limit_bytes=100_000, ending=',"snapshot":true,"last":true,"count":0')
    found = PayloadReader().read(frame(body))
    assert found is not None
    assert found[2].last
    assert found[2].rows == []


def test_what_all_clients_share_is_decoded_once() -> None:
    reader = PayloadReader()
    body = update(1000)
    payloads = {id(found[2]) for n in range(1, 51) if (found := reader.read(frame(body, n)))}
    assert len(payloads) == 1
    assert reader.decoded == 1
    other = reader.read(frame(update(1000, version=3), 51))
    assert other is not None
    assert other[2].rows == [("1000", 3)]
    assert reader.decoded == 2


def test_sentinels_are_noted_and_not_timed() -> None:
    found = PayloadReader().read(frame(update(15)))
    assert found is not None
    assert found[2].sentinels == [(15, 2)]
    assert found[2].times == ()


@pytest.mark.parametrize("text", ['{"type":"heartbeat","cursor":null,"lag_ms":0,"token_expires_in":1}'])
def test_other_frames_are_none_of_ours(text: str) -> None:
    assert PayloadReader().read(text.encode()) is None


def test_a_frame_in_another_order_is_read_all_the_same() -> None:
    text = (
        b'{"n": 4, "sub": ["s1"], "sent": 5, "key": {"id": 1000}, "version": 9, "type": "data.update",'
        b' "times": {"commit": 1, "feed": 2, "route": 3}}'
    )
    found = PayloadReader().read(text)
    assert found is not None
    assert found[:2] == (4, 5)
    assert found[2].rows == [("1000", 9)]
    assert found[2].times == (((1, 2, 3), 1),)
