"""A view that differs from SQL in any way is found out, and fails the demonstration."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from cloudsync.client.replica import Key, Row
from cloudsync.dev.comparison import Difference, differences
from cloudsync.dev.demo import Outcome

EXPECTED: dict[Key, Row] = {
    ("1",): {"id": "1", "title": "a", "n": 1},
    ("2",): {"id": "2", "title": None, "n": 2},
}


def tampered(**changes: object) -> dict[Key, Row]:
    return {**EXPECTED, ("1",): {**EXPECTED["1",], **changes}}


def test_a_view_that_equals_sql() -> None:
    difference = differences(MappingProxyType(dict(EXPECTED)), EXPECTED)
    assert difference.equal
    assert str(difference) == "2 rows, equal to SQL"


@pytest.mark.parametrize(
    ("view", "found"),
    [
        ({("1",): EXPECTED["1",]}, Difference(2, [("2",)], [], [])),
        ({**EXPECTED, ("3",): {"id": "3"}}, Difference(2, [], [("3",)], [])),
        (tampered(n=7), Difference(2, [], [], [("1",)])),
        (tampered(title=None), Difference(2, [], [], [("1",)])),
        (tampered(more=1), Difference(2, [], [], [("1",)])),
        ({}, Difference(2, [("1",), ("2",)], [], [])),
    ],
)
def test_a_view_that_was_tampered_with(view: dict[Key, Row], found: Difference) -> None:
    difference = differences(view, EXPECTED)
    assert difference == found
    assert not difference.equal
    assert "equal" not in str(difference)
    assert Outcome(1, 1, [], [("c", "t", difference)]).status == 1


def test_one_wrong_view_among_many_fails_the_demonstration() -> None:
    right, wrong = differences(EXPECTED, EXPECTED), differences({}, EXPECTED)
    assert Outcome(1, 1, [], [("a", "t", right), ("b", "t", right)]).status == 0
    assert Outcome(1, 1, [], [("a", "t", right), ("b", "t", wrong)]).status == 1


def test_a_demonstration_without_changes_shows_nothing() -> None:
    assert Outcome(0, 0, [], []).status == 1
