"""What a scenario is run with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloudsync.bench import target
from cloudsync.bench.target import Target
from cloudsync.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes None: the scenario's own. Without `folder` and `url` a private platform is started."""

    seconds: float | None = None
    clients: int | None = None
    rate: float | None = None
    events: int | None = None
    scale: int | None = None
    rounds: int | None = None
    processes: int | None = None
    durable: bool = True
    folder: Path | None = None
    url: str | None = None
    say: Callable[[str], None] = field(default=lambda _: None)

    @property
    def place(self) -> str:
        """Where it runs, for the configuration of the result."""
        if self.url is not None:
            return "by URL"
        if self.folder is not None:
            return "running"
        return "private, " + ("fsync on" if self.durable else "fsync off")

    @contextmanager
    def target(self, **private: Any) -> Iterator[Target]:
        """The platform; `private` says what one of its own is made of."""
        found: AbstractContextManager[Target]
        if self.url is not None:
            found = target.of_url(self.url)
        elif self.folder is not None:
            found = target.of_folder(self.folder)
        else:
            self.say("starting a private platform")
            found = target.private(durable=self.durable, **private)
        with found as chosen:
            yield chosen

    def require_private(self, scenario: str) -> None:
        if self.url is not None or self.folder is not None:
            raise ConfigurationError(
                f"The scenario {scenario} stops and starts processes: it runs on a platform of its own.",
                hint="Leave out --url and --platform.",
            )


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
