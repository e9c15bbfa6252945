"""Ports on the loopback address: which are free, and a clear word when one is not."""

from __future__ import annotations

import errno
import random
import socket
from typing import Final

from cloudsync.errors import PlatformError, PortInUse

LOOPBACK: Final = "127.0.0.1"
FIRST: Final = 11000
LAST: Final = 32000
_ATTEMPTS: Final = 200


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the servers do: TIME_WAIT is no owner
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EACCES:
                raise PlatformError(
                    f"Port {port} may not be opened by this user.", hint="Choose a port above 1023."
                ) from None
            return False
    return True


def free_port() -> int:
    """A port that nobody listens on at this moment, outside the range that outgoing connections take from."""
    draw = random.Random()  # noqa: S311 - a port, not a secret
    for _ in range(_ATTEMPTS):
        port = draw.randint(FIRST, LAST)
        if is_free(port):
            return port
    raise PortInUse(f"No port from {FIRST} to {LAST} is free.")


def require_free(port: int, *, owner: str, option: str = "") -> None:
    """Raise PortInUse, naming the port and the option that changes it."""
    if not is_free(port):
        hint = f"Stop that process, or choose another port with {option}." if option else None
        raise PortInUse(f"Port {port}, wanted for {owner}, is in use by another process.", hint=hint)
