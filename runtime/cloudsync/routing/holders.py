"""Who holds a lease. A token says where its process runs, so that what a dead one held is free at once.

Without it a shard waits for its lease to expire. Only processes of the same process table are judged: of
one elsewhere nobody here can tell whether it lives.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

import psutil
import redis

from cloudsync.feeds.keys import Keys
from cloudsync.feeds.scripts import RELEASE
from cloudsync.sharding import SHARDS


def _process_table() -> str:
    """What this process's id counts in: the same for no other container or machine."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:  # not Linux: a worker and the children that it forks can be judged by each other
        return secrets.token_hex(8)
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:16]


_TABLE: Final = _process_table()


def new_holder() -> str:
    """A token for the leases of one router in this process."""
    return f"{_TABLE}:{os.getpid()}:{secrets.token_hex(8)}"


def free_if_dead(client: redis.Redis, keys: Keys, holder: str) -> bool:
    """Give back all that a holder has leased if its process is certain to have ended; whether it has."""
    if _lives(holder):
        return False
    client.zrem(keys.routers, holder)
    client.eval(RELEASE, SHARDS, *(keys.lock(shard) for shard in range(SHARDS)), holder)
    return True


def _lives(holder: str) -> bool:
    table, _, rest = holder.partition(":")
    if table != _TABLE:
        return True
    try:
        return psutil.Process(int(rest.partition(":")[0])).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
