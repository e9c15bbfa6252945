"""The receiving clients, in processes of their own, as a scenario drives them."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec

from cloudsync.bench.ledger import Account
from cloudsync.bench.receiver import Await, Open, Place, Progress, Settle
from cloudsync.bench.stages import Latencies
from cloudsync.bench.target import Target, child_environment
from cloudsync.dev.watchdog import watchdog
from cloudsync.errors import PlatformError
from cloudsync.protocol.messages import Where

_USERS_CONNECTIONS: Final = 20
_COUNTED: Final = ("deliveries", "frames", "snapshot_rows", "lost", "repeated", "reordered", "skipped")


class ReceiverFailed(PlatformError):
    """A process of receiving clients failed."""

    code = "receiver_failed"


class Outcome(msgspec.Struct):
    """What all clients received in one phase."""

    account: Account
    latencies: Latencies
    disconnects: dict[str, int]
    problems: list[str]
    decoded: int

    @property
    def disconnect_count(self) -> int:
        return sum(self.disconnects.values())

    @property
    def span_s(self) -> float:
        """From the first receipt to the last."""
        return (self.account.last_us - self.account.first_us) / 1e6


class Fleet:
    """`processes` processes of receiving clients; use it with `with`."""

    def __init__(self, target: Target, *, processes: int = 1) -> None:
        self._target = target
        self._children = [_start() for _ in range(processes)]
        self.registering_s = self.connecting_s = 0.0
        """How long the last `open` took to issue client ids, and to connect and subscribe."""

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._children]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            if child.stdin is not None:
                child.stdin.close()
        for child in self._children:
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            if child.stdout is not None:
                child.stdout.close()
            watchdog.forget_child(child.pid)

    def open(
        self, table: str, count: int, *, where: Where | None = None, ids_per_user: int = _USERS_CONNECTIONS,
        at_once: int = 16, deadline_s: float = 120.0,
    ) -> None:  # fmt: skip
        """Connect and subscribe so many clients, of as many users as it takes; returns when all are live."""
        began = time.monotonic()
        places, url = asyncio.run(issue_places(self._target, count, ids_per_user))
        registered = time.monotonic()
        share = -(-count // len(self._children))
        self._ask(
            Open(url, table, places[start : start + share], at_once, deadline_s, where)
            for start in range(0, share * len(self._children), share)
        )
        self.registering_s = registered - began
        self.connecting_s = time.monotonic() - registered

    def progress(self) -> dict[str, int]:
        """Events and frames received by all, events of the client that has fewest, disconnects."""
        answers = self._ask(Progress() for _ in self._children)
        total = {name: sum(a[name] for a in answers) for name in ("deliveries", "frames", "disconnects")}
        return {**total, "fewest": min(a["fewest"] for a in answers)}

    def await_sentinels(self, sentinels: dict[int, int], deadline_s: float) -> int:
        """Wait until everything before the sentinels has arrived; how many clients were late."""
        return sum(a["late"] for a in self._ask(Await(sentinels, deadline_s) for _ in self._children))

    def settle(self, versions: dict[str, int], deleted: Iterable[str] = ()) -> Outcome:
        """The account since the last one."""
        request = Settle(versions, list(deleted))
        account = Account()
        latencies = Latencies()
        disconnects: dict[str, int] = {}
        problems: list[str] = []
        decoded = 0
        for answer in self._ask(request for _ in self._children):
            part = msgspec.convert(answer, Account)
            for name in (*_COUNTED, "incomplete"):
                setattr(account, name, getattr(account, name) + getattr(part, name))
            for name in ("first_us", "first_commit_us"):
                times = filter(None, (getattr(account, name), getattr(part, name)))
                setattr(account, name, min(times, default=0))
            for name in ("last_us", "last_commit_us"):
                setattr(account, name, max(getattr(account, name), getattr(part, name)))
            latencies.merge(Latencies(part.latencies))
            for code, number in answer["disconnects"].items():
                disconnects[code] = disconnects.get(code, 0) + number
            problems += answer["problems"]
            decoded += answer["decoded"]
        return Outcome(account, latencies, disconnects, problems, decoded)

    def _ask(self, requests: Iterable[Open | Progress | Await | Settle]) -> list[dict[str, Any]]:
        asked = list(zip(self._children, requests, strict=True))
        for child, request in asked:
            assert child.stdin is not None  # noqa: S101 - started with a pipe
            child.stdin.write(msgspec.json.encode(request) + b"\n")
            child.stdin.flush()
        answers = []
        for child, _ in asked:
            assert child.stdout is not None  # noqa: S101 - as above
            line = child.stdout.readline()
            if not line:
                raise ReceiverFailed(f"A receiving process ended with status {child.wait()}.")
            answer = msgspec.json.decode(line)
            if "error" in answer:
                raise ReceiverFailed(f"The clients failed: {answer['error']}")
            answers.append(answer)
        return answers


def _start() -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "cloudsync.bench.receiver"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(),
        start_new_session=True,  # Ctrl-C reaches the driver alone
    )
    watchdog.child(child.pid, stop_signal=15, hard_signal=9)
    return child


async def issue_places(target: Target, count: int, ids_per_user: int) -> tuple[list[Place], str]:
    """Tokens and client ids for so many connections, twenty to a user, and the gateway's URL."""
    gate = asyncio.Semaphore(16)
    users = range(-(-count // _USERS_CONNECTIONS))
    run = secrets.token_hex(3)  # users of our own: a user may have only so many ids and connections
    tokens = [target.token(f"{run}-{number}") for number in users]
    trust = not target.api_url.startswith("http://127.")
    async with httpx.AsyncClient(base_url=target.api_url, timeout=30, trust_env=trust) as http:

        async def register(token: str) -> str:
            async with gate:
                headers = {"Authorization": f"Bearer {token}"}
                answer = await http.post("/v1/clients", headers=headers, json={"platform": "bench"})
                answer.raise_for_status()
                return str(answer.json()["client_id"])

        wanted = [token for token in tokens for _ in range(ids_per_user)]
        ids: Sequence[str] = await asyncio.gather(*map(register, wanted))
        answer = await http.get("/v1/endpoint", headers={"Authorization": f"Bearer {tokens[0]}"})
        answer.raise_for_status()
    places = [
        Place(tokens[user], ids[user * ids_per_user + number % ids_per_user])
        for user in users
        for number in range(_USERS_CONNECTIONS)
    ]
    return places[:count], str(answer.json()["url"])
