"""Names of everything in Redis, in one place.

Every key carries the database id and the epoch; what belongs to one shard or one gateway shares a hash
tag, so that a script never spans two slots of a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

DATABASES: Final = "cs:databases"
"""Set of the database ids that a relay has served."""

REVOKED_CHANNEL: Final = "cs:revoked"
"""Client ids that were revoked just now."""

REVOKED_CLIENTS: Final = "cs:revoked_clients"
"""Sorted set of client ids that were revoked lately, by the time at which they were."""

DRAIN_CHANNEL: Final = "cs:drain"
"""Ids of gateways that are to send their clients elsewhere and end."""

CHANGES_PATTERN: Final = "cs:*:db_changes"


def epoch_key(database_id: str) -> str:
    """Of a database's keys only this one and `feeder_key` have no epoch in their names."""
    return f"cs:{database_id}:epoch"


def feeder_key(database_id: str) -> str:
    """Which server feeds the database; beside `head`, which only that one may write."""
    return f"cs:{database_id}:{{{database_id}}}:feeder"


def turn_key(task: str) -> str:
    """Held for about as long as a periodic task need not run again."""
    return f"cs:turn:{task}"


def epoch_channel(database_id: str) -> str:
    return f"cs:{database_id}:epochs"


class Keys(msgspec.Struct, frozen=True, gc=False):
    """Keys of one database in one epoch."""

    database_id: str
    epoch: str

    @property
    def _prefix(self) -> str:
        return f"cs:{self.database_id}:{self.epoch}"

    def _shard(self, shard: int, name: str) -> str:
        return f"{self._prefix}:{{{self.database_id}:{shard}}}:{name}"

    def _global(self, name: str) -> str:
        return f"{self._prefix}:{{{self.database_id}}}:{name}"

    def _gateway(self, gateway_id: str, name: str) -> str:
        return f"{self._prefix}:{{{gateway_id}}}:{name}"

    @property
    def pattern(self) -> str:
        """Matches every key of this epoch."""
        return f"{self._prefix}:*"

    # One shard
    def feed(self, shard: int) -> str:
        return self._shard(shard, "feed")

    def tail(self, shard: int) -> str:
        return self._shard(shard, "tail")

    def marks(self, shard: int) -> str:
        return self._shard(shard, "marks")

    def floor(self, shard: int) -> str:
        return self._shard(shard, "floor")

    def done(self, shard: int) -> str:
        return self._shard(shard, "done")

    def lock(self, shard: int) -> str:
        return self._shard(shard, "lock")

    def audit(self, shard: int) -> str:
        """What has been routed and is not yet in the audit log."""
        return self._shard(shard, "audit")

    def audit_size(self, shard: int) -> str:
        return self._shard(shard, "audit_size")

    def starting(self, shard: int) -> str:
        return self._shard(shard, "starting")

    def changes_channel(self, shard: int) -> str:
        return self._shard(shard, "db_changes")

    # The database
    @property
    def head(self) -> str:
        return self._global("head")

    @property
    def routers(self) -> str:
        return self._global("routers")

    @property
    def gateways(self) -> str:
        return self._global("gateways")

    @property
    def cells(self) -> str:
        """In which cell each gateway is."""
        return self._global("cells")

    @property
    def receipts(self) -> str:
        """What gateways tell the audit of what they have handed out."""
        return self._global("receipts")

    @property
    def reaper(self) -> str:
        return self._global("reaper")

    @property
    def registry(self) -> str:
        return self._global("registry")

    def topics(self, tenant_tag: str) -> str:
        return self._global(f"topics:{tenant_tag}")

    def topic(self, topic_id: str) -> str:
        return self._global(f"topic:{topic_id}")

    def presence(self, topic_id: str) -> str:
        """The channel on which gateways tell each other who is here."""
        return self._global(f"presence:{topic_id}")

    def hosted(self, gateway_id: str) -> str:
        return self._global(f"hosted:{gateway_id}")

    def connected(self, gateway_id: str) -> str:
        return self._global(f"connected:{gateway_id}")

    def clients(self, tenant_tag: str) -> str:
        return self._global(f"clients:{tenant_tag}")

    def users(self, tenant_tag: str) -> str:
        return self._global(f"users:{tenant_tag}")

    # One gateway
    def stream(self, gateway_id: str) -> str:
        return self._gateway(gateway_id, "stream")

    def sent(self, gateway_id: str) -> str:
        return self._gateway(gateway_id, "sent")

    def token(self, gateway_id: str) -> str:
        return self._gateway(gateway_id, "token")

    def entry_context(self, shard: int, entry_id: str) -> bytes:
        """Associated data of a sealed feed entry."""
        return f"{self.database_id}:{self.epoch}:{shard}:{entry_id}".encode()

    def audit_context(self, shard: int, entry_id: str) -> bytes:
        """Associated data of what a router tells the audit."""
        return f"{self.database_id}:{self.epoch}:audit:{shard}:{entry_id}".encode()

    def receipts_context(self, gateway_id: str) -> bytes:
        return f"{self.database_id}:{self.epoch}:receipts:{gateway_id}".encode()

    def delivery_context(self, gateway_id: str, places: Iterable[tuple[int, str]]) -> bytes:
        """Associated data of a sealed delivery: the gateway, and where each shard is routed to."""
        where = " ".join(f"{shard}:{entry_id}" for shard, entry_id in places)
        return f"{self.database_id}:{self.epoch}:{gateway_id}:{where}".encode()


def parse_changes_channel(channel: str) -> tuple[Keys, int] | None:
    """The keys and the shard that a wake-up channel speaks of; None if it is not one."""
    parts = channel.split(":")
    if len(parts) != 6 or parts[0] != "cs" or parts[5] != "db_changes":
        return None
    return Keys(parts[1], parts[2]), int(parts[4].rstrip("}"))
