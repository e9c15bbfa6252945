"""Writers: PostgreSQL's own pgbench, which costs the machine far less than the server's work for it."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec

from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.dev.watchdog import watchdog
from cloudsync.errors import PlatformError

_PROCESSED: Final = re.compile(r"number of transactions actually processed: (\d+)")
_FAILED: Final = re.compile(r"number of failed transactions: (\d+)")
_RATE: Final = re.compile(r"tps = ([\d.]+)")
_AVERAGE: Final = re.compile(r"latency average = ([\d.]+) ms")


class WritersFailed(PlatformError):
    """The pgbench run ended with an error."""

    code = "writers_failed"


class Written(msgspec.Struct):
    """What a run of writers did. `p95_ms` of a transaction where it was logged."""

    transactions: int
    failed: int
    per_s: float
    average_ms: float
    p95_ms: float | None = None


class Writers:
    """A running pgbench, of a script or (None) of its own TPC-B-like one; `finish` waits for it."""

    def __init__(
        self, url: str, script: str | None, *, clients: int, seconds: float, threads: int = 1,
        transactions_per_s: float | None = None, log: bool = False,
    ) -> None:  # fmt: skip
        self._folder = tempfile.TemporaryDirectory(prefix="cloudsync-bench-")
        folder = Path(self._folder.name)
        arguments: list[Any] = [
            EmbeddedPostgres.binary("pgbench"), "--no-vacuum", "--protocol=prepared",
            f"--client={clients}", f"--jobs={threads}", f"--time={max(1, round(seconds))}",
        ]  # fmt: skip
        if script is not None:
            (folder / "script.sql").write_text(script)
            arguments.append(f"--file={folder / 'script.sql'}")
        if transactions_per_s is not None:
            arguments.append(f"--rate={transactions_per_s}")
        if log:
            arguments += ["--log", f"--log-prefix={folder / 'log'}"]
        self._log = log
        self._process = subprocess.Popen(  # noqa: S603 - arguments of our own
            [*arguments, url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        watchdog.child(self._process.pid, stop_signal=signal.SIGTERM, hard_signal=signal.SIGKILL)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def finish(self) -> Written:
        """Wait for its end. Raises WritersFailed."""
        output, errors = self._process.communicate()
        try:
            if self._process.returncode != 0:
                raise WritersFailed(f"pgbench failed: {errors.strip()[-400:]}")
            return Written(
                transactions=int(_number(_PROCESSED, output)),
                failed=int(_number(_FAILED, output)),
                per_s=_number(_RATE, output),
                average_ms=_number(_AVERAGE, output),
                p95_ms=_logged_p95_ms(Path(self._folder.name)) if self._log else None,
            )
        finally:
            self._forget()

    def stop(self) -> None:
        """End it now."""
        if self.running:
            self._process.kill()
            self._process.communicate()
        self._forget()

    def _forget(self) -> None:
        watchdog.forget_child(self._process.pid)
        self._folder.cleanup()


def initialize(url: str, *, scale: int) -> None:
    """pgbench's own tables. Raises WritersFailed."""
    done = subprocess.run(  # noqa: S603 - arguments of our own
        [EmbeddedPostgres.binary("pgbench"), "--initialize", "--quiet", f"--scale={scale}", url],
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    if done.returncode != 0:
        raise WritersFailed(f"pgbench --initialize failed: {done.stderr.strip()[-400:]}")


def _number(pattern: re.Pattern[str], output: str) -> float:
    found = pattern.search(output)
    return float(found[1]) if found else 0.0


def _logged_p95_ms(folder: Path) -> float | None:
    """From the log's lines: client, transaction, latency in µs, …"""
    latencies = sorted(
        int(line.split(" ", 3)[2]) for path in folder.glob("log*") for line in path.read_text().splitlines()
    )
    return latencies[len(latencies) * 95 // 100] / 1000 if latencies else None
