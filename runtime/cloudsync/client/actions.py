"""What a session tells the connection that drives it."""

from __future__ import annotations

import msgspec

from cloudsync.client.change import Change
from cloudsync.client.conflicts import Conflict
from cloudsync.client.errors import ChangeRejected
from cloudsync.client.subscription import ChangeEvent, Subscription
from cloudsync.errors import CloudSyncError
from cloudsync.protocol.messages import Heartbeat, Welcome


class Changed(msgspec.Struct, frozen=True):
    """Rows of a subscription changed; `events` only if it is observed."""

    subscription: Subscription
    events: list[ChangeEvent]


class Completed(msgspec.Struct, frozen=True):
    """A view is current: what was missed has come, or a snapshot, of which `events` are the differences."""

    subscription: Subscription
    events: list[ChangeEvent]


class Failed(msgspec.Struct, frozen=True):
    """A subscription has ended."""

    subscription: Subscription
    error: CloudSyncError


class Stalled(msgspec.Struct, frozen=True):
    """A subscription must be renewed, after a pause: call `renew`."""

    subscription: Subscription
    error: CloudSyncError


class Welcomed(msgspec.Struct, frozen=True):
    frame: Welcome


class Beat(msgspec.Struct, frozen=True):
    frame: Heartbeat


class Leaving(msgspec.Struct, frozen=True):
    """The server goes away: connect again after this long."""

    reconnect_in_s: float


class Complaint(msgspec.Struct, frozen=True):
    """An error that concerns the connection as a whole; a close usually follows."""

    error: CloudSyncError


class Settled(msgspec.Struct, frozen=True):
    """A change of this client was confirmed, or rejected if there is an error."""

    change: Change
    error: ChangeRejected | None = None


class Present(msgspec.Struct, frozen=True):
    """Others came to a view, changed their state, or left."""

    subscription: Subscription


class Conflicted(msgspec.Struct, frozen=True):
    """A conflict is new, has changed, or is over."""

    conflict: Conflict


Action = (
    Present
    | Conflicted
    | Settled
    | Changed
    | Completed
    | Failed
    | Stalled
    | Welcomed
    | Beat
    | Leaving
    | Complaint
)
