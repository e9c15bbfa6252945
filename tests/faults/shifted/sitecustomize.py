"""Read by every Python process that finds this folder on its path: the wall clock of a fault test.

The process sees the time as far from the true one as the file that SHIFTED_CLOCK names says, in nanoseconds,
at every look: so a test can let it jump while the process runs. Libraries see it, too. Monotonic clocks and
the clocks of PostgreSQL and Redis stay right.
"""

import datetime
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any


def _shift(path: str) -> None:
    with Path(path).open("rb") as file:
        memory = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    true_ns, true_gmtime, true_localtime = time.time_ns, time.gmtime, time.localtime
    true_datetime = datetime.datetime

    def time_ns() -> int:
        offset_ns: int = struct.unpack("q", memory[:8])[0]
        return true_ns() + offset_ns

    def now_s() -> float:
        return time_ns() / 1e9

    class Kind(type):
        def __instancecheck__(cls, thing: object) -> bool:
            return isinstance(thing, true_datetime)

    class Shifted(true_datetime, metaclass=Kind):
        __slots__ = ()

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.fromtimestamp(now_s(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.fromtimestamp(now_s(), datetime.UTC).replace(tzinfo=None)

    Shifted.__name__ = Shifted.__qualname__ = "datetime"
    Shifted.__module__ = "datetime"  # what looks types up by name shall find it
    datetime.datetime = Shifted  # type: ignore[misc]
    time.time_ns, time.time = time_ns, now_s
    time.gmtime = lambda seconds=None: true_gmtime(now_s() if seconds is None else seconds)
    time.localtime = lambda seconds=None: true_localtime(now_s() if seconds is None else seconds)


if "SHIFTED_CLOCK" in os.environ:
    _shift(os.environ["SHIFTED_CLOCK"])
