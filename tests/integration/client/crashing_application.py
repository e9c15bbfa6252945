"""An application that writes through a client with a store, and is killed at a line that the test names.

It reads orders from its standard input, runs each in a process of its own, and answers with one line.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from cloudsync.client import View, connect
from cloudsync.client import failures as client_failures
from waiting import eventually_async


class Countdown:
    """Counts the lines that the client's modules run, and kills the process at one of them."""

    def __init__(self, modules: list[str], kill_at: int | None) -> None:
        self._modules = modules
        self._kill_at = kill_at
        self.lines = 0

    def begin(self) -> None:
        sys.settrace(self._call)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        path = Path(frame.f_code.co_filename)
        return self._line if path.parent.name == "client" and path.stem in self._modules else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._line


async def _work(order: dict[str, Any]) -> dict[str, Any]:
    """Write a few changes, note each that was accepted, wait until all are answered."""
    told = Path(order["told"]).open("a", buffering=1)  # noqa: ASYNC230, SIM115
    countdown = Countdown(order["modules"], order["kill_at"])
    client = connect(order["url"], token="t", client_id="c_1", store=order["store"])
    async with client, asyncio.timeout(60):
        view = await client.subscribe("t")
        countdown.begin()
        for op, key, value in order["changes"]:
            change = getattr(client, op)("t", {"id": key}, *([{"a": value}] if op != "delete" else []))
            told.write(f"{change.number}\n")
            await asyncio.sleep(0)
        while client.pending:
            change = client.pending_changes[0]
            await asyncio.wait([asyncio.ensure_future(change.confirmed())])
        # The view does not tell of a patch that goes without changing what is seen.
        await eventually_async(lambda: client.state == "live" and _settled(view), 60)
        sys.settrace(None)
        rows = {str(key[0]): row["a"] for key, row in view.rows.items()}
    return {"rows": rows, "lines": countdown.lines}


def _settled(view: View) -> bool:
    return not view.subscription.overlay.patches


def main() -> None:
    client_failures.backoff_s.__kwdefaults__ |= {"base_s": 0.01, "cap_s": 0.05}
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            answer = asyncio.run(_work(order))
            Path(order["answer"]).write_text(json.dumps(answer))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
