from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudsync.resolve import text as ot
from unit.resolve.operations import chains, operations, rivals, texts


def test_examples() -> None:
    assert ot.apply("", ["héllo"]) == "héllo"
    assert ot.apply("a👩b", [1, {"d": 1}, "x"]) == "axb"
    assert ot.transform([1, "x"], [1, "y"], "left") == [1, "x"]
    assert ot.transform([1, "x"], [1, "y"], "right") == [2, "x"]
    assert ot.transform([{"d": "abc"}], [1, {"d": 1}], "left") == [{"d": "ac"}]
    assert ot.compose(["abc"], [1, {"d": 1}]) == ["ac"]
    assert ot.compose([{"d": "ab"}], [{"d": 1}]) == [{"d": 3}]
    assert ot.invert([1, {"d": "b"}, "xy"]) == [1, "b", {"d": "xy"}]


@pytest.mark.parametrize(
    "operation",
    [
        None, {}, "abc", [0], [-1, "a"], [""], [{"d": 0}], [{"d": ""}], [{"d": 1.5}], [{"d": True}],
        [True, "a"], [1.0, "a"], [{}], [{"d": 1, "i": 2}], [None], [["a"]], [1], ["a", 3], ["a", "b"],
        [1, 2, "a"], [{"d": 1}, {"d": "x"}],
    ],
)  # fmt: skip
def test_what_is_not_an_operation_in_normal_form(operation: object) -> None:
    with pytest.raises(ot.BadOperation):
        ot.check(operation)


@pytest.mark.parametrize("operation", [[4, "x"], [3, {"d": 1}], [{"d": 4}], [{"d": "abx"}], [1, {"d": "a"}]])
def test_what_does_not_fit_the_text(operation: ot.Operation) -> None:
    with pytest.raises(ot.BadOperation):
        ot.apply("abc", operation)


def test_what_cannot_be_inverted() -> None:
    with pytest.raises(ot.BadOperation):
        ot.invert([{"d": 1}])
    with pytest.raises(ot.BadOperation):
        ot.invertible([{"d": 4}], "abc")


@given(rivals())
def test_transformed_operations_meet(case: tuple[str, list[ot.Operation]]) -> None:
    """TP1, whichever of the two comes first."""
    text, (one, other) = case
    left = ot.check(ot.transform(one, other, "left"))
    right = ot.check(ot.transform(other, one, "right"))
    assert ot.apply(ot.apply(text, other), left) == ot.apply(ot.apply(text, one), right)


@given(chains(3))
def test_composing_is_doing_both(case: tuple[list[str], list[ot.Operation]]) -> None:
    stages, (a, b, c) = case
    both = ot.check(ot.compose(a, b))
    assert ot.apply(stages[0], both) == stages[2]
    assert ot.apply(stages[0], ot.compose(both, c)) == stages[3]
    assert ot.apply(stages[0], ot.compose(a, ot.compose(b, c))) == stages[3]


@given(chains(2, invertible=True))
def test_composing_keeps_what_can_be_inverted(case: tuple[list[str], list[ot.Operation]]) -> None:
    stages, (a, b) = case
    assert ot.apply(stages[2], ot.invert(ot.compose(a, b))) == stages[0]


@given(st.data())
def test_inverting_undoes(data: st.DataObject) -> None:
    text = data.draw(texts)
    operation = ot.invertible(data.draw(operations(text)), text)
    assert ot.apply(ot.apply(text, operation), ot.invert(operation)) == text
    assert ot.invert(ot.invert(operation)) == operation


@given(texts, texts)
def test_the_difference_leads_from_one_text_to_the_other(before: str, after: str) -> None:
    operation = ot.check(ot.difference(before, after))
    assert ot.apply(before, operation) == after
    assert ot.apply(after, ot.invert(operation)) == before


_COMPONENTS = st.one_of(st.integers(0, 3), st.text("ab", max_size=2), st.builds(dict, d=st.integers(0, 3)))


@given(st.lists(_COMPONENTS))
def test_normal_form(components: ot.Operation) -> None:
    operation = ot.check(ot.normalize(components))
    assert ot.normalize(operation) == operation
    text = "." * (3 * len(components))
    assert ot.apply(text, operation) == ot.apply(text, components)


@given(st.data())
def test_a_cursor_keeps_its_neighbours(data: st.DataObject) -> None:
    """Marked by a character that no text holds, and put where a cursor would be."""
    text = data.draw(texts)
    operation = data.draw(operations(text))
    position = data.draw(st.integers(0, len(text)))
    moved = ot.transform_position(position, operation)
    mark: ot.Operation = ot.normalize([position, "\x00"])
    after = ot.apply(ot.apply(text, operation), ot.transform(mark, operation, "left"))
    assert after.index("\x00") == moved
    own = ot.transform_position(position, operation, own=True)
    after = ot.apply(ot.apply(text, operation), ot.transform(mark, operation, "right"))
    assert after.index("\x00") == own
