"""Conditions as written on a command line."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudsync.client.conditions import parse
from cloudsync.errors import BadFilter


@pytest.mark.parametrize(
    ("conditions", "where"),
    [
        ([], None),
        (["done=false"], {"done": False}),
        (["done == TRUE"], {"done": True}),
        (["n>=3", "n<9"], {"n": {"gte": "3", "lt": "9"}}),
        (["n=3", "n=3"], {"n": "3"}),
        (["n=3", "n<9"], {"n": {"eq": "3", "lt": "9"}}),
        (["price > 12345678901234567890.123"], {"price": {"gt": "12345678901234567890.123"}}),
        (["name != 'it''s'"], {"name": {"ne": "it's"}}),
        (["name=''"], {"name": ""}),
        (["name='true'"], {"name": "true"}),
        (["name=a=b"], {"name": "a=b"}),
        (["name= two words "], {"name": "two words"}),
        (["due is null"], {"due": {"is_null": True}}),
        (["due IS  NOT NULL"], {"due": {"is_null": False}}),
        (["state in (open, 'on, hold',x)"], {"state": {"in": ["open", "on, hold", "x"]}}),
        (["state in(1)"], {"state": {"in": ["1"]}}),
        (['"Odd ""name"<>1'], {'Odd "name': {"ne": "1"}}),
        (["größe<=1"], {"größe": {"lte": "1"}}),
        (["index=1", "isx is null"], {"index": "1", "isx": {"is_null": True}}),
    ],
)
def test_conditions_become_a_where_clause(conditions: list[str], where: dict[str, Any] | None) -> None:
    assert parse(conditions) == where


@pytest.mark.parametrize(
    "condition",
    ["", "=3", "n", "n=", "n~3", "n='x", "n='x' y", "n=null", "n in 1,2", "n in (1", "n in ()", "n in (1,)",
     "n in (,)", "n in ('a' 'b')", "n in ('a)", "n is nothing", '"n=3', '""=3'],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(condition: str) -> None:
    with pytest.raises(BadFilter) as refused:
        parse([condition])
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")


def test_two_different_values_for_one_operator_are_refused() -> None:
    with pytest.raises(BadFilter, match="twice"):
        parse(["n=1", "n=2"])


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(BadFilter):
        parse([text])


@given(st.text(), st.lists(st.text(), min_size=1, max_size=4))
def test_quoted_values_are_taken_as_they_are(value: str, values: list[str]) -> None:
    def quoted(text: str) -> str:
        return "'" + text.replace("'", "''") + "'"

    assert parse([f"c = {quoted(value)}"]) == {"c": value}
    assert parse([f"c in ({', '.join(map(quoted, values))})"]) == {"c": {"in": values}}
