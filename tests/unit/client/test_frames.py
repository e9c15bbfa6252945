"""Frames as a client reads them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from cloudsync.client.errors import FrameUnreadable
from cloudsync.client.frames import DataCreate, SyncBatch, decode

_ROW = b'{"type":"data.create","n":1,"sub":["s"],"table":"public.t","key":{"id":1},"version":1,"row":%s}'
_LONG = b"1" + b"0" * 5000


def test_an_integer_of_any_length_is_read() -> None:
    """PostgreSQL stores it in a document; one row must not end the client's connection."""
    frame = decode(_ROW % (b'{"id":1,"doc":[%s,1e400,0.5,7]}' % _LONG))
    assert isinstance(frame, DataCreate)
    assert frame.row == {"id": 1, "doc": [Decimal(10) ** 5000, Decimal("1e400"), 0.5, 7]}
    batch = decode(
        b'{"type":"sync.batch","n":1,"sub":["s"],"events":[%s]}' % (_ROW % (b'{"doc":%s}' % _LONG))
    )
    assert isinstance(batch, SyncBatch)
    assert isinstance(batch.events[0], DataCreate)


@pytest.mark.parametrize("frame", [b'{"type":"data.create","n":%s}' % _LONG, b"{", _ROW % (b"[" * 5000)])
def test_what_is_no_frame_is_unreadable(frame: bytes) -> None:
    with pytest.raises(FrameUnreadable):
        decode(frame)
