"""The registry of error codes on the wire and of close codes. The reference page is generated from it.

Close codes decide what a client does: 4000-4499 reconnect with the cursor,
4500-4999 stop and tell the application.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Close(IntEnum):
    """Why the server closed a connection."""

    DRAINING = 4000
    TOKEN_EXPIRED = 4001
    SLOW = 4002
    NO_ACK = 4003
    SERVER_ERROR = 4004
    MOVED = 4005
    BAD_TOKEN = 4500
    CLIENT_REVOKED = 4501
    PROTOCOL_ERROR = 4502
    TENANT_DISABLED = 4503
    TOO_MANY_CONNECTIONS = 4504

    @property
    def reconnect(self) -> bool:
        return 4000 <= self < 4500


CLOSE_MEANINGS: Final[dict[Close, str]] = {
    Close.DRAINING: "The gateway is going away; connect again.",
    Close.TOKEN_EXPIRED: "The token expired; connect with a new one.",
    Close.SLOW: "The client did not keep up with its subscriptions.",
    Close.NO_ACK: "Nothing was acknowledged for too long.",
    Close.SERVER_ERROR: "The gateway met an error, is full or lost its place; connect again.",
    Close.MOVED: "The user has another cell, or the tenant another database; ask /v1/endpoint again.",
    Close.BAD_TOKEN: "The token is missing, malformed or not for this platform.",
    Close.CLIENT_REVOKED: "The client id is unknown, another user's, or revoked.",
    Close.PROTOCOL_ERROR: "The client broke the protocol.",
    Close.TENANT_DISABLED: "The tenant is disabled.",
    Close.TOO_MANY_CONNECTIONS: "The user has too many connections.",
}

ERROR_MEANINGS: Final[dict[str, str]] = {
    "bad_frame": "The frame is not a JSON object with a `type`, or a field has the wrong form.",
    "unknown_type": "The frame's type is not known to this server.",
    "hello_expected": "The first frame must be `hello`.",
    "bad_token": "The token is missing, malformed, expired or not for this platform.",
    "unknown_client": "The client id is unknown, another user's, or revoked.",
    "tenant_disabled": "The tenant is disabled.",
    "wrong_cell": "The user belongs to another cell; ask /v1/endpoint again.",
    "unknown_table": "There is no such table, it is not tracked, or you may not read it.",
    "unknown_column": "There is no such column in the table.",
    "bad_filter": "The where-clause does not fit the column it filters.",
    "unknown_subscription": "There is no subscription with this id on this connection.",
    "duplicate_subscription": "A subscription with this id exists on this connection.",
    "bad_operation": "The text operation is not in normal form, or does not fit the text.",
    "bad_ack": "An acknowledgement names a delivery that was never sent.",
    "limit_reached": "A limit of this connection or user is reached.",
    "not_supported": "This server does not carry this out yet.",
    "unknown_row": "There is no such row, or you may not change it.",
    "row_exists": "There is a row with this key already.",
    "key_change": "The key of a row does not change; delete the row and create another.",
    "bad_value": "A value does not fit its column.",
    "generated_column": "PostgreSQL computes this column; it cannot be written.",
    "text_column": "The column is edited with `text` frames.",
    "not_a_text": "The column is not edited with `text` frames: its policy is not `ot`.",
    "stale_revision": "The text operation is made from a revision that is too old: make it anew.",
    "not_unique": "Another row has the same values in columns that are unique.",
    "constraint_violated": "The change breaks a rule of the table.",
    "refused": "The application's own rules in the database refused the change.",
    "forbidden": "You may not write this.",
    "unknown_conflict": "There is no such conflict, or you may not resolve it.",
    "conflict_resolved": "Somebody has resolved this conflict already.",
    "conflict_changed": "The row has changed again; look at the conflict anew and decide.",
    "table_dropped": "The table was dropped or is no longer tracked; the subscription has ended.",
    "bad_request": "The request does not have the form that the API's description asks for.",
    "not_found": "There is nothing at this address for you.",
    "method_not_allowed": "This address does not take this method.",
    "too_large": "The request is larger than the server takes.",
    "unavailable": "The server cannot do this right now; try again.",
    "internal": "The server met an error of its own.",
}
