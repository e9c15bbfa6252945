"""Our text type gives what the npm package `ot-text-unicode` gives, which JavaScript clients use."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudsync.resolve import text as ot
from unit.resolve.operations import chains, operations, rivals, texts

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js with npm")

Ask = Callable[..., Any]
_EXAMPLES = settings(max_examples=400)


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Calls a function of the package, in Node."""
    folder = tmp_path_factory.mktemp("node") / "reference"
    shutil.copytree(Path(__file__).with_name("ot-text-unicode"), folder)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True, capture_output=True)
    node = subprocess.Popen(
        ["node", folder / "reference.js"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert node.stdin is not None
    assert node.stdout is not None

    def call(function: str, *arguments: Any) -> Any:
        node.stdin.write(json.dumps([function, *arguments]) + "\n")
        answer = json.loads(node.stdout.readline())
        assert "error" not in answer, (function, arguments, answer)
        return answer.get("value")

    yield call
    node.stdin.close()
    node.wait(10)
    node.stdout.close()


def test_applying(ask: Ask) -> None:
    @_EXAMPLES
    @given(chains(1))
    def same(case: tuple[list[str], list[ot.Operation]]) -> None:
        (before, after), (operation,) = case
        ask("checkOp", operation)
        assert ask("apply", before, operation) == after

    same()


def test_transforming(ask: Ask) -> None:
    @_EXAMPLES
    @given(rivals(), st.sampled_from(["left", "right"]))
    def same(case: tuple[str, list[ot.Operation]], side: ot.Side) -> None:
        _, (one, other) = case
        assert ot.transform(one, other, side) == ask("transform", one, other, side)

    same()


def test_composing(ask: Ask) -> None:
    @_EXAMPLES
    @given(chains(2))
    def same(case: tuple[list[str], list[ot.Operation]]) -> None:
        _, (first, second) = case
        assert ot.compose(first, second) == ask("compose", first, second)

    same()


def test_inverting(ask: Ask) -> None:
    @_EXAMPLES
    @given(chains(1, invertible=True))
    def same(case: tuple[list[str], list[ot.Operation]]) -> None:
        operation = case[1][0]
        assert ot.invert(operation) == ask("invert", operation)

    same()


def test_normal_form(ask: Ask) -> None:
    component = st.one_of(
        st.integers(0, 3), texts, st.builds(dict, d=st.integers(0, 3)), st.builds(dict, d=texts)
    )

    @_EXAMPLES
    @given(st.lists(component))
    def same(components: ot.Operation) -> None:
        assert ot.normalize(components) == ask("normalize", components)

    same()


def test_moving_a_cursor(ask: Ask) -> None:
    @_EXAMPLES
    @given(st.data())
    def same(data: st.DataObject) -> None:
        text = data.draw(texts)
        operation = data.draw(operations(text))
        position = data.draw(st.integers(0, len(text)))
        assert ot.transform_position(position, operation) == ask("transformPosition", position, operation)

    same()
