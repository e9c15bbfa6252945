"""Who is present: what gateways tell each other, and who is forgotten."""

from __future__ import annotations

import itertools

import msgspec

from cloudsync.registry.rooms import FORGET_S, MEMBERS_TOLD, REFRESH_S, Member, News, Room, Said


def member(name: str, since_ms: int = 0, state: bytes = b"{}") -> Member:
    return Member(name, name, f"c_{name}", since_ms, msgspec.Raw(state))


def room(gateway: str) -> Room:
    return Room(gateway, itertools.count(1))


def names(news: News | None) -> tuple[list[str], list[str], int]:
    assert news is not None
    return [m.id for m in news.here], news.gone, news.count


def said(sender: Room, now_s: float = 0.0, **options: bool) -> Said:
    found = sender.say(now_s, **options)
    assert found is not None
    return msgspec.json.decode(msgspec.json.encode(found), type=Said)


def test_members_come_change_and_go_across_gateways() -> None:
    here, there = room("a"), room("b")
    here.enter(member("ann"))
    there.hear(said(here), 0)
    assert names(there.news()) == (["ann"], [], 1)
    assert there.news() is None
    here.enter(member("ann", state=b'{"cursor":5}'))
    here.enter(member("bob", 1))
    message = said(here)
    assert [m.id for m in message.here] == ["ann", "bob"]
    there.hear(message, 0)
    assert names(there.news()) == (["ann", "bob"], [], 2)
    here.leave("ann")
    message = said(here)
    assert (message.here, message.gone, message.whole) == ([], ["ann"], False)
    there.hear(message, 0)
    assert names(there.news()) == ([], ["ann"], 1)
    assert here.say(0) is None


def test_a_refresh_mends_what_was_missed_and_answers_who_asks() -> None:
    here, there = room("a"), room("b")
    here.enter(member("ann"))
    here.enter(member("bob", 1))
    there.hear(said(here), 0)
    here.leave("ann")
    said(here)  # lost on the way
    assert here.say(REFRESH_S / 2) is None
    there.hear(said(here, REFRESH_S + 1), REFRESH_S + 1)
    assert [m.id for m in there.here()] == ["bob"]
    late = room("c")
    here.hear(said(late, 10, asks=True), 10)
    late.hear(said(here, 10), 10)
    assert [m.id for m in late.here()] == ["bob"]


def test_rooms_that_began_at_once_refresh_at_different_times() -> None:
    numbers = itertools.count(1)
    rooms = [Room("a", numbers, phase_s / 10 * REFRESH_S) for phase_s in range(10)]
    for one in rooms:
        one.enter(member("ann"))
        assert said(one, 100).whole
    assert len({one.whole_due_s for one in rooms}) == 10
    for one in rooms:
        first_s = one.whole_due_s
        assert 100 < first_s <= 100 + REFRESH_S
        assert said(one, first_s).whole
        assert REFRESH_S * 0.99 < one.whole_due_s - first_s <= REFRESH_S


def test_older_messages_are_not_believed() -> None:
    here, there = room("a"), room("b")
    here.enter(member("ann"))
    first = said(here)
    here.leave("ann")
    second = said(here)
    there.hear(second, 0)
    there.hear(first, 0)
    assert there.here() == []


def test_a_room_that_is_made_anew_is_believed() -> None:
    numbers = itertools.count(1)
    first, there = Room("a", numbers), room("b")
    first.enter(member("ann"))
    there.hear(said(first), 0)
    first.leave("ann")
    there.hear(said(first), 0)
    again = Room("a", numbers)
    again.enter(member("ann"))
    there.hear(said(again), 0)
    assert [m.id for m in there.here()] == ["ann"]


def test_a_gateway_that_is_silent_is_forgotten() -> None:
    here, there = room("a"), room("b")
    here.enter(member("ann"))
    there.hear(said(here), 100)
    there.forget(100 + FORGET_S - 1)
    assert [m.id for m in there.here()] == ["ann"]
    there.news()
    there.forget(100 + FORGET_S + 1)
    assert names(there.news()) == ([], ["ann"], 0)
    assert FORGET_S > 2 * REFRESH_S


def test_only_the_first_are_told_and_all_are_counted() -> None:
    here, there = room("a"), room("b")
    for number in range(MEMBERS_TOLD + 50):
        here.enter(member(f"m{number:03}", number))
    message = said(here)
    assert (len(message.here), message.count) == (MEMBERS_TOLD, MEMBERS_TOLD + 50)
    there.enter(member("early", -1))
    there.hear(message, 0)
    come, gone, count = names(there.news())
    assert (len(come), come[0], gone, count) == (MEMBERS_TOLD, "early", [], MEMBERS_TOLD + 51)
    here.leave("m000")
    there.hear(said(here), 0)
    come, gone, count = names(there.news())
    assert (come, gone, count) == (["m099"], ["m000"], MEMBERS_TOLD + 50)
