"""The one tree of errors. A class's docstring is its message to the user; `code` is stable and public.

CloudSyncError
├── ConfigurationError   something in the settings or the command line
├── PlatformError        the database, Redis or a port is not as it must be
├── CaptureError         tracking and migrations
├── AccessError          who may do what
└── RequestError         what a client asked for

Codes that travel on the wire and the close codes they lead to are in `protocol.codes`.
"""

from __future__ import annotations

from typing import ClassVar


class CloudSyncError(Exception):
    """Something went wrong in CloudSync."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.hint = hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class ConfigurationError(CloudSyncError):
    """The settings are not usable."""

    code = "configuration"


class PlatformError(CloudSyncError):
    """A service that CloudSync stands on is not as it must be."""

    code = "platform"


class PortInUse(PlatformError):
    """The port is in use by another process."""

    code = "port_in_use"


class AlreadyRunning(PlatformError):
    """A platform is already running in this folder."""

    code = "already_running"


class NotRunning(PlatformError):
    """No platform is running in this folder."""

    code = "not_running"


class StartFailed(PlatformError):
    """A process of the platform did not start."""

    code = "start_failed"


class DatabaseUnreachable(PlatformError):
    """PostgreSQL cannot be reached."""

    code = "database_unreachable"


class DatabaseUnsuitable(PlatformError):
    """This PostgreSQL server cannot carry CloudSync."""

    code = "database_unsuitable"


class KeyringUnreachable(PlatformError):
    """The sealing keys cannot be read."""

    code = "keyring_unreachable"


class RedisUnreachable(PlatformError):
    """Redis cannot be reached."""

    code = "redis_unreachable"


class RedisUnauthorized(PlatformError):
    """Redis asks for a password, or refused the one it was given."""

    code = "redis_unauthorized"


class RedisUnsuitable(PlatformError):
    """This Redis server cannot carry CloudSync."""

    code = "redis_unsuitable"


class CaptureError(CloudSyncError):
    """Capture could not be set up."""

    code = "capture"


class MigrationRefused(CaptureError):
    """The migrations on disk do not fit those recorded in the database."""

    code = "migration_refused"


class TrackRefused(CaptureError):
    """This table cannot be tracked."""

    code = "track_refused"


class NotTracked(CaptureError):
    """This table is not tracked."""

    code = "not_tracked"


class UnknownTenant(ConfigurationError):
    """No such tenant was created."""

    code = "unknown_tenant"


class TenantExists(ConfigurationError):
    """There is a tenant of this id already."""

    code = "tenant_exists"


class TenantRefused(ConfigurationError):
    """The tenant cannot be moved as it is."""

    code = "tenant_refused"


class AccessError(CloudSyncError):
    """Access was refused."""

    code = "forbidden"


class TokenRefused(AccessError):
    """The token is missing, malformed, expired or not for this platform."""

    code = "bad_token"


class KeysUnreachable(TokenRefused):
    """The keys that tokens are verified with cannot be fetched right now."""

    code = "unavailable"


class ClientRefused(AccessError):
    """This client id does not belong to the token's user, or was revoked."""

    code = "unknown_client"


class DatabaseAway(PlatformError):
    """The database of your tenant cannot be used right now; try again."""

    code = "unavailable"


class TenantDisabled(AccessError):
    """The tenant is disabled."""

    code = "tenant_disabled"


class SealBroken(CloudSyncError):
    """A sealed value could not be opened: wrong key, or altered, or moved from where it was written."""

    code = "seal_broken"


class RequestError(CloudSyncError):
    """The request cannot be carried out."""

    code = "bad_request"


class UnknownTable(RequestError):
    """There is no such table, or it is not tracked, or you may not read it."""

    code = "unknown_table"


class UnknownColumn(RequestError):
    """There is no such column in the table."""

    code = "unknown_column"


class BadFilter(RequestError):
    """The where-clause does not fit the column it filters."""

    code = "bad_filter"


class LimitReached(RequestError):
    """A limit of this connection or user is reached."""

    code = "limit_reached"
