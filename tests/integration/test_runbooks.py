"""Every query of the runbooks runs against a database of this version; every page that is named exists."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

_PAGES = sorted((Path(__file__).parents[2] / "runbooks").glob("*.md"))
_QUERIES = [
    (page.stem, query)
    for page in _PAGES
    for query in re.findall(r"^ *```sql\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize(("page", "query"), _QUERIES, ids=[page for page, _ in _QUERIES])
def test_a_query_of_a_page_runs(database: str, page: str, query: str) -> None:
    with psycopg.connect(database) as connection:
        assert connection.execute(query).description, page


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.stem)
def test_pages_name_pages_that_exist(page: Path) -> None:
    named = re.findall(r"`([a-z-]+\.md)`", page.read_text())
    assert not [name for name in named if not (page.parent / name).is_file()]
