"""The Python client: a live local view of a PostgreSQL table, kept current over a WebSocket."""

from cloudsync.client.change import Change, Confirmation
from cloudsync.client.conflicts import Conflict, Resolution
from cloudsync.client.connection import Client, State, connect
from cloudsync.client.document import Document, TextEvent
from cloudsync.client.edit import Edit
from cloudsync.client.errors import (
    ChangeRejected,
    Closed,
    FellBehind,
    ProtocolBroken,
    ServerRefused,
    StoreFailed,
    StoreInUse,
    StoreRefused,
    TenantDisabled,
    TokenCallbackFailed,
    TooManyConnections,
    Unreachable,
)
from cloudsync.client.presence import Member, Presence
from cloudsync.client.subscription import ChangeEvent
from cloudsync.client.view import Changes, View
from cloudsync.resolve.text import transform_position

__all__ = [
    "Change",
    "ChangeEvent",
    "ChangeRejected",
    "Changes",
    "Client",
    "Closed",
    "Confirmation",
    "Conflict",
    "Document",
    "Edit",
    "FellBehind",
    "Member",
    "Presence",
    "ProtocolBroken",
    "Resolution",
    "ServerRefused",
    "State",
    "StoreFailed",
    "StoreInUse",
    "StoreRefused",
    "TenantDisabled",
    "TextEvent",
    "TokenCallbackFailed",
    "TooManyConnections",
    "Unreachable",
    "View",
    "connect",
    "transform_position",
]
