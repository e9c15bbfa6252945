"""How a process logs in to a database: by a URL, and a password that may have to be fetched first."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Final, Self, TypeVar

import msgspec
import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cloudsync import logs
from cloudsync.tenants.reference import DatabaseReference

_FRESH_S: Final = 5.0
"""A password that was read so recently is not read again when it is refused."""
_RECONNECT_S: Final = 5.0
_NOTICED: Final = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
"""A server that falls silent is noticed within seconds: it must hold nobody up who also serves others."""

T = TypeVar("T")

_log = logs.get("tenants")


class PasswordUnavailable(psycopg.OperationalError):
    """The password of a database cannot be read; to whoever connects it is as a server that is away."""


class Login:
    """Opens connections to one database, and reads its password again when it may have been rotated."""

    def __init__(self, url: str, secret: str | None = None, *, one_of_many: bool = False) -> None:
        self._conninfo = url
        self._one_of_many = one_of_many
        self._secret = _Secret(secret) if secret is not None else None

    @classmethod
    def of(cls, reference: DatabaseReference) -> Self:
        """To a tenant's own database."""
        known = conninfo_to_dict(reference.url)
        missing = {name: value for name, value in _NOTICED.items() if name not in known}
        # Or libpq would take PGPASSWORD, that of the shared database, and offer it to this server.
        missing["password"] = ""
        return cls(make_conninfo(reference.url, **missing), reference.secret, one_of_many=True)

    def connect(self, **options: Any) -> Connection[Any]:
        """A connection, for whoever may block. Raises psycopg.OperationalError."""
        try:
            return psycopg.connect(self._complete(), **options)
        except psycopg.OperationalError:
            if not self._changed():
                raise
            return psycopg.connect(self._complete(), **options)

    async def connect_async(self, **options: Any) -> AsyncConnection[Any]:
        """A connection. Raises psycopg.OperationalError."""
        return await self.connection_class.connect("", **options)

    @property
    def pool_options(self) -> dict[str, Any]:
        """What a pool needs to lead to this database.

        Of a tenant's own an attempt that fails is given up soon, and whoever asks next begins another: it is
        found as soon as it is back, not after the pool's minutes of backing off.
        """
        patience = {"reconnect_timeout": _RECONNECT_S} if self._one_of_many else {}
        return {"connection_class": self.connection_class, **patience}

    @cached_property
    def connection_class(self) -> type[AsyncConnection[Any]]:
        """For a pool: connections of this class know where they lead, whatever conninfo they are given."""
        login = self

        class Opened(AsyncConnection[Any]):
            @classmethod
            async def connect(cls, conninfo: str = "", **options: Any) -> Self:
                try:
                    return await super().connect(await login._complete_async(), **options)
                except psycopg.OperationalError:
                    if login._secret is None or not await login._secret.elsewhere(login._changed):
                        raise
                    return await super().connect(await login._complete_async(), **options)

        return Opened

    def _complete(self) -> str:
        if self._secret is None:
            return self._conninfo
        return make_conninfo(self._conninfo, password=self._secret.read())

    async def _complete_async(self) -> str:
        return self._conninfo if self._secret is None else await self._secret.elsewhere(self._complete)

    def _changed(self) -> bool:
        """Whether the password is another one than the one that was refused."""
        return self._secret is not None and self._secret.changed()


class _Secret:
    """A secret of Secrets Manager with a password in it, read when it is needed and then kept."""

    def __init__(self, arn: str) -> None:
        self._arn = arn
        self._lock = threading.Lock()
        self._client: Any = None
        self._password: str | None = None
        self._read_s = 0.0
        self._thread = ThreadPoolExecutor(1, "password")

    async def elsewhere(self, work: Callable[[], T]) -> T:
        """Do what may read the secret in this one's own thread.

        Whoever waits for AWS here must take no thread from the process's few, which check tokens and look
        up hosts for every tenant.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def read(self) -> str:
        """The password. Raises PasswordUnavailable."""
        with self._lock:
            if self._password is None:
                self._fetch()
            assert self._password is not None  # noqa: S101 - or it was raised
            return self._password

    def changed(self) -> bool:
        """Read it again, unless it was read just now; whether it is another one."""
        with self._lock:
            before = self._password
            if time.monotonic() - self._read_s < _FRESH_S:
                return False
            try:
                self._fetch()
            except PasswordUnavailable as error:
                _log.warning("a password was not read again", reason=str(error))
                return False
            return self._password != before

    def _fetch(self) -> None:
        try:  # optional: only deployments have boto3
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            raise PasswordUnavailable("boto3, which reads the password, is not installed.") from None
        try:
            if self._client is None:
                config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 3})
                region = self._arn.split(":")[3]
                self._client = boto3.session.Session().client(
                    "secretsmanager", region_name=region, config=config
                )
            text = self._client.get_secret_value(SecretId=self._arn)["SecretString"]
            password = msgspec.json.decode(text)["password"]
        except ClientError as error:
            reason = error.response["Error"]["Code"]
            raise PasswordUnavailable(f"AWS refused {error.operation_name}: {reason}.") from None
        except BotoCoreError as error:
            raise PasswordUnavailable(f"AWS cannot be reached for a password: {error}.") from None
        except (KeyError, TypeError, msgspec.MsgspecError):
            raise PasswordUnavailable("The secret of the database has no field `password`.") from None
        if not isinstance(password, str) or not password:
            raise PasswordUnavailable("The field `password` of the database's secret is no text.")
        self._password, self._read_s = password, time.monotonic()
