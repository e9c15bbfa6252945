"""What an event tells of a conflict, and to whom."""

from __future__ import annotations

import msgspec

from cloudsync.events import CONFLICT, RESOLUTION, ChangeEvent
from cloudsync.protocol.conflicts import conflict_frame
from integration.routing.flow import make_event


def event(op: str, **detail: object) -> ChangeEvent:
    told = {"id": "c1", "revision": 2, "fields": ["a", "b"], **detail}
    return msgspec.structs.replace(make_event(40, shard=3), op=op, version=7, old=msgspec.json.encode(told))


def detected(**detail: object) -> ChangeEvent:
    values = {"theirs": {"a": 1, "b": 2}, "mine": {"a": 3, "b": 4}, "base": {"a": 5, "b": 6}}
    return event(CONFLICT, **values, base_audience=["ann"], by={"user_id": "ann"}, **detail)


def shown(frame: object) -> dict[str, object]:
    content: dict[str, object] = msgspec.json.decode(msgspec.json.encode(frame))
    return content


def test_the_base_is_for_who_could_read_it() -> None:
    told = detected()
    ann = shown(conflict_frame(told, "ann", None))
    assert (ann["base"], ann["by"]) == ({"a": 5, "b": 6}, {"user_id": "ann"})
    bob = shown(conflict_frame(told, "bob", None))
    assert (bob["base"], bob["theirs"], bob["mine"]) == (None, {"a": 1, "b": 2}, {"a": 3, "b": 4})
    assert b"5" not in msgspec.json.encode({k: bob[k] for k in ("base", "theirs", "mine")})


def test_a_subscription_hears_of_its_columns_alone() -> None:
    frame = shown(conflict_frame(detected(), "ann", ("id", "b")))
    assert (frame["fields"], frame["theirs"], frame["mine"], frame["base"]) == (
        ["b"],
        {"b": 2},
        {"b": 4},
        {"b": 6},
    )
    assert conflict_frame(detected(), "ann", ("id", "c")) is None
    over = event(RESOLUTION, choice="mine", version=9)
    assert conflict_frame(over, "ann", ("id", "c")) is None
    assert shown(conflict_frame(over, "ann", ("a",)))["version"] == 9
