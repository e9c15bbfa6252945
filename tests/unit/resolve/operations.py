"""Random texts and operations that fit them, with astral characters, combining marks and lone joiners."""

from __future__ import annotations

from hypothesis import strategies as st

from cloudsync.resolve import text as ot

# No lone surrogates: a WebSocket text frame and a PostgreSQL text cannot hold one.
texts = st.text(alphabet="ab\n ä\u0301\u200d𝄞👩🏽\U0010ffff", max_size=24)


@st.composite
def operations(draw: st.DrawFn, text: str, *, invertible: bool = False) -> ot.Operation:
    """In normal form, for this text."""
    operation: ot.Operation = []
    at = 0
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from("sid"))
        if kind == "i":
            operation.append(draw(texts.filter(bool)))
            continue
        if at == len(text):
            continue
        count = draw(st.integers(1, len(text) - at))
        if kind == "s":
            operation.append(count)
        elif invertible or draw(st.booleans()):
            operation.append({"d": text[at : at + count]})
        else:
            operation.append({"d": count})
        at += count
    return ot.normalize(operation)


@st.composite
def rivals(draw: st.DrawFn, count: int = 2) -> tuple[str, list[ot.Operation]]:
    """A text and operations that were all made from it."""
    text = draw(texts)
    return text, [draw(operations(text)) for _ in range(count)]


@st.composite
def chains(
    draw: st.DrawFn, count: int = 2, *, invertible: bool = False
) -> tuple[list[str], list[ot.Operation]]:
    """Operations one after the other, and the texts before, between and after them."""
    stages = [draw(texts)]
    made = []
    for _ in range(count):
        made.append(draw(operations(stages[-1], invertible=invertible)))
        stages.append(ot.apply(stages[-1], made[-1]))
    return stages, made
