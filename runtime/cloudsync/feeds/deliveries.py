"""The form of what rests in a gateway's stream, shared by routers and gateways."""

from __future__ import annotations

import msgspec

from cloudsync.events import Delivery, Position

encode_deliveries = msgspec.msgpack.Encoder().encode
decode_deliveries = msgspec.msgpack.Decoder(list[Delivery]).decode


class Place(msgspec.Struct, frozen=True, gc=False):
    """One shard's part of an entry: routed to here, and what the entry before was routed to."""

    shard: int
    entry_id: str
    previous: Position


def parse_places(text: str) -> list[Place]:
    """The places of an entry, as the script wrote them. Raises ValueError."""
    places = []
    for part in text.split(" "):
        shard, entry_id, previous = part.split(":")
        places.append(Place(int(shard), entry_id, Position.from_entry_id(previous)))
    return places
