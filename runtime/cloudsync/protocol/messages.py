"""The frames of protocol version 1 as types. Frames with row data are spliced from JSON text in `frames`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, get_args

import msgspec

from cloudsync.errors import RequestError

SUBPROTOCOL: Final = "cloudsync.v1"
BEARER_PREFIX: Final = "bearer."

Mode = Literal["every", "latest", "batch"]
Outcome = Literal["applied", "merged", "superseded", "conflict", "already_applied"]
Choice = Literal["mine", "theirs", "merged"]
Where = dict[str, Any]
NULL: Final = msgspec.Raw(b"null")
Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What PostgreSQL can count."""
Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
"""What a client calls a subscription: it comes back with every delivery."""


class ClientFrame(msgspec.Struct, tag_field="type", omit_defaults=True, gc=False):
    """A frame from a client."""


class HeldSubscription(msgspec.Struct, omit_defaults=True, gc=False):
    """A subscription that the cursor of a `hello` covers."""

    id: Identifier
    table: str
    where: Where | None = None
    columns: list[str] | None = None
    mode: Mode = "every"
    snapshot: bool = True
    """Whether it was made with one: without, what the client holds is not all of the view."""


class Hello(ClientFrame, tag="hello"):
    client_id: str
    cursor: str | None = None
    subscriptions: list[HeldSubscription] = []
    sdk: str = ""


class Subscribe(ClientFrame, tag="subscribe"):
    id: Identifier
    table: str
    where: Where | None = None
    columns: list[str] | None = None
    snapshot: bool = True
    mode: Mode = "every"


class Unsubscribe(ClientFrame, tag="unsubscribe"):
    id: str


class Change(ClientFrame, tag="change"):
    id: int
    op: Literal["create", "update", "delete"]
    table: str
    key: dict[str, Any]
    values: dict[str, Any] = {}
    base_version: int | None = None
    at: str = ""


class ChangeRequest(ClientFrame, tag="change"):
    """A `change` as a server reads it: values stay JSON text, so that no number is rounded."""

    id: Number
    op: Literal["create", "update", "delete"]
    table: str
    key: dict[str, msgspec.Raw]
    values: dict[str, msgspec.Raw] = {}
    base_version: Number | None = None
    at: str = ""


class Text(ClientFrame, tag="text"):
    id: int
    table: str
    key: dict[str, Any]
    column: str
    revision: int
    op: list[Any]


class TextRequest(ClientFrame, tag="text"):
    """A `text` as a server reads it; the operation is checked where it is applied."""

    id: Number
    table: str
    key: dict[str, msgspec.Raw]
    column: str
    revision: Number
    op: list[Any]


class Resolve(ClientFrame, tag="resolve"):
    """A person's decision. `base_version` is that of the row which they saw as `theirs`."""

    id: int
    conflict_id: str
    choice: Choice
    values: dict[str, Any] | None = None
    base_version: int | None = None


class ResolveRequest(ClientFrame, tag="resolve"):
    """A `resolve` as a server reads it, as `ChangeRequest`."""

    id: Number
    conflict_id: str
    choice: Choice
    values: dict[str, msgspec.Raw] | None = None
    base_version: Number | None = None


class Conflicts(ClientFrame, tag="conflicts"):
    """The open conflicts of rows that the user may see, of one table or of all: a page of them, please."""

    id: Identifier
    table: str | None = None
    after: str | None = None


class Refetch(ClientFrame, tag="refetch"):
    sub: str
    key: dict[str, Any]


class Mismatch(ClientFrame, tag="mismatch"):
    """The view's checksum is not the one that a heartbeat named: a fresh snapshot, please."""

    sub: str
    sum: str


class Ack(ClientFrame, tag="ack"):
    n: int


class Auth(ClientFrame, tag="auth"):
    token: str


class Presence(ClientFrame, tag="presence"):
    """I am here, in this state; null: I only want to know who is."""

    sub: str
    state: Any = None


class PresenceRequest(ClientFrame, tag="presence"):
    """A `presence` as a server reads it: nothing in the state is its business."""

    sub: str
    state: msgspec.Raw = NULL


AnyClientFrame = (
    Hello
    | Subscribe
    | Unsubscribe
    | ChangeRequest
    | TextRequest
    | ResolveRequest
    | Conflicts
    | Refetch
    | Mismatch
    | Ack
    | Auth
    | PresenceRequest
)


class ServerFrame(msgspec.Struct, tag_field="type", omit_defaults=True, gc=False):
    """A frame from the server. Those with row data have fields in `protocol.frames`."""


class Welcome(ServerFrame, tag="welcome"):
    session: str
    resumed: Literal["replay", "differential", "resync"] | None
    cursor: str | None
    heartbeat_s: float
    limits: dict[str, int]
    server_time: str
    last_mutation: int | None = None
    """The highest mutation number that was taken of this client; None from a server that takes none."""


