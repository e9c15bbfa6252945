"""One WebSocket from handshake to close: the ASGI side of the protocol's first steps and of each frame."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg
from psycopg_pool import PoolTimeout

from cloudsync import logs
from cloudsync.audit.records import CLIENT_REFUSED, TOKEN_REFUSED
from cloudsync.errors import (
    ClientRefused,
    DatabaseAway,
    KeysUnreachable,
    LimitReached,
    RequestError,
    TenantDisabled,
    TokenRefused,
)
from cloudsync.gateway.connection import Connection
from cloudsync.gateway.databases import Databases
from cloudsync.gateway.gateway import Gateway
from cloudsync.gateway.replay import Resumed
from cloudsync.gateway.subscriptions import NotConnected
from cloudsync.gateway.transport import Message
from cloudsync.metrics.definitions import RESUMPTIONS
from cloudsync.metrics.recorder import recorder
from cloudsync.protocol.codes import CLOSE_MEANINGS, ERROR_MEANINGS, Close
from cloudsync.protocol.messages import (
    BEARER_PREFIX,
    SUBPROTOCOL,
    Ack,
    AnyClientFrame,
    Auth,
    ChangeRequest,
    Conflicts,
    Error,
    Hello,
    Mismatch,
    PresenceRequest,
    Refetch,
    ResolveRequest,
    Subscribe,
    TextRequest,
    UnknownType,
    Unsubscribe,
    Welcome,
    decode_client_frame,
)
from cloudsync.protocol.window import BadAck
from cloudsync.sharding import cell_of
from cloudsync.tokens import Principal, TokenVerifier

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_BAD_FRAMES_ALLOWED = 10
_JUDGED_WITHIN_S = 6.0
"""A database that says nothing at all keeps no client waiting for longer."""
_log = logs.get("gateway")


class WebSocketHandler:
    """Serves `/ws/{cell}`."""

    def __init__(self, databases: Databases, verifier: TokenVerifier) -> None:
        self._databases = databases
        self._verifier = verifier
        self._settings = settings = databases.settings
        self._cell_of = partial(cell_of, cells=settings.cells, bucket_map=settings.bucket_map)
        self._limits = {
            "window_frames": settings.window_frames,
            "window_bytes": settings.window_bytes,
            "subscriptions": settings.subscriptions_per_connection,
            "inbound_frame_bytes": settings.inbound_frame_bytes,
            "batch_bytes": settings.batch_bytes,
            **databases.shared.writes.limits,
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        databases = self._databases
        if databases.draining:
            await _refuse(send, 503)
            return
        if not self._serves(scope["path"]):
            await _refuse(send, 404)
            return
        subprotocol, token = _offered(scope)
        del scope
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        connection = Connection(send, self._settings)
        databases.enter(connection)
        try:
            gateway = await self._greet(connection, receive, token)
            if gateway is not None:
                await self._converse(gateway, connection, receive)
        except Exception:  # noqa: BLE001 - one connection's failure must not reach the others
            _log.exception("connection failed")
            connection.close(Close.SERVER_ERROR, Error("internal", "The server met an error of its own."))
        finally:
            databases.left(connection)

    def _serves(self, path: str) -> bool:
        return path.rstrip("/") == f"/ws/{self._settings.cell}"

    async def _greet(self, connection: Connection, receive: Receive, token: str) -> Gateway | None:
        """Token, then hello, then client id: the tenant's database, None if the connection was closed."""
        databases, settings = self._databases, self._settings
        try:
            principal = await self._verify(token)
        except TokenRefused as error:
            databases.shared.note(TOKEN_REFUSED, outcome=error.code)
            connection.close(_close_for(error), Error(error.code, str(error)))
            return None
        if self._cell_of(principal.user) != settings.cell:
            connection.close(Close.MOVED, Error("wrong_cell", ERROR_MEANINGS["wrong_cell"]))
            return None
        if len(databases.connections) > settings.connections_per_gateway:
            error_frame = Error("limit_reached", "This gateway has all the connections that it may have.")
            connection.close(Close.SERVER_ERROR, error_frame)  # another one may have room
            return None
        text = await _next_text(receive, connection)
        if text is None:
            return None
        try:
            hello = decode_client_frame(text)
            if not isinstance(hello, Hello):
                raise RequestError("The first frame must be `hello`.")
        except RequestError as error:
            code = error.code if error.code == "bad_frame" else "hello_expected"
            connection.close(Close.PROTOCOL_ERROR, Error(code, str(error)))
            return None
        connection.client_id = hello.client_id  # before it is verified: a revocation from here on is heard
        gateway = databases.shared
        try:
            async with asyncio.timeout(_JUDGED_WITHIN_S):
                gateway = await databases.choose(principal)
                cursor = gateway.open_for(principal, hello)
                last_mutation = await gateway.verify(principal, hello.client_id, cursor)
        except ClientRefused as refusal:
            if not await databases.look_again(gateway, principal):  # 4501 is final for a client
                self._send_elsewhere(connection)
                return None
            gateway.note(CLIENT_REFUSED, principal, hello.client_id[:100], ClientRefused.code)
            connection.close(Close.CLIENT_REVOKED, Error("unknown_client", str(refusal)))
            return None
        except TenantDisabled as refusal:
            databases.note(CLIENT_REFUSED, principal, hello.client_id[:100], TenantDisabled.code)
            connection.close(Close.TENANT_DISABLED, Error(TenantDisabled.code, str(refusal)))
            return None
        except DatabaseAway as away:
            connection.close(Close.SERVER_ERROR, Error(away.code, str(away)))
            return None
        except (psycopg.Error, PoolTimeout, TimeoutError):
            connection.close(
                Close.SERVER_ERROR,
                Error("unavailable", "The client id cannot be verified right now; try again."),
            )
            return None
        try:
            resumed: Resumed | None = None
            if hello.cursor is not None:
                async with asyncio.timeout(_JUDGED_WITHIN_S):
                    resumed = "resync" if cursor is None else await gateway.choose(cursor)
        except (NotConnected, psycopg.Error, PoolTimeout, TimeoutError):
            connection.close(
                Close.SERVER_ERROR,
                Error("unavailable", "The cursor cannot be judged right now; come back with it."),
            )
            return None
        if connection.close_code is not None:
            return None
        if not databases.is_still(gateway, principal):
            self._send_elsewhere(connection)
            return None
        place = (principal.tenant, principal.user)
        if gateway.users.get(place, 0) >= settings.connections_per_user:
            message = f"A user may have {settings.connections_per_user} connections at most."
            connection.close(Close.TOO_MANY_CONNECTIONS, Error(LimitReached.code, message))
            return None
        databases.hand_over(connection, gateway)
        gateway.users[place] = gateway.users.get(place, 0) + 1
        connection.principal = principal
        gateway.joined(connection)
        goes_on = resumed in ("replay", "differential")
        connection.cursor_sent = cursor if goes_on else gateway.cursor
        if resumed is not None:
            recorder.counter(RESUMPTIONS, mode=resumed).add()
        connection.control(
            Welcome(
                session=f"{id(connection):x}",
                resumed=resumed,
                cursor=gateway.seal_for(connection, connection.cursor_sent),
                heartbeat_s=settings.heartbeat_s,
                limits=self._limits,
                server_time=datetime.now(UTC).isoformat(),
                last_mutation=last_mutation,
            )
        )
        if cursor is not None and goes_on:
            for held in hello.subscriptions:
                try:
                    gateway.subscriptions.resume(connection, held, cursor)
                except RequestError as error:
                    connection.control(Error(error.code, str(error), held.id))
        return gateway

    def _send_elsewhere(self, connection: Connection) -> None:
        connection.close(Close.MOVED, Error("unavailable", CLOSE_MEANINGS[Close.MOVED]))

    async def _verify(self, token: str) -> Principal:
        if self._verifier.blocking:
            return await asyncio.to_thread(self._verifier.verify, token)
        return self._verifier.verify(token)

    async def _converse(self, gateway: Gateway, connection: Connection, receive: Receive) -> None:
        bad_frames = 0
        while (text := await _next_text(receive, connection)) is not None:
            try:
                frame = decode_client_frame(text)
                await self._answer(gateway, connection, frame, len(text))
            except UnknownType as error:
                connection.control(Error(error.code, str(error)))
            except BadAck as error:
                connection.close(Close.PROTOCOL_ERROR, Error(error.code, str(error)))
            except TokenRefused as error:
                gateway.note(TOKEN_REFUSED, connection.principal, connection.client_id, error.code)
                connection.close(_close_for(error), Error(error.code, str(error)))
            except RequestError as error:
                connection.control(Error(error.code, str(error), _reference(text)))
                bad_frames += error.code == "bad_frame"
                if bad_frames > _BAD_FRAMES_ALLOWED:
                    connection.close(Close.PROTOCOL_ERROR, Error("bad_frame", "Too many malformed frames."))

    async def _answer(
        self, gateway: Gateway, connection: Connection, frame: AnyClientFrame, size_bytes: int
    ) -> None:
        subscriptions = gateway.subscriptions
        match frame:
            case Ack(n=n):
                connection.ack(n)
            case Subscribe():
                subscriptions.subscribe(connection, frame)
            case Unsubscribe(id=subscription_id):
                subscriptions.unsubscribe(connection, subscription_id)
            case Refetch():
                subscriptions.refetch(connection, frame)
            case Mismatch():
                subscriptions.mismatch(connection, frame)
            case ChangeRequest() | TextRequest() | ResolveRequest():
                gateway.writes.take(connection, frame, size_bytes)
            case Conflicts():
                gateway.conflicts.take(connection, frame)
            case PresenceRequest():
                gateway.presences.take(connection, frame)
            case Auth(token=token):
                await self._renew(connection, token)
            case Hello():
                raise RequestError("The hello was said already.")
            case _:
                raise NotSupported(
                    f"`{type(frame).__struct_config__.tag}` is not supported by this server yet."
                )

    async def _renew(self, connection: Connection, token: str) -> None:
        principal = await self._verify(token)
        known = connection.principal
        if known is None or (principal.tenant, principal.user) != (known.tenant, known.user):
            raise TokenRefused("The new token is another user's.")
        connection.principal = principal


