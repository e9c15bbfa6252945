"""`cloudsync dev`, `status` and `stop`: the platform at the terminal."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from psycopg.conninfo import conninfo_to_dict, make_conninfo
from rich.console import Console
from rich.text import Text

from cloudsync.dev import state, status
from cloudsync.dev.logtail import LogFollower
from cloudsync.dev.options import PlatformOptions
from cloudsync.dev.platform import Platform
from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.dev.progress import losses, relay_progress
from cloudsync.errors import AlreadyRunning, StartFailed

_COLOURS: Final = (
    "cyan",
    "magenta",
    "blue",
    "yellow",
    "green",
    "bright_cyan",
    "bright_magenta",
    "bright_blue",
)
_SETTLE_S: Final = 0.3
_STOP_WAIT_S: Final = 30.0


class _Terminal:
    """What the person at the terminal sees, and what they ask for."""

    def __init__(self, *, colour: bool, quiet: bool) -> None:
        self.console = Console(no_color=not colour, highlight=False, soft_wrap=True)
        self.quiet = quiet
        self.stopping = threading.Event()
        self.wanted = threading.Event()
        """The table is wanted: by the person, or because something changed."""
        self.platform: Platform | None = None
        self._began = time.monotonic()
        self._colours: dict[str, str] = {}

    def listen(self) -> None:
        """From here on Ctrl-C, SIGTERM and SIGHUP stop the platform; the second one kills it."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGUSR1, lambda *_: self.wanted.set())

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style))

    def line(self, process: str, text: str) -> None:
        """One line of a process's log."""
        colour = self._colours.setdefault(process, _COLOURS[len(self._colours) % len(_COLOURS)])
        try:
            self.console.print(Text.assemble((f"{process:>13} │ ", colour), Text(text)))
        except SystemExit:  # rich's answer to a reader that has gone
            self.stopping.set()

    def changed(self, process: str, text: str) -> None:
        """Called by the platform when something happened to a process."""
        if self.platform is None:
            if not self.quiet:
                self.say(f"{time.monotonic() - self._began:5.1f} s  {process} {text}", "dim")
        elif text != "is ready":  # that one belongs to the start, and comes from another thread
            self.say(f"{process} {text}", "" if "again" in text else "red")
            self.wanted.set()

    def wait(self) -> None:
        """Until asked to stop; shows the table when it is wanted, and when the person presses Enter."""
        keys = _keyboard()
        while not self.stopping.is_set():
            if keys is None:
                self.stopping.wait(0.2)
            elif select.select([keys], [], [], 0.2)[0]:
                if not os.read(keys, 1024):
                    keys = None  # end of input is no wish to stop
                self.wanted.set()
            if self.wanted.is_set() and self.platform is not None and not self.stopping.is_set():
                self.wanted.clear()
                processes = self.platform.processes.values()
                if any(process.state != "ready" for process in processes):
                    time.sleep(_SETTLE_S)  # several often change together
                status.show(self.platform.state(), self.console)

    def _stop(self, number: int, _: FrameType | None) -> None:
        if self.stopping.is_set() and self.platform is not None:
            self.platform.hurry()
        self.stopping.set()


def run(options: PlatformOptions, *, colour: bool = True, quiet: bool = False) -> None:
    """Run a platform until Ctrl-C or SIGTERM. Raises AlreadyRunning (after showing what runs) and others."""
    terminal = _Terminal(colour=colour, quiet=quiet)
    terminal.listen()
    platform = Platform(options, on_change=terminal.changed, cancelled=terminal.stopping.is_set)
    follower: LogFollower | None = None
    try:
        if not quiet:
            terminal.say("Starting …", "dim")
        platform.start()
        terminal.platform = platform
        for notice in platform.notices:
            terminal.say(notice, "yellow")
        status.show(platform.state(), terminal.console)
        _next_steps(terminal, platform)
        if not quiet:
            follower = LogFollower(platform.logs, terminal.line)
        terminal.wait()
    except AlreadyRunning:
        _show_running(options, terminal)
        raise
    except StartFailed:
        if not terminal.stopping.is_set():
            raise
    finally:
        if terminal.stopping.is_set() and not quiet:
            terminal.say("Stopping … (Ctrl-C again kills at once)", "dim")
        platform.stop()
        if follower is not None:
            follower.close()
    if not quiet:
        terminal.say("Stopped.", "dim")


