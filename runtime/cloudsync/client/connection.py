"""The client: one connection at a time, made again whenever it is lost, and the views that live on it."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

from websockets.exceptions import ConnectionClosed

from cloudsync.client import failures
from cloudsync.client.actions import (
    Action,
    Beat,
    Changed,
    Completed,
    Conflicted,
    Failed,
    Leaving,
    Present,
    Settled,
    Stalled,
    Welcomed,
)
from cloudsync.client.change import Change, Operation
from cloudsync.client.conflicts import Conflict, Resolution
from cloudsync.client.credentials import Credentials, TokenCallback, user_of
from cloudsync.client.document import Document
from cloudsync.client.errors import (
    Closed,
    FrameUnreadable,
    ProtocolBroken,
    StoreFailed,
    TokenCallbackFailed,
    Unreachable,
)
from cloudsync.client.failures import Lost
from cloudsync.client.frames import Frame
from cloudsync.client.link import Link
from cloudsync.client.raw import MAX_FRAME_BYTES, SDK, open_socket
from cloudsync.client.replica import Key, Row
from cloudsync.client.rest import Rest
from cloudsync.client.session import Session
from cloudsync.client.store import Store
from cloudsync.client.subscription import Subscription
from cloudsync.client.view import View
from cloudsync.errors import BadFilter, ClientRefused, CloudSyncError, TokenRefused
from cloudsync.protocol.messages import Choice, Mode, Where

T = TypeVar("T")
State = Literal["connecting", "live", "offline", "replaying"]
TOKEN_MARGIN_S: Final = 60.0  # a token with less time left is renewed at the next heartbeat
SETTLED_S: Final = 10.0  # a connection that lived this long makes backing off start over
_UNREADABLE_IN_A_ROW: Final = 3
# The application's logging, not the platform's: this runs inside of somebody else's program.
_log = logging.getLogger("cloudsync.client")


class Client:
    """A connection to the platform that comes back by itself. Use it with `async with`; see `connect`."""

    def __init__(
        self,
        url: str,
        *,
        token: str | TokenCallback,
        client_id: str | None = None,
        store: str | os.PathLike[str] | None = None,
        name: str | None = None,
        platform: str = "python",
        connect_timeout_s: float = 10.0,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._rest = Rest(url, ssl_context=ssl_context)
        self._credentials = Credentials(token)
        self._name, self._platform = name, platform
        self._connect_timeout_s = connect_timeout_s
        self._max_frame_bytes = max_frame_bytes
        self._ssl_context = ssl_context
        self._store_path = store
        self._store: Store | None = None
        self._returning = False
        self._session = Session(sdk=SDK)
        self._session.client_id = client_id or ""
        self._views: dict[Subscription, View] = {}
        self._pending: dict[Subscription, asyncio.Future[None]] = {}
        self._stalls: dict[Subscription, int] = {}
        self._state: State = "connecting"
        self._state_callbacks: list[Callable[[State], object]] = []
        self._rejection_callbacks: list[Callable[[Change], object]] = []
        self._conflict_callbacks: list[Callable[[Conflict], object]] = []
        self._state_queues: set[asyncio.Queue[State | None]] = set()
        self._error: Exception | None = None
        self._complaint: CloudSyncError | None = None
        self._last_reason = ""
        self._welcomed_at_s: float | None = None
        self._leave_at_s: float | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._online = asyncio.Event()
        self._online.set()
        self._reading = asyncio.Event()
        self._reading.set()
        self._heartbeat_s = 20.0
        self._link: Link | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        if self._store_path is not None:
            self._open_store(self._store_path)
        self._session.outbox.on_edit = self._edited
        self._session.decided = self._decide
        self._session.wake = self._send
        self._first: asyncio.Future[None] = self._loop.create_future()
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._task = self._loop.create_task(self._run(), name="cloudsync client")
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._first
        except TimeoutError:
            if self._starts_offline:
                self._go_offline()
                return self
            await self.close()
            raise Unreachable(
                f"{self._rest.url} could not be reached within {self._connect_timeout_s:g} s.",
                hint=self._last_reason or None,
            ) from None
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def state(self) -> State:
        """`connecting` at first, `live`, `offline` after a loss, `replaying` until every view is current."""
        return self._state

    def _open_store(self, path: str | os.PathLike[str]) -> None:
        store = Store(path)
        try:
            self._returning = store.client_id is not None
            store.belong(url=self._rest.url, client_id=self._session.client_id or None)
            on_frame = self._session.on_frame
            self._session = Session(sdk=SDK, store=store)
            self._session.on_frame = on_frame
        except BaseException:
            store.close()
            raise
        self._store = store

    @property
    def client_id(self) -> str:
        """The id that the API issued. Without a store it is this process's own: where its user has a hundred
        clients, the one of these that was unseen for longest gives way to a new one.
        """
        return self._session.client_id

    @property
    def cursor(self) -> str | None:
        """Everything up to here has been received."""
        return self._session.cursor

    @property
    def error(self) -> Exception | None:
        """Why the client has stopped for good; None while it runs."""
        return self._error

    @property
    def lost_because(self) -> str | None:
        """Why the latest attempt to connect failed, or its connection was lost; None while there is one."""
        return self._last_reason or None

    def on_state(self, callback: Callable[[State], object]) -> None:
        """Call `callback` with every new state."""
        self._state_callbacks.append(callback)

    async def states(self) -> AsyncIterator[State]:
        """The present state, then every new one until the client stops."""
        changes: asyncio.Queue[State | None] = asyncio.Queue()
        self._state_queues.add(changes)
        try:
            state: State | None = self._state
            while state is not None:
                yield state
                state = None if self._error is not None and changes.empty() else await changes.get()
        finally:
            self._state_queues.discard(changes)

    def on_frame(self, callback: Callable[[Frame], object]) -> None:
        """Call `callback` with every frame of the server, before it is taken in: for audits."""
        self._session.on_frame = callback

    async def renew_token(self) -> None:
        """Ask the callback for a new token, and show it to the server on the live connection."""
        try:
            token = await self._credentials.renew()
        except (
            CloudSyncError
        ) as error:  # the next heartbeat tries again; at worst the server closes with 4001
            _log.warning("The token was not renewed: %s", error)
            return
        self._session.authenticate(token)
        self._send()

    def suspend(self) -> None:
        """Drop the connection and stay away until `resume`; views keep their rows."""
        self._online.clear()
        self._leave()

    def resume(self) -> None:
        """Come back after `suspend`, at once."""
        self._online.set()

    def pause_reading(self) -> None:
        """Take no frame in until `resume_reading`: the server sees a client that does not keep up."""
        self._reading.clear()

    def resume_reading(self) -> None:
        self._reading.set()

    async def wait_stopped(self) -> None:
        """Return when the client is closed. Raises the error if the platform told it to stop."""
        await asyncio.shield(self._stopped)
        if self._error is not None and not isinstance(self._error, Closed):
            raise self._error

    async def subscribe(
        self,
        table: str,
        where: Where | None = None,
        columns: Sequence[str] | None = None,
        *,
        mode: Mode = "every",
    ) -> View:
        """A live view of a table's rows, complete when this returns; it survives reconnections.

        A view that the client's store holds is returned at once, as it was when it was last heard of; it is
        current when `state` is `live`.

        `where`: column → value, or column → {operator: value} with eq ne lt lte gt gte in is_null, all ANDed.
        `columns` None: all of them. `mode`: `every` change, only the `latest` state of each row, or changes
        in a `batch`. Raises UnknownTable, UnknownColumn, BadFilter, LimitReached or ServerRefused, or the
        error that stopped the client.
        """
        if self._error is not None or self._task is None:
            raise self._error or Closed("The client is not connected: use it with `async with`.")
        if where is not None and not isinstance(where, Mapping):
            raise BadFilter('A where-clause is a mapping of columns, as in {"done": False}.')
        subscription = self._session.subscribe(
            table, where, list(columns) if columns is not None else None, mode
        )
        view = View(subscription, close=self._unsubscribe, document=self._document)
        self._views[subscription] = view
        if subscription.complete:
            return view
        complete: asyncio.Future[None] = self._loop.create_future()
        self._pending[subscription] = complete
        self._send()
        try:
            await complete
        except BaseException:
            await self._unsubscribe(view)
            raise
        finally:
            self._pending.pop(subscription, None)
        return view

    def create(self, table: str, key: Row | Key, values: Row) -> Change:
        """Insert a row. It shows in the views at once and is sent when there is a connection.

        `key` and `values` by column (a key may be a view's key tuple); values are JSON, or dates, UUIDs,
        decimals and bytes. With a store the change is on disk when this returns, and no crash loses it or
        applies it twice. `await change.confirmed()` waits for the server. Raises RequestError if it cannot
        be a change, StoreFailed if it cannot be kept, or the error that stopped the client.
        """
        return self._write("create", table, key, values)

    def update(self, table: str, key: Row | Key, values: Row) -> Change:
        """Change some columns of a row; otherwise as `create`. Its key stays."""
        return self._write("update", table, key, values)

    def delete(self, table: str, key: Row | Key) -> Change:
        """Delete a row; otherwise as `create`."""
        return self._write("delete", table, key, {})

    @property
    def pending(self) -> int:
        """How many changes wait to be confirmed."""
        return len(self._session.outbox.writes.changes)

    @property
    def pending_changes(self) -> list[Change]:
        """The changes that wait to be confirmed, in order, those of earlier processes first."""
        return list(self._session.outbox.writes.changes.values())

    def on_rejected(self, callback: Callable[[Change], object]) -> None:
        """Call `callback` with every change that the server rejects (`change.error` says why)."""
        self._rejection_callbacks.append(callback)

    @property
    def conflicts(self) -> list[Conflict]:
        """What waits for a person, of rows that this user may see: `conflict.resolve("mine")` decides."""
        return list(self._session.inbox.open.values())

    def on_conflict(self, callback: Callable[[Conflict], object]) -> None:
        """Call `callback` with every conflict that is new, has changed, or is over (`conflict.status`)."""
        self._conflict_callbacks.append(callback)

    async def close(self) -> None:
        """Leave; views keep their last rows and end."""
        self._stop(Closed())
        tasks = [task for task in (self._task, self._renewing) if task is not None and not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._store is not None:
            store, self._store = self._store, None
            try:
                if not isinstance(self._error, StoreFailed):
                    self._session.save()
            finally:
                store.close()

    def _write(self, op: Operation, table: str, key: Row | Key, values: Row) -> Change:
        if self._error is not None or self._task is None:
            raise self._error or Closed("The client is not connected: use it with `async with`.")
        change, actions = self._session.write(op, table, key, values, now_s=self._loop.time())
        for action in actions:
            self._act(action)
        self._send()
        return change

    def _document(self, subscription: Subscription, key: Row | Key, column: str) -> Document:
        return self._session.document(subscription, key, column)

    def _edited(self) -> None:
        if self._link is not None:
            self._link.edited()

    def _decide(self, conflict: Conflict, choice: Choice, values: Row | None) -> Resolution:
        if self._error is not None or self._task is None:
            raise self._error or Closed("The client is not connected: use it with `async with`.")
        resolution, actions = self._session.decide(conflict, choice, values, now_s=self._loop.time())
        for action in actions:
            self._act(action)
        self._send()
        return resolution

    async def _unsubscribe(self, view: View) -> None:
        subscription = view.subscription
        if self._views.pop(subscription, None) is None:
            return
        self._session.unsubscribe(subscription)
        self._stalls.pop(subscription, None)
        view.end(Closed())
        self._send()
        self._settle_state()

    # The life of connections

    async def _run(self) -> None:
        attempt = 0
        while self._error is None:
            delay_s: float | None = None
            await self._online.wait()
            try:
                await self._connect_once()
            except Exception as error:  # noqa: BLE001  `classify` sorts out which end the client
                verdict = self._judge(error, attempt)
                if verdict is None:
                    return
                self._last_reason = verdict.reason
                _log.info("Connection lost: %s", verdict.reason)
            lived_s = self._loop.time() - self._welcomed_at_s if self._welcomed_at_s is not None else 0.0
            self._welcomed_at_s = None
            if self._leave_at_s is not None:  # the server spreads its clients: keep to the moment it named
                delay_s = max(0.0, self._leave_at_s - self._loop.time())
                self._leave_at_s = None
            attempt = 0 if lived_s >= SETTLED_S else attempt + 1
            if self._first.done() or self._starts_offline:
                self._go_offline()
            if not self._online.is_set():
                attempt = 0  # away because the application said so
                continue
            await asyncio.sleep(failures.backoff_s(max(0, attempt - 1)) if delay_s is None else delay_s)

    @property
    def _starts_offline(self) -> bool:
        """Whether there is something to work with although the platform has not been reached yet."""
        return self._returning and self._error is None

    def _go_offline(self) -> None:
        if not self._first.done():
            self._first.set_result(None)
        self._set_state("offline")

    def _judge(self, error: Exception, attempt: int) -> Lost | None:
        """What to do about a failed connection; None if the client has stopped."""
        verdict = failures.classify(error, self._complaint)
        connected_before = self._first.done()
        # Once connected, an odd answer on the way (a proxy's page, a failing callback) need not last.
        passing = isinstance(verdict, TokenCallbackFailed | ProtocolBroken) and not (
            isinstance(error, ConnectionClosed)
            or (isinstance(error, FrameUnreadable) and attempt >= _UNREADABLE_IN_A_ROW)
        )
        if connected_before and passing:
            verdict = Lost(str(verdict))
        if isinstance(verdict, Lost) and verdict.stale_token:
            final = self._credentials.fresh and self._welcomed_at_s is None
            self._credentials.reject()
            if final:
                verdict = error if isinstance(error, TokenRefused) else TokenRefused()
        if isinstance(verdict, Lost):
            return verdict
        if isinstance(verdict, ClientRefused) and self._store is not None:
            verdict.hint = f"It is kept in {self._store.path}; with another file a new one is registered."
        self._stop(verdict)
        return None

    async def _connect_once(self) -> None:
        self._complaint = None
        token = await self._credentials.current()
        user = user_of(token)
        if self._store is not None and user is not None:
            self._store.belong_to_user(user)
        url = await self._rest.endpoint(token)
        if not self._session.client_id:
            client_id = await self._rest.register(
                token, name=self._name, platform=self._platform, ephemeral=self._store is None
            )
            if self._store is not None:
                self._store.register(client_id)
            self._session.issued(client_id)
        socket = await open_socket(
            url, token=token, ssl_context=self._ssl_context, max_frame_bytes=self._max_frame_bytes
        )
        self._link = Link(self._session, socket, self._act, self._reading)
        if not self._online.is_set():
            self._link.leave()
        try:
            await self._link.carry()
        finally:
            self._link = None
            for subscription in self._session.nobody_here():
                self._present(subscription)
            for timer in self._timers:
                timer.cancel()
            self._timers.clear()

    def _act(self, action: Action) -> None:
        if isinstance(action, Changed):
            self._deliver(action)
        elif isinstance(action, Settled):
            self._settled(action)
        elif isinstance(action, Present):
            self._present(action.subscription)
        elif isinstance(action, Conflicted):
            for callback in self._conflict_callbacks:
                self._call(callback, action.conflict)
        elif isinstance(action, Completed):
            self._completed(action)
        elif isinstance(action, Failed):
            self._failed(action)
        elif isinstance(action, Stalled):
            self._stalled(action)
        elif isinstance(action, Welcomed):
            self._welcomed(action)
        elif isinstance(action, Beat):
            self._beat(action)
        elif isinstance(action, Leaving):
            self._leave_at_s = self._loop.time() + action.reconnect_in_s
            self._later(action.reconnect_in_s, self._leave)
        else:
            self._complaint = action.error

    def _present(self, subscription: Subscription) -> None:
        for callback in subscription.presence.callbacks:
            self._call(callback, subscription.presence.members)

    def _welcomed(self, action: Welcomed) -> None:
        self._welcomed_at_s = self._loop.time()
        self._last_reason = ""
        self._heartbeat_s = action.frame.heartbeat_s
        if not self._first.done():
            self._first.set_result(None)
        self._set_state("live" if self._session.caught_up else "replaying")

    def _deliver(self, action: Changed | Completed) -> None:
        view = self._views.get(action.subscription)
        if view is not None:  # otherwise the store brought it, and the application has not asked for it yet
            view.deliver(action.events)

    def _settled(self, action: Settled) -> None:
        if action.error is None:
            return
        for callback in self._rejection_callbacks:
            self._call(callback, action.change)

    def _completed(self, action: Completed) -> None:
        self._stalls.pop(action.subscription, None)
        self._deliver(action)
        waiting = self._pending.get(action.subscription)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        self._settle_state()

    def _failed(self, action: Failed) -> None:
        self._stalls.pop(action.subscription, None)
        view = self._views.pop(action.subscription, None)
        if view is not None:
            view.end(action.error)
        waiting = self._pending.get(action.subscription)
        if waiting is not None and not waiting.done():
            waiting.set_exception(action.error)
        self._settle_state()

    def _stalled(self, action: Stalled) -> None:
        tries = self._stalls.get(action.subscription, 0)
        self._stalls[action.subscription] = tries + 1
        _log.info("The view of %s stalled: %s", action.subscription.table, action.error)
        self._later(failures.backoff_s(tries), lambda: self._renew(action.subscription))

    def _renew(self, subscription: Subscription) -> None:
        if subscription in self._stalls:
            self._session.renew(subscription)
            self._send()

    def _beat(self, action: Beat) -> None:
        soon = action.frame.token_expires_in < max(TOKEN_MARGIN_S, 2.5 * self._heartbeat_s)
        if soon and self._credentials.renewable and (self._renewing is None or self._renewing.done()):
            self._renewing = self._loop.create_task(self.renew_token())

    def _leave(self) -> None:
        if self._link is not None:
            self._link.leave()

    def _send(self) -> None:
        if self._link is not None:
            self._link.wake()

    def _later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call back unless the connection is lost before."""
        self._timers.add(self._loop.call_later(delay_s, callback))

    # States

    def _stop(self, error: Exception) -> None:
        if self._error is not None:
            return
        self._error = error
        for view in self._views.values():
            view.end(error)
        if self._store is not None and isinstance(error, Closed) and self.pending:
            error = Closed("The client was closed; the change is sent when the store is opened again.")
        self._session.stop(error)
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(error)
        if self._task is not None:
            if not self._first.done():
                self._first.set_exception(error)
            self._stopped.set_result(None)
        self._set_state("offline")
        for changes in self._state_queues:
            changes.put_nowait(None)

    def _settle_state(self) -> None:
        if self._state == "replaying" and self._session.caught_up:
            self._set_state("live")

    def _set_state(self, state: State) -> None:
        if state == self._state:
            return
        self._state = state
        for changes in self._state_queues:
            changes.put_nowait(state)
        for callback in self._state_callbacks:
            self._call(callback, state)

    def _call(self, callback: Callable[[T], object], argument: T) -> None:
        try:
            callback(argument)
        except Exception as error:  # noqa: BLE001  the application's error must not stop the client
            self._loop.call_exception_handler({"message": "a client's callback failed", "exception": error})


def connect(url: str, *, token: str | TokenCallback, client_id: str | None = None, **options: Any) -> Client:
    """A client of the API at `url`, to be entered with `async with`; `options` are those of Client.

    `token`: a JWT, or a function (sync or async) that makes one whenever one is needed. Without a `client_id`
    one is registered. With `store`, the path of a file, client id, views and unconfirmed changes outlive the
    process: the next one begins with them, also while the platform cannot be reached, and asks only for what
    it missed. One process at a time may have the file open. Entering raises StoreInUse, StoreRefused,
    Unreachable, TokenRefused, ClientRefused, or what else the API refuses.
    """
    return Client(url, token=token, client_id=client_id, **options)
