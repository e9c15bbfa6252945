"""What the embedded servers have in common: a folder, a port on loopback, one child process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from cloudsync.dev import ports
from cloudsync.dev.child import Child, ProcessSpec
from cloudsync.errors import PortInUse, StartFailed

_PORT_ATTEMPTS: Final = 5


class EmbeddedServer(ABC):
    """A server that keeps its things in `folder` and runs while this object is entered.

    `port` 0 takes a free one, once. A supervisor uses `prepare` and `spec` instead of `start`.
    """

    title: ClassVar[str]
    """Its name in sentences."""
    port_lost: ClassVar[str]
    """What its log says when somebody took the port meanwhile."""

    def __init__(self, folder: Path | str, *, port: int, log_name: str) -> None:
        self.folder = Path(folder).expanduser().resolve()
        self.log = self.folder / log_name
        self.port = port
        self._any_port = port == 0
        self._child: Child | None = None

    @abstractmethod
    def prepare(self) -> None:
        """Make what the server needs before it starts on `port`. Raises StartFailed, PlatformError."""

    @abstractmethod
    def spec(self) -> ProcessSpec:
        """The server's process."""

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.running else None

    def start(self) -> Self:
        """Start the server and wait until it answers. Raises PortInUse, StartFailed, PlatformError."""
        self.stop()  # what is left of one that crashed
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            if self._any_port:
                self.port = ports.free_port()
            else:
                ports.require_free(self.port, owner=self.title)
            self.prepare()
            self._child = Child(self.spec(), self.log)
            try:
                self._child.start()
                self.wait_ready()
            except StartFailed:
                self.stop()
                if self.port_lost not in self._child.output():
                    raise
                if not self._any_port or attempt == _PORT_ATTEMPTS:
                    raise PortInUse(f"Port {self.port} was taken while {self.title} started.") from None
            except BaseException:
                self.stop()
                raise
            else:
                self._any_port = False  # started again, it is where its clients know it
                break
        return self

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return once the server answers. Raises StartFailed with the log's last lines."""
        if self._child is None:
            raise StartFailed(f"{self.title} has not been started.")
        self._child.wait_ready(timeout_s)

    def stop(self, timeout_s: float | None = None) -> None:
        """End it: politely, then firmly, then at once. Does nothing if it is not running."""
        if self._child is not None:
            self._child.stop(timeout_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
