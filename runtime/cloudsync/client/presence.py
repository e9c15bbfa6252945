"""Who else looks at a view, as the application reads it and takes part in it. Nothing of it is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from cloudsync.client.frames import PresenceNews
from cloudsync.errors import CloudSyncError, LimitReached, RequestError
from cloudsync.protocol.messages import encode

STATE_BYTES: Final = 1024
EVERY_S: Final = 0.12
"""Newer states wait for so long; the server takes ten a second of a connection."""
_RETRY_S: Final = 1.0


class Member(msgspec.Struct, frozen=True):
    """Somebody who is here. `me` is this client's own view."""

    id: str
    user: str
    client: str
    state: Any
    me: bool = False


class Presence:
    """Who is here, in the rows that a view asks for. Others hear of this client once it has `set` a state.

    `members` holds those who have a state, in the order in which they were heard of; `count` may be larger,
    for at most a hundred are told. While there is no connection nobody is known.
    """

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.count = 0
        self.error: CloudSyncError | None = None
        """Why this view takes no part; None while it does, or has not tried."""
        self._callbacks: dict[object, Callable[[list[Member]], object]] = {}
        self._state: Any = None
        self._wanted = False
        self._dirty = False
        self._due_s = 0.0
        self._known: dict[str, Member] = {}
        self._me = ""
        self.wake: Callable[[], None] = lambda: None
        """For the connection: something is to be sent."""

    def set(self, state: Any) -> None:
        """Say that this client is here, in this state (JSON of 1,024 bytes at most): a cursor, a selection.

        It replaces the state before, is sent again after a reconnection, and ends with the view. Several
        within a tenth of a second are one. Raises LimitReached, RequestError if it cannot be sent.
        """
        if state is None:
            raise RequestError("None is no state; `leave` ends it.")
        try:
            text = encode(state)
        except (TypeError, ValueError) as error:
            raise RequestError(f"This state cannot be sent: {error}.") from None
        if len(text) > STATE_BYTES:
            raise LimitReached(f"The state has {len(text)} bytes; {STATE_BYTES} may be sent.")
        self._want(msgspec.Raw(text))

    def leave(self) -> None:
        """Be here no longer, and go on hearing of the others."""
        self._want(None)

    def watch(self) -> None:
        """Hear of the others without being here."""
        if not self._wanted:
            self._want(None)

    def on_change(self, callback: Callable[[list[Member]], object]) -> Callable[[], None]:
        """Call `callback` with the members whenever they change, watching if need be.

        Returns what takes it off again.
        """
        token = object()
        self._callbacks[token] = callback
        self.watch()

        def remove() -> None:
            self._callbacks.pop(token, None)

        return remove

    def _want(self, state: msgspec.Raw | None) -> None:
        self._state, self._wanted, self._dirty = state, True, True
        self.wake()

    # For the session

    @property
    def callbacks(self) -> list[Callable[[list[Member]], object]]:
        return list(self._callbacks.values())

    def due_s(self) -> float | None:
        """When a state is to be sent; None: there is none."""
        return self._due_s if self._dirty else None

    def take_state(self, now_s: float) -> Any:
        """The state to send now."""
        self._dirty, self._due_s = False, now_s + EVERY_S
        return self._state

    def connected(self) -> None:
        """The view is live on a new connection: whoever is here says so again."""
        self._dirty = self._wanted

    def lost(self) -> bool:
        """The connection is gone. Whether somebody was known."""
        self._dirty = False
        return self._show({}, 0)

    def heard(self, news: PresenceNews) -> bool:
        """Take in who came and went. Whether that changes anything."""
        known = {} if news.whole else dict(self._known)
        self._me = news.you or self._me
        self.error = None
        for id_ in news.left:
            known.pop(id_, None)
        for told in news.members:
            known[told.id] = Member(told.id, told.user, told.client, told.state, told.id == self._me)
        return self._show(known, news.count)

    def refused(self, error: CloudSyncError, now_s: float) -> bool:
        """The server has not taken the state. Whether somebody was known."""
        if error.code in ("limit_reached", "unavailable"):
            self._dirty, self._due_s = self._wanted, now_s + _RETRY_S
            return False
        self.error = error
        return self._show({}, 0)

    def _show(self, known: dict[str, Member], count: int) -> bool:
        changed = known != self._known or count != self.count
        self._known, self.count = known, count
        if changed:
            self.members = list(known.values())
        return changed
