"""The hash chain of a writing process and day: a row that was removed or altered shows.

digest(n) = HMAC-SHA256(key, digest(n-1) ‖ row n), the first one after 32 zero bytes. The key is derived from
the keyring, so whoever can only write to the database cannot continue a chain that was tampered with.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, date, datetime
from typing import Final

import msgspec

from cloudsync.audit.records import Record
from cloudsync.keyring import Keyring

START: Final = bytes(32)
_encode = msgspec.json.Encoder().encode


def chain_key(keyring: Keyring) -> bytes:
    """The secret of all chains. It does not change when sealing keys are rotated."""
    return bytes.fromhex(keyring.tag("audit chain", size_bytes=32))


def day_of(at_us: int) -> date:
    """The UTC day of a moment in microseconds since 1970."""
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).date()


class Row(msgspec.Struct, frozen=True, gc=False):
    """A record in its place: recorded at, by whom, as which of the writer's rows of that day."""

    at_us: int
    writer: str
    sequence: int
    record: Record
    digest: bytes


class Head(msgspec.Struct, frozen=True, gc=False):
    """Where a chain ends. Quoted in later rows, it shows that the end was cut off."""

    writer: str
    day: date
    sequence: int = 0
    digest: bytes = START

    def seal(self, key: bytes) -> bytes:
        """Makes a head that is kept beside the log as hard to alter as the log."""
        return hmac.digest(key, b"head" + _encode(self), hashlib.sha256)

    @property
    def quote(self) -> list[object]:
        return [self.writer, self.day.isoformat(), self.sequence, self.digest.hex()]


def link(key: bytes, previous: bytes, at_us: int, writer: str, sequence: int, record: Record) -> bytes:
    """The digest of a row that follows the one with the digest `previous`."""
    r = record
    content = _encode(
        (at_us, r.happened_us, writer, sequence, r.tenant, r.user, r.client, r.kind, r.table, r.key,
         r.event_id, r.outcome, r.counts)
    )  # fmt: skip
    return hmac.digest(key, previous + content, hashlib.sha256)


def extend(key: bytes, head: Head, records: list[Record], at_us: int) -> tuple[list[Row], Head]:
    """The rows that put records behind a head, and the new head."""
    rows = []
    digest, sequence = head.digest, head.sequence
    for record in records:
        sequence += 1
        digest = link(key, digest, at_us, head.writer, sequence, record)
        rows.append(Row(at_us, head.writer, sequence, record, digest))
    return rows, Head(head.writer, head.day, sequence, digest)
