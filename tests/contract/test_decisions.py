"""Decision records can be named by number: each has one of its own, in its heading, too."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "runbooks" / "decisions"


def test_numbers_are_consecutive_and_in_the_headings() -> None:
    names = sorted(file.name for file in FOLDER.glob("*.md"))
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]
    for name in names:
        assert (FOLDER / name).read_text().startswith(f"# {name[:4]} · "), name
