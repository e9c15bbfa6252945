"""The index finds what trying every topic finds, for rows that come, change and go."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudsync.events import CREATE, DELETE, MATCHED_BEFORE, MATCHES_NOW, UPDATE, ChangeEvent
from cloudsync.registry.filters import OPERATORS_BY_KIND, Condition, compile_filter
from cloudsync.registry.matcher import Matcher, TableTopics
from cloudsync.registry.topics import HostedTopic, Topic

COLUMNS = {"id": "integer", "big": "integer", "price": "numeric", "ratio": "float", "name": "text",
           "code": "padded", "done": "plain", "at": "time"}  # fmt: skip
# As in row JSON: equal values in different forms are what an index gets wrong.
VALUES: dict[str, list[Any]] = {
    "integer": [0, 1, 2, "0", "1", "9223372036854775807"],
    "numeric": ["0", "0.00", "-0", "1", "1.0", "1.00", "1.5", "NaN", "Infinity", "-Infinity"],
    "float": [0, -0.0, 1, 1.0, 1.5, "NaN", "Infinity", "-Infinity", 10**300],
    "text": ["", "a", "A", "ä", "💥", "\ue000"],
    "padded": ["a", "a   ", "", "    ", "b"],
    "plain": [True, False],
    "time": [
        "2020-01-01T00:00:00",
        "2020-01-01T00:00:00.5",
        "0044-01-01T00:00:00 BC",
        "infinity",
        "-infinity",
    ],
}


def event(op: str, row: dict[str, Any] | None, old: dict[str, Any] | None) -> ChangeEvent:
    return ChangeEvent(
        1, 1, 1, 1, 0, None, "acme", 1, "public.t", op, 1, b"{}",
        json.dumps(row).encode() if row is not None else None,
        json.dumps(old).encode() if old is not None else None, None, None, None, None, 0, 0,
    )  # fmt: skip


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    column = draw(st.sampled_from(sorted(COLUMNS)))
    kind = COLUMNS[column]
    operator = draw(st.sampled_from(sorted(OPERATORS_BY_KIND[kind])))
    if operator == "is_null":
        return Condition(column, operator, draw(st.booleans()), kind)
    if operator == "in":
        return Condition(column, operator, draw(st.lists(st.sampled_from(VALUES[kind]), max_size=3)), kind)
    return Condition(column, operator, draw(st.sampled_from(VALUES[kind])), kind)


filters = st.lists(conditions(), max_size=3).map(tuple)
rows = st.fixed_dictionaries({c: st.none() | st.sampled_from(VALUES[k]) for c, k in COLUMNS.items()})


def hosted(number: int, where: tuple[Condition, ...]) -> HostedTopic:
    return HostedTopic(Topic(f"topic{number}", "acme", "public.t", where), {"gw"})


@settings(max_examples=300)
@given(st.lists(filters, max_size=12), rows, rows, st.sampled_from([CREATE, UPDATE, DELETE]))
def test_the_index_equals_brute_force(
    wheres: list[tuple[Condition, ...]], before: dict[str, Any], now: dict[str, Any], op: str
) -> None:
    topics = [hosted(n, where) for n, where in enumerate(wheres)]
    if op == CREATE:
        change = event(op, now, None)
    elif op == DELETE:
        change = event(op, None, before)
    else:  # `old` holds only what changed
        change = event(op, now, {c: v for c, v in before.items() if v != now[c]})
    expected = {}
    for topic in topics:
        holds = compile_filter(topic.topic.where)
        bits = 0
        if op != CREATE and holds(before):
            bits |= MATCHED_BEFORE
        if op != DELETE and holds(now):
            bits |= MATCHES_NOW
        if bits:
            expected[topic.topic.id] = bits
    found = list(TableTopics(topics).match(change))
    assert len(found) == len({h.topic.id for h, _ in found})  # no topic twice
    assert {h.topic.id: bits for h, bits in found} == expected


def test_tenants_and_tables_are_apart_and_replaced_whole() -> None:
    matcher = Matcher()
    where = (Condition("id", "eq", 1, "integer"),)
    matcher.replace("acme", [hosted(1, where), hosted(2, ())])
    matcher.replace("other", [HostedTopic(Topic("x", "other", "public.t", ()), {"gw"})])
    change = event(CREATE, {"id": 1}, None)
    assert [h.topic.id for h, _ in matcher.match(change)] == ["topic2", "topic1"]
    change.table = "public.u"
    assert list(matcher.match(change)) == []
    change.table, change.tenant = "public.t", "other"
    assert [h.topic.id for h, _ in matcher.match(change)] == ["x"]
    change.tenant = None
    assert list(matcher.match(change)) == []
    matcher.replace("other", [])
    change.tenant = "other"
    assert list(matcher.match(change)) == []


@pytest.mark.parametrize("kind", sorted(set(COLUMNS.values()) | {"ordered"}))
@pytest.mark.parametrize("operator", ["eq", "in", "lt", "ne"])
@pytest.mark.parametrize("value", ["abc", 5, 1.5, True, [1], {"a": 1}, "", "2020", "1e999999999"], ids=str)
def test_a_column_whose_type_changed_stops_nobody(kind: str, operator: str, value: Any) -> None:
    """ALTER COLUMN TYPE reaches topics in their own time; until then rows may hold anything."""
    if operator not in OPERATORS_BY_KIND[kind]:
        return
    operand: Any = VALUES.get(kind, ["12:00:00"])[0]
    where = (Condition("c", operator, [operand] if operator == "in" else operand, kind),)
    topics = TableTopics([hosted(1, where), hosted(2, ())])
    for change in (
        event(CREATE, {"c": value}, None),
        event(UPDATE, {"c": value}, {"c": operand}),
        event(DELETE, None, {"c": value}),
    ):
        assert "topic2" in {h.topic.id for h, _ in topics.match(change)}
