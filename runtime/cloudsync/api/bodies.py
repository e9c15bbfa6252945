"""The JSON bodies of the HTTP API. Text limits are in characters."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

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


class ClientBody(Body):
    """A client id and what is known of it."""

    client_id: str
    name: str | None
    platform: str | None
    created_at: datetime
    last_seen_at: datetime | None


class ClientList(Body):
    clients: list[ClientBody]


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
