"""Asking a gateway to leave, and seeing it gone: the command for scale-in and maintenance.

The request travels through Redis, which every gateway is connected to, so it needs neither an address nor a
right on the gateway's machine. It is repeated until the gateway has left: a message may be lost.
"""

from __future__ import annotations

import time
from typing import Any, Final

import redis

from cloudsync.errors import PlatformError
from cloudsync.feeds.connection import text_of
from cloudsync.feeds.keys import DATABASES, DRAIN_CHANNEL, Keys, epoch_key

_ASK_EVERY_S: Final = 1.0
_LOOK_EVERY_S: Final = 0.05


class UnknownGateway(PlatformError):
    """There is no live gateway of this name."""

    code = "unknown_gateway"


class StillDraining(PlatformError):
    """The gateway has not left in time."""

    code = "still_draining"


def drain_gateway(client: redis.Redis, gateway_id: str, *, timeout_s: float) -> float:
    """Have a gateway send its clients elsewhere and end; returns the seconds it took.

    Raises UnknownGateway naming those that live, StillDraining, redis errors.
    """
    keys = [k for k in _databases(client) if client.zscore(k.gateways, gateway_id) is not None]
    if not keys:
        live = sorted({m.decode() for k in _databases(client) for m in _gateways(client, k)})
        raise UnknownGateway(
            f"There is no live gateway {gateway_id!r}.",
            hint=f"These live: {', '.join(live)}." if live else "None is registered.",
        )
    tokens = {k.token(gateway_id): client.get(k.token(gateway_id)) for k in keys}
    began_s = time.monotonic()
    ask_due_s = began_s
    while any(token is not None and client.get(key) == token for key, token in tokens.items()):
        now_s = time.monotonic()
        if now_s - began_s > timeout_s:
            raise StillDraining(
                f"{gateway_id} has not left after {timeout_s:g} s.", hint="It goes on draining; ask again."
            )
        if now_s >= ask_due_s:
            client.publish(DRAIN_CHANNEL, gateway_id)
            ask_due_s = now_s + _ASK_EVERY_S
        time.sleep(_LOOK_EVERY_S)
    return time.monotonic() - began_s


def _databases(client: redis.Redis) -> list[Keys]:
    members: Any = client.smembers(DATABASES)
    found = []
    for member in members:
        epoch = text_of(client.get(epoch_key(member.decode())))
        if epoch is not None:
            found.append(Keys(member.decode(), epoch))
    return found


def _gateways(client: redis.Redis, keys: Keys) -> list[bytes]:
    members: Any = client.zrange(keys.gateways, 0, -1)
    return list(members)
