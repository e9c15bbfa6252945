"""The checksum of a view: the XOR, over its rows, of the first eight bytes of md5(key text ':' version).

It does not depend on order, and a change moves it by the digest that goes and the digest that comes. Its
SQL twin is `sync.checksum`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def row_digest(key_text: str, version: int) -> int:
    """What one row adds."""
    digest = hashlib.md5(f"{key_text}:{version}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big")


def checksum(rows: Iterable[tuple[str, int]]) -> int:
    """Of (key text, version) of every row."""
    total = 0
    for key_text, version in rows:
        total ^= row_digest(key_text, version)
    return total


def checksum_text(value: int) -> str:
    """As it travels: 16 hexadecimal digits."""
    return f"{value:016x}"
