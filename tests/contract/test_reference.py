"""The reference pages are those that the registries make."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudsync.dev import reference
from cloudsync.metrics.definitions import METRICS
from cloudsync.protocol.codes import ERROR_MEANINGS, Close
from cloudsync.settings import Settings

_FOLDER = Path(__file__).parents[2] / "runbooks" / "reference"


@pytest.mark.parametrize("name", reference.pages())
def test_the_page_is_current(name: str) -> None:
    assert (_FOLDER / name).read_text() == reference.pages()[name], "run `make docs`"


def test_no_page_is_left_over() -> None:
    assert {file.name for file in _FOLDER.iterdir()} == set(reference.pages())


def test_pages_name_everything() -> None:
    pages = reference.pages()
    assert all(f"| `{metric.name}` |" in pages["metrics.md"] for metric in METRICS)
    assert all(f"| `CLOUDSYNC_{name.upper()}` |" in pages["settings.md"] for name in Settings.model_fields)
    assert all(f"| {int(code)} |" in pages["codes.md"] for code in Close)
    assert all(f"| `{code}` |" in pages["codes.md"] for code in ERROR_MEANINGS)


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    assert len(reference.write(tmp_path)) == 3
    assert reference.write(tmp_path) == []
