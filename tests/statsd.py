"""A DogStatsD agent as tests need it: takes datagrams on loopback and reads them strictly."""

from __future__ import annotations

import re
import socket
import threading
from typing import NamedTuple

_LINE = re.compile(
    r"(?P<name>[a-z0-9._]+):(?P<value>-?[0-9.]+)\|(?P<kind>[cgd])(\|@(?P<rate>[0-9.e-]+))?(\|#(?P<tags>.+))?\Z"
)
_KINDS = {"c": "count", "g": "gauge", "d": "distribution"}


class Received(NamedTuple):
    name: str
    kind: str
    value: float
    weight: float
    tags: dict[str, str]


def parse(line: str) -> Received:
    """One line of a datagram. Raises AssertionError for anything that DogStatsD would not take."""
    found = _LINE.match(line)
    assert found is not None, line
    tags = dict(tag.split(":", 1) for tag in (found["tags"] or "").split(",") if tag)
    rate = float(found["rate"] or 1)
    return Received(found["name"], _KINDS[found["kind"]], float(found["value"]), 1 / rate, tags)


class Agent:
    """Listens from its making to `close`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.1)
        self._halt = False
        self.datagrams: list[bytes] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def received(self) -> list[Received]:
        return [parse(line) for data in list(self.datagrams) for line in data.decode().splitlines()]

    def named(self, name: str, **tags: str) -> list[Received]:
        return [r for r in self.received if r.name == name and tags.items() <= r.tags.items()]

    def close(self) -> None:
        self._halt = True
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._halt:
            try:
                self.datagrams.append(self._socket.recv(65536))
            except TimeoutError:
                continue
