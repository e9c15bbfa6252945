"""The JSON bodies of the HTTP API. Text limits are in characters."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from cloudsync.protocol.messages import Choice

_NO_ZERO = r"^[^\x00]*$"
Name = Annotated[str, StringConstraints(max_length=200, pattern=_NO_ZERO)]
Platform = Annotated[str, StringConstraints(max_length=100, pattern=_NO_ZERO)]
Subject = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=_NO_ZERO)]


class Body(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class ErrorDetail(Body):
    code: str = Field(description="Stable; from the registry of error codes.", examples=["bad_token"])
    message: str = Field(description="One sentence for people.")


class ErrorBody(Body):
    """What every answer outside 2xx looks like."""

    error: ErrorDetail


class Endpoint(Body):
    """Where the token's user connects."""

    url: str = Field(examples=["wss://sync.example.com/ws/1"])
    cell: int
    protocol: str = Field(examples=["cloudsync.v1"])


class NewClient(Body):
    name: Name | None = Field(default=None, description="How the user calls this device.")
    platform: Platform | None = Field(default=None, examples=["python", "web", "ios"])
    ephemeral: bool = Field(
        default=False,
        description="It keeps nothing beyond its process: where the user has too many clients, "
        "the one of these that was unseen for longest gives way to a new one.",
    )


class ClientBody(Body):
    """A client id and what is known of it."""

    client_id: str
    name: str | None
    platform: str | None
    created_at: datetime
    last_seen_at: datetime | None


class ClientList(Body):
    clients: list[ClientBody]


class ConflictBody(Body):
    """A conflict that a person is to decide. Values are those of the row's JSON."""

    conflict_id: str
    revision: int = Field(description="Higher whenever something about it has changed.")
    table: str = Field(examples=["public.todos"])
    key: dict[str, Any]
    fields: list[str]
    version: int = Field(description="Of the row that holds `theirs`; the `base_version` of a decision.")
    base: dict[str, Any] | None = Field(
        description="Before either change; null if it is not known any more, or not the caller's to read."
    )
    theirs: dict[str, Any] = Field(description="What the row holds.")
    mine: dict[str, Any] = Field(description="What `by` has written and was not applied.")
    by: dict[str, Any] | None
    theirs_by: dict[str, Any] | None


class ConflictList(Body):
    conflicts: list[ConflictBody]
    next: str | None = Field(description="Ask `after` it for the rest; null at the end.")


class Decision(Body):
    choice: Choice
    values: dict[str, Any] | None = Field(
        default=None, description="With `merged`: what some or all of the conflict's fields are to hold."
    )
    base_version: int | None = Field(
        default=None, description="The `version` of the conflict that the caller has seen."
    )


class Resolved(Body):
    conflict_id: str
    choice: Choice
    version: int | None = Field(description="Of the row that holds what was chosen.")


class TokenRequest(Body):
    tenant: Subject
    user: Subject


class Token(Body):
    token: str
    expires_in_s: int


class Health(Body):
    status: str = Field(examples=["ok"])


class Readiness(Body):
    status: str = Field(examples=["ready"])
    checks: dict[str, str] = Field(examples=[{"postgres": "ok", "redis": "ok"}])
