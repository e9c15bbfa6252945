"""Which of the sixteen shards an event belongs to.

The SQL twin is `cloudsync.shard_of`; a test holds the two equal.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

SHARDS: Final = 16
BUCKETS: Final = 1024
_INTEGER = re.compile(r"-?[0-9]+\Z")
_encode = msgspec.json.Encoder().encode


def shard_of(text: str) -> int:
    """Shard of an owner or of a single key value: integers by non-negative remainder, other text by md5."""
    if _INTEGER.match(text):
        remainder = int(text.lstrip("-")[-4:]) % SHARDS  # 10**4 is a multiple of 16
        return -remainder % SHARDS if text[0] == "-" else remainder
    return _md5_uint32(text) % SHARDS


def bucket_of(user_id: str) -> int:
    """Fixed bucket (0..1023) of a user; buckets map to cells."""
    return _md5_uint32(user_id) % BUCKETS


def cell_of(user_id: str, cells: int, bucket_map: Sequence[tuple[int, int]] = ()) -> int:
    """Cell (1..cells) of a user, by ranges of buckets.

    `bucket_map` holds the last bucket and the cell of each range; with it, adding a cell moves only what is
    mapped to it. Without one, buckets are spread evenly.
    """
    bucket = bucket_of(user_id)
    if not bucket_map:
        return bucket * cells // BUCKETS + 1
    return next(cell for upto, cell in bucket_map if bucket <= upto)


def key_text(values: Sequence[Any]) -> str:
    """Canonical text of a key: the JSON array of its values in key order, no spaces."""
    return _encode(values).decode()


def _md5_uint32(text: str) -> int:
    digest = hashlib.md5(text.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big")
