"""What is told while a checksum is read moves the checksum exactly as it moves the view."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cloudsync.events import ChangeEvent
from cloudsync.gateway.checksums import Told, effect
from cloudsync.protocol.checksum import checksum, checksum_text
from cloudsync.protocol.frames import Verdict
from cloudsync.sharding import key_text
from cloudsync.sync.snapshot import Visibility

_SNAPSHOT_XMAX = 100


def told(key: int, version: int, verdict: Verdict, xid: int) -> Told:
    event = ChangeEvent(
        1, 1, xid, 0, 0, None, "t", 1, "public.t", "u", version, msgspec.json.encode({"id": key}), b"{}",
        None, None, None, None, None, 0, 0,
    )  # fmt: skip
    return event, verdict


_step = st.tuples(st.integers(0, 4), st.booleans(), st.booleans())


@given(st.lists(_step, max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_the_sum_follows_the_view(steps: list[tuple[int, bool, bool]], repeated: list[int]) -> None:
    """Any history of rows that come, change and go; part of it in the snapshot, part repeated."""
    versions: dict[int, int] = {}
    view: dict[int, int] = {}
    at_snapshot: dict[int, int] = {}
    sent: list[Told] = []
    late = False
    for key, leaves, starts_late in steps:
        if starts_late and not late:
            late, at_snapshot = True, dict(view)
        version = versions[key] = versions.get(key, 0) + 1
        present = key in view
        verdict: Verdict = ("delete" if leaves else "update") if present else "create"
        if verdict == "delete":
            del view[key]
        else:
            view[key] = version
        sent.append(told(key, version, verdict, _SNAPSHOT_XMAX + 1 if late else 5))
    if not late:
        at_snapshot = dict(view)
    sent += [sent[i] for i in repeated if i < len(sent)]

    def total(rows: dict[int, int]) -> int:
        return checksum((key_text([key]), version) for key, version in rows.items())

    moved = effect(sent, Visibility(_SNAPSHOT_XMAX, frozenset()), ("id",))
    assert checksum_text(total(at_snapshot) ^ moved) == checksum_text(total(view))


def test_a_missing_row_shows() -> None:
    rows = [(key_text([n]), n) for n in range(1, 50)]
    assert checksum(rows) != checksum(rows[1:])
    assert checksum(rows) != checksum([(rows[0][0], 2), *rows[1:]])
    assert checksum(reversed(rows)) == checksum(rows)
