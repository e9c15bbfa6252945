"""Whether the audit log is as it was written: every chain is computed again, every end is compared.

Three witnesses have to agree: the rows' own digests, the sealed heads beside the log, and the heads that rows
of other chains quote. A fourth may be given: heads that the auditor told the logs, kept outside the database.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any, Final

import msgspec
from psycopg import Connection, IsolationLevel

from cloudsync.audit.chain import START, Head, link
from cloudsync.audit.records import HEADS, OPENED, Record
from cloudsync.audit.writer import microseconds

_FETCH: Final = 2000
_KEPT_DAYS: Final = 30

_ROWS: Final = """
SELECT (at AT TIME ZONE 'UTC')::date, at, happened_at, writer, sequence, tenant_id, user_id, client_id, kind,
       table_name, key::text, event_id, outcome, counts::text, digest
FROM cloudsync.audit_log WHERE at >= %s::date::timestamp AT TIME ZONE 'UTC'
  AND at < (%s::date + 1)::timestamp AT TIME ZONE 'UTC'
ORDER BY writer, sequence
"""


class Fault(msgspec.Struct, frozen=True):
    """The first thing that is wrong with a chain."""

    writer: str
    day: date
    sequence: int
    what: str

    def __str__(self) -> str:
        return f"row {self.sequence} of {self.writer} on {self.day.isoformat()}: {self.what}"


class Report(msgspec.Struct):
    """What a verification looked at and found."""

    rows: int = 0
    chains: int = 0
    gaps: int = 0
    faults: list[Fault] = msgspec.field(default_factory=list)
    heads: list[Head] = msgspec.field(default_factory=list)


def parse_head(text: str) -> Head:
    """From the form that the auditor logs: writer/day/sequence/digest. Raises ValueError."""
    writer, day, sequence, digest = text.rsplit("/", 3)
    return Head(writer, date.fromisoformat(day), int(sequence), bytes.fromhex(digest))


class Verification:
    """Goes through the log day by day; memory is for the heads, not for the rows."""

    def __init__(self, connection: Connection[Any], key: bytes) -> None:
        self._connection = connection
        self._key = key
        self._claims: dict[tuple[str, date], Head] = {}
        self._ends: dict[tuple[str, date], Head] = {}
        self._broken: set[tuple[str, date]] = set()
        self.report = Report()

    def run(self, since: date, until: date, expected: Sequence[Head] = ()) -> Report:
        """Verify the chains of these days. Raises psycopg.Error."""
        self._connection.isolation_level = IsolationLevel.REPEATABLE_READ  # rows and heads of one moment
        with self._connection.transaction():
            self._read_heads(since, until)
            quotes = [(head, "the head given to this command") for head in expected]
            day = since
            while day <= until:
                quotes += self._verify_day(day)
                day += timedelta(days=1)
            self._compare(since, until, quotes)
        self.report.chains = len(self._ends)
        self.report.heads = sorted(self._ends.values(), key=lambda head: (head.day, head.writer))
        self.report.faults.sort(key=lambda fault: (fault.day, fault.writer, fault.sequence))
        return self.report

    def _read_heads(self, since: date, until: date) -> None:
        rows = self._connection.execute(
            "SELECT writer, day, sequence, digest, seal FROM cloudsync.audit_heads"
            " WHERE day BETWEEN %s AND %s",
            (since, until),
        )
        for writer, day, sequence, digest, seal in rows:
            head = Head(writer, day, sequence, bytes(digest))
            if head.seal(self._key) != bytes(seal):
                self._fault(writer, day, sequence, "its head beside the log was altered")
            else:
                self._claims[writer, day] = head

    def _verify_day(self, day: date) -> list[tuple[Head, str]]:
        quotes: list[tuple[Head, str]] = []
        digest, sequence, chain = START, 0, ("", day)
        for at_us, writer, number, stored, record in self._rows(day):
            if (writer, day) != chain:
                digest, sequence, chain = START, 0, (writer, day)
            self.report.rows += 1
            self.report.gaps += record.kind == "audit.gap"
            if chain in self._broken:
                continue
            if number != sequence + 1:
                missing = sequence + 1 if number > sequence + 1 else number
                self._fault(
                    writer, day, missing, "is missing" if number > sequence + 1 else "is there more than once"
                )
                continue
            digest, sequence = link(self._key, digest, at_us, writer, number, record), number
            if digest != stored:
                self._fault(writer, day, number, "was altered, or the row before it was")
                continue
            self._ends[chain] = Head(writer, day, sequence, digest)
            if record.kind in (HEADS, OPENED) and record.counts is not None:
                quotes += [(quoted, f"row {number} of {writer}") for quoted in _quotes(record.counts)]
        return quotes

    def _rows(self, day: date) -> Iterator[tuple[int, str, int, bytes, Record]]:
        with self._connection.cursor(name="cloudsync_audit") as cursor:
            cursor.itersize = _FETCH
            cursor.execute(_ROWS, (day, day))
            for row in cursor:
                (_, at, happened, writer, sequence, tenant, user, client, kind, table, key, event_id, outcome,
                 counts, digest) = row  # fmt: skip
                record = Record(
                    kind=kind,
                    happened_us=microseconds(happened),
                    tenant=tenant,
                    user=user,
                    client=client,
                    table=table,
                    key=key,
                    event_id=event_id,
                    outcome=outcome,
                    counts=counts,
                )
                yield microseconds(at), writer, sequence, bytes(digest), record

    def _compare(self, since: date, until: date, quotes: list[tuple[Head, str]]) -> None:
        for chain, end in self._ends.items():
            if chain not in self._claims and chain not in self._broken:
                self._fault(*chain, end.sequence, "has no head beside the log: rows behind it may be missing")
        for chain, head in self._claims.items():
            self._hold(chain, head, "the head beside the log")
        for head, source in quotes:
            if since <= head.day <= until:
                self._hold((head.writer, head.day), head, source)

    def _hold(self, chain: tuple[str, date], head: Head, source: str) -> None:
        """The chain must have reached this head."""
        if chain in self._broken:
            return
        end = self._ends.get(chain)
        if end is None or end.sequence < head.sequence:
            first = end.sequence + 1 if end is not None else 1
            self._fault(*chain, first, f"is missing: {source} says that the chain has {head.sequence} rows")
            return
        digest = end.digest if end.sequence == head.sequence else self._digest(chain, head.sequence)
        if digest != head.digest:
            self._fault(*chain, head.sequence, f"is not the row that {source} speaks of")

    def _digest(self, chain: tuple[str, date], sequence: int) -> bytes | None:
        """The digest of a row in the middle of a chain that was found whole."""
        writer, day = chain
        row = self._connection.execute(
            "SELECT digest FROM cloudsync.audit_log WHERE at >= %s::date::timestamp AT TIME ZONE 'UTC'"
            " AND at < (%s::date + 1)::timestamp AT TIME ZONE 'UTC' AND writer = %s AND sequence = %s",
            (day, day, writer, sequence),
        ).fetchone()
        return bytes(row[0]) if row is not None else None

    def _fault(self, writer: str, day: date, sequence: int, what: str) -> None:
        self._broken.add((writer, day))
        self.report.faults.append(Fault(writer, day, sequence, what))


def _quotes(counts: str) -> list[Head]:
    content: dict[str, Any] = msgspec.json.decode(counts)
    quoted = [*content.get("heads", ()), *([content["follows"]] if "follows" in content else ())]
    return [
        Head(w, date.fromisoformat(day), sequence, bytes.fromhex(digest))
        for w, day, sequence, digest in quoted
    ]


def oldest_day(today: date) -> date:
    """The first day that upkeep still keeps."""
    return today - timedelta(days=_KEPT_DAYS)