class Column(msgspec.Struct, omit_defaults=True, gc=False):
    """A column as clients see it: its name and PostgreSQL type, and whether `text` frames edit it."""

    name: str
    type: str
    text: bool = False


class TableSchema(msgspec.Struct, gc=False):
    """What a subscription's rows look like: key columns in key order, columns in table order."""

    table: str
    key: list[str]
    columns: list[Column]


class Subscribed(ServerFrame, tag="subscribed"):
    id: str
    schema: TableSchema
    count: int | None = None


class SubscriptionReset(ServerFrame, tag="subscription.reset"):
    sub: str
    reason: str


class SubscriptionChanged(ServerFrame, tag="subscription.changed"):
    sub: str
    schema: TableSchema | None = None
    mode: Mode | None = None


class ChangeConfirmed(ServerFrame, tag="change.confirmed"):
    """The change is durable in PostgreSQL. `fields` did not take effect: later ones, or a person, decide."""

    id: int
    outcome: Outcome
    version: int | None = None
    fields: list[str] | None = None
    revision: int | None = None
    """Of a `text`: what the operation is a part of from here on."""
    conflict_id: str | None = None


class ChangeRejected(ServerFrame, tag="change.rejected"):
    """The change was not applied and will not be."""

    id: int
    code: str
    message: str


class ConflictDetected(ServerFrame, tag="conflict.detected"):
    """A person is to decide about fields of a row. A higher `revision` replaces what was said of it before.

    `theirs` is what the row holds in `version`, `mine` what `by` wrote without knowing it, `base` what
    the row held when it was written: null if that is not known any more, or not for this user to read.
    """

    conflict_id: str
    revision: int
    table: str
    key: msgspec.Raw
    fields: list[str]
    version: int
    base: dict[str, msgspec.Raw] | None
    theirs: dict[str, msgspec.Raw]
    mine: dict[str, msgspec.Raw]
    by: msgspec.Raw
    theirs_by: msgspec.Raw


class ConflictResolved(ServerFrame, tag="conflict.resolved"):
    """The conflict is over: the row holds in `version` what `by` has chosen."""

    conflict_id: str
    revision: int
    table: str
    key: msgspec.Raw
    choice: Choice
    version: int
    by: msgspec.Raw


class ConflictPage(ServerFrame, tag="conflict.page"):
    """The answer to `conflicts`; with `next` there is more: ask again `after` it."""

    id: str
    conflicts: list[ConflictDetected]
    next: str | None = None


class ConflictReset(ServerFrame, tag="conflict.reset"):
    """Of this view conflicts may have come and gone unheard, before it was brought up to date: list them."""

    sub: str


class SyncComplete(ServerFrame, tag="sync.complete"):
    """The change has been handed to every gateway with somebody whom it concerns."""

    id: int
    position: str


class Heartbeat(ServerFrame, tag="heartbeat"):
    cursor: str | None
    lag_ms: int
    token_expires_in: int
    degraded: bool = False
    sums: dict[str, str] | None = None
    """Of subscriptions that are to be compared: the view's checksum (`protocol.checksum`) at this place."""


class Draining(ServerFrame, tag="server.draining"):
    reconnect_in_ms: int


class Error(ServerFrame, tag="error"):
    code: str
    message: str
    ref: str | None = None


class _Typed(msgspec.Struct):
    type: str


class BadFrame(RequestError):
    """The frame is not a JSON object with a `type`, or a field has the wrong form."""

    code = "bad_frame"


class UnknownType(RequestError):
    """The frame's type is not known to this server."""

    code = "unknown_type"


_decoder: msgspec.json.Decoder[AnyClientFrame] = msgspec.json.Decoder(AnyClientFrame)
_typed = msgspec.json.Decoder(_Typed)
_ECHO: Final = re.compile(r"^Invalid enum value '.*'(?= - at |\Z)", re.DOTALL)
_KNOWN: Final = frozenset(frame.__struct_config__.tag for frame in get_args(AnyClientFrame))
encode = msgspec.json.Encoder().encode


def decode_client_frame(data: str | bytes) -> AnyClientFrame:
    """One frame of a client. Raises BadFrame or UnknownType, which do not repeat the content."""
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        try:
            kind = _typed.decode(data).type
        except (msgspec.MsgspecError, RecursionError):
            raise BadFrame("The frame must be a JSON object with a text field `type`.") from None
        if kind not in _KNOWN:
            raise UnknownType(f"The type {kind[:40]!r} is not known to this server.") from None
        raise BadFrame(f"In a {kind!r} frame: {_ECHO.sub('Invalid value', str(error))}.") from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise BadFrame("The frame is not JSON.") from None
