"""Ports on the loopback address: which are free, and a clear word when one is not."""

from __future__ import annotations

import errno
import socket

from cloudsync.errors import PlatformError, PortInUse

LOOPBACK = "127.0.0.1"


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
    """A port that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def require_free(port: int, *, owner: str, option: str = "") -> None:
    """Raise PortInUse, naming the port and the option that changes it."""
    if not is_free(port):
        hint = f"Stop that process, or choose another port with {option}." if option else None
        raise PortInUse(f"Port {port}, wanted for {owner}, is in use by another process.", hint=hint)