def show_status(folder: Path, *, colour: bool = True) -> None:
    """Print the table of the platform in this folder. Raises NotRunning."""
    running = state.require(folder)
    console = Console(no_color=not colour, highlight=False, soft_wrap=True)
    status.show(running, console)
    console.print(f"{'Relay:':15}{relay_progress(running.postgres_url)}")
    console.print(f"{'Lost:':15}{losses(running.postgres_url)}")
    for slug, url in running.dedicated.items():
        console.print(f"{f'Relay of {slug}:':15} {relay_progress(url)}")
        console.print(f"{f'Lost of {slug}:':15} {losses(url)}")


def stop(folder: Path) -> None:
    """Stop the platform in this folder and wait for its end. Raises NotRunning, StartFailed if it stays."""
    running = state.require(folder)
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"Stopping the platform in {folder.expanduser().resolve()} (process {running.pid}) …", markup=False
    )
    os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_WAIT_S
    while state.is_running(folder):
        if time.monotonic() > deadline:
            raise StartFailed(f"The platform (process {running.pid}) did not stop within {_STOP_WAIT_S:g} s.")
        time.sleep(0.05)
    console.print("Stopped.")


def psql(url: str, arguments: Sequence[str]) -> NoReturn:
    """Become psql: the one on the path, or the embedded server's."""
    program = shutil.which("psql") or str(EmbeddedPostgres.binary("psql"))
    parts: dict[str, Any] = {**conninfo_to_dict(url)}
    # A password belongs in the environment, where other users of the machine cannot read it.
    password = parts.pop("password", None)
    environment = {**os.environ, **({"PGPASSWORD": str(password)} if password else {})}
    os.execve(program, ["psql", f"--dbname={make_conninfo(**parts)}", *arguments], environment)  # noqa: S606


def _show_running(options: PlatformOptions, terminal: _Terminal) -> None:
    running = state.read((options.data or state.DEFAULT_FOLDER).expanduser().resolve())
    if running is not None:
        terminal.say(f"Already running since {running.started_at} (process {running.pid}):")
        status.show(running, terminal.console)


def _next_steps(terminal: _Terminal, platform: Platform) -> None:
    data = platform.options.data
    folder = "" if data is None or data == state.DEFAULT_FOLDER else f" --data {shlex.quote(str(data))}"
    cloudsync = _program()
    table = "CREATE TABLE todos (id bigint PRIMARY KEY, title text, done boolean DEFAULT false)"
    terminal.say("")
    terminal.say(f"Ready in {platform.start_s:.1f} s. Try, in another terminal:", "bold green")
    for command in (
        f'{cloudsync} psql{folder} -c "{table}"',
        f"{cloudsync} track todos --tenant demo{folder}",
        f"{cloudsync} tail todos --tenant demo --user me{folder}",
        f"{cloudsync} token --tenant demo --user me{folder}",
        *(f"{cloudsync} psql --dedicated {slug}{folder}" for slug in platform.options.dedicated[:1]),
    ):
        terminal.say(f"  {command}")
    if sys.stdin.isatty():
        terminal.say("Enter shows the table again, Ctrl-C stops.", "dim")
    terminal.say("")


def _program() -> str:
    """How to call this program in another terminal."""
    beside = Path(sys.executable).with_name("cloudsync")
    found = shutil.which("cloudsync")
    if found is not None and Path(found).resolve() == beside.resolve():
        return "cloudsync"
    if beside.exists():
        return shlex.quote(_from_here(beside))
    return f"{shlex.quote(sys.executable)} -m cloudsync"


def _from_here(path: Path) -> str:
    """Relative where it is below the working directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _keyboard() -> int | None:
    """Standard input, if a person is there and this process is in the foreground."""
    try:
        descriptor = sys.stdin.fileno()
        if os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp():
            return descriptor
    except (OSError, ValueError, AttributeError):
        return None
    return None
