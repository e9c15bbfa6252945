"""Which topics an event concerns: an equality index first, then the whole filter.

Per (tenant, table) the topics are kept in three places: those without a filter, those found by the value
of one column that they compare for equality, and the rest, which are tried one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from cloudsync.events import (
    CONFLICT_OPERATIONS,
    CREATE,
    DELETE,
    MATCHED_BEFORE,
    MATCHES_NOW,
    ONLY_KEEPING,
    ONLY_LOSING,
    UPDATE,
    ChangeEvent,
)
from cloudsync.registry.filters import NOT_OF_KIND, Predicate, compile_filter, normalizer
from cloudsync.registry.topics import HostedTopic
from cloudsync.rows import RowValues, columns_of

_BOTH: Final = MATCHED_BEFORE | MATCHES_NOW


class _Entry(msgspec.Struct, gc=False):
    hosted: HostedTopic
    predicate: Predicate


class TableTopics:
    """The topics of one table of one tenant."""

    def __init__(self, topics: Iterable[HostedTopic]) -> None:
        self.unfiltered: list[HostedTopic] = []
        self._index: dict[tuple[str, str], dict[Any, list[_Entry]]] = {}
        self._rest: list[_Entry] = []
        for hosted in topics:
            self._add(hosted)
        self.filtered = bool(self._index or self._rest)

    def _add(self, hosted: HostedTopic) -> None:
        where = hosted.topic.where
        if not where:
            self.unfiltered.append(hosted)
            return
        entry = _Entry(hosted, compile_filter(where))
        for condition in where:
            if condition.operator in ("eq", "in"):
                operands = condition.operand if condition.operator == "in" else [condition.operand]
                normal = normalizer(condition.kind)
                values = self._index.setdefault((condition.column, condition.kind), {})
                for operand in {normal(o) for o in operands if o is not None}:
                    values.setdefault(operand, []).append(entry)
                return
        self._rest.append(entry)

    def match(self, event: ChangeEvent) -> Iterator[tuple[HostedTopic, int]]:
        """Topics that the event concerns, with `MATCHED_BEFORE` and `MATCHES_NOW` bits."""
        always = (
            _BOTH
            if event.op not in (CREATE, DELETE)
            else MATCHES_NOW
            if event.op == CREATE
            else MATCHED_BEFORE
        )
        for hosted in self.unfiltered:
            yield hosted, always
        if not self.filtered:
            return
        row = columns_of(event.row) if event.row else {}
        old = columns_of(event.old) if event.old and event.op not in CONFLICT_OPERATIONS else {}
        now = RowValues(row) if event.row else None
        before = None if event.op == CREATE else RowValues({**row, **old})
        verdicts: dict[str, int] = {}
        found: dict[str, HostedTopic] = {}
        for values, bit in ((before, MATCHED_BEFORE), (now, MATCHES_NOW)):
            if values is None:
                continue
            for entry in self._candidates(values):
                if entry.predicate(values):
                    topic_id = entry.hosted.topic.id
                    verdicts[topic_id] = verdicts.get(topic_id, 0) | bit
                    found[topic_id] = entry.hosted
        for topic_id, verdict in verdicts.items():
            yield found[topic_id], verdict

    def _candidates(self, row: Mapping[str, Any]) -> Iterator[_Entry]:
        for (column, kind), values in self._index.items():
            value = row.get(column)
            if value is not None:
                try:
                    entries = values.get(normalizer(kind)(value), ())
                except NOT_OF_KIND:
                    continue
                yield from entries
        yield from self._rest


class Matcher:
    """All topics that a router knows, by tenant and table."""

    def __init__(self) -> None:
        self._tables: dict[tuple[str, str], TableTopics] = {}
        self._tenants: dict[str, set[str]] = {}

    def replace(self, tenant: str, topics: Iterable[HostedTopic]) -> None:
        """Take a tenant's topics anew."""
        for table in self._tenants.pop(tenant, ()):
            del self._tables[tenant, table]
        grouped: dict[str, list[HostedTopic]] = {}
        for hosted in topics:
            grouped.setdefault(hosted.topic.table, []).append(hosted)
        for table, members in grouped.items():
            self._tables[tenant, table] = TableTopics(members)
        if grouped:
            self._tenants[tenant] = set(grouped)

    def match(self, event: ChangeEvent) -> Iterator[tuple[HostedTopic, int]]:
        """Topics that a row's event concerns."""
        table = self._tables.get((event.tenant or "", event.table))
        return table.match(event) if table is not None else iter(())


def part_told(event: ChangeEvent, shard: int) -> int:
    """Which part of an event is told through the feed of `shard`: bits beside those of `match`."""
    if event.old_shard is None or event.old_shard == event.shard:
        return 0
    return ONLY_KEEPING if shard == event.shard else ONLY_LOSING


def changed_columns(event: ChangeEvent) -> bytes | None:
    """What remains of `old` once an event was matched: which columns changed. Old values go no further.

    But what an event tells of a conflict stays: the gateway knows who may read the base.
    """
    if event.op in CONFLICT_OPERATIONS:
        return event.old
    if event.old is None or event.op != UPDATE:
        return None
    return msgspec.json.encode(list(columns_of(event.old)))
