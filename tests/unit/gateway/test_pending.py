"""What waits for a slow subscription: the newest state per row, whatever the order in which events come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudsync.events import DELETE, UPDATE, ChangeEvent
from cloudsync.gateway.news import RowState
from cloudsync.gateway.pending import LatestRows


def state(key: int, version: int, gone: bool) -> RowState:
    event = ChangeEvent(
        lsn=version,
        ordinal=0,
        xid=version,
        horizon=1,
        shard=0,
        old_shard=None,
        tenant="acme",
        table_id=1,
        table="public.t",
        op=DELETE if gone else UPDATE,
        version=version,
        key=str(key).encode(),
        row=None if gone else b'{"v":%d}' % version,
        old=None,
        audience=None,
        old_audience=None,
        actor=None,
        text_op=None,
        captured_us=0,
        committed_us=0,
    )
    return RowState(event, "delete" if gone else "update", None)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.booleans())))
def test_the_newest_version_of_each_row_stays_in_whatever_order_they_come(
    events: list[tuple[int, int, bool]],
) -> None:
    """Events of one row may come by two shards."""
    rows = LatestRows()
    newest: dict[int, tuple[int, bool]] = {}
    waiting_bytes = 0
    for key, version, gone in events:
        waiting_bytes += rows.add(state(key, version, gone))
        if version > newest.get(key, (0, False))[0]:
            newest[key] = (version, gone)
    assert waiting_bytes == rows.size_bytes
    taken = {}
    while rows:
        text = rows.take(1).text
        taken[int(text.split('"key":')[1][0])] = text
    assert rows.size_bytes == 0
    for key, (version, gone) in newest.items():
        text = taken.pop(key)
        assert f'"version":{version}' in text
        assert ('"row":' in text) is not gone
    assert taken == {}