class NotSupported(RequestError):
    """This server does not carry this out yet."""

    code = "not_supported"


def _close_for(error: TokenRefused) -> Close:
    """A token that cannot be judged right now is no reason for a client to stop for good."""
    return Close.SERVER_ERROR if isinstance(error, KeysUnreachable) else Close.BAD_TOKEN


def _offered(scope: Message) -> tuple[str | None, str]:
    """The subprotocol to answer with, and the bearer token of the handshake."""
    subprotocol = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return subprotocol, value[7:].decode("latin-1").strip()
    for offered in scope.get("subprotocols", ()):
        if offered.startswith(BEARER_PREFIX):
            return subprotocol, offered[len(BEARER_PREFIX) :]
    return subprotocol, ""


async def _next_text(receive: Receive, connection: Connection) -> str | None:
    """The next text frame; None once the connection has ended."""
    while connection.close_code is None:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return None
        text = message.get("text")
        if text is not None:
            return str(text)
        connection.close(Close.PROTOCOL_ERROR, Error("bad_frame", "Frames must be text."))
    return None


def _reference(text: str) -> str | None:
    """The id of the request that failed, if it can be read."""
    import msgspec

    try:
        content: Any = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    reference = content.get("id", content.get("sub"))
    return str(reference)[:100] if isinstance(reference, (str, int)) else None


async def _refuse(send: Send, status: int) -> None:
    await send({"type": "websocket.http.response.start", "status": status, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b""})
