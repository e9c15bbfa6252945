"""Tasks that waited for long in the broker, told from those that are due: by Redis's clock.

Celery's `expires` compares the sender's clock with the worker's: with one of them a minute off, every task
counts as expired, and nothing is swept, measured or proven any more.
"""

from __future__ import annotations

from typing import Any, Final

import redis
from redis.exceptions import RedisError

from cloudsync.feeds.keys import Keys, turn_key
from cloudsync.feeds.scripts import NOW

_STALE_MS: Final = 30_000
_PART: Final = 0.7
"""Of the interval: a task that is taken late, and the next in time, are both wanted."""


def is_due(client: redis.Redis, task: str, every_s: float) -> bool:
    """False for a task that piled up behind another one. While Redis cannot tell, every task is wanted."""
    try:
        return bool(client.set(turn_key(task), 1, nx=True, px=int(every_s * _PART * 1000)))
    except RedisError:
        return True


def sent_ms(client: redis.Redis, keys: Keys) -> int:
    """What to send along with a task for `is_stale`. Raises redis errors."""
    now_ms: Any = client.eval(NOW, 1, keys.head)
    return int(now_ms)


def is_stale(client: redis.Redis, keys: Keys, since_ms: int) -> bool:
    """Whether whoever sent the task will have sent another one since. Raises redis errors."""
    return sent_ms(client, keys) - since_ms > _STALE_MS
