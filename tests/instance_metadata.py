"""Instance metadata as a host of EC2 serves it, version 2: nothing is told without a token."""

from __future__ import annotations

import http.server
import threading
from types import TracebackType
from typing import Final, Self

INSTANCE: Final = "i-0123456789abcdef0"


class InstanceMetadata:
    """`with InstanceMetadata(group="cell-1", …) as metadata`: `state` is what auto scaling wants."""

    def __init__(self, *, group: str, region: str, instance: str = INSTANCE) -> None:
        self.state = "InService"
        self.asked = 0
        """How often the state was asked for."""
        self.answers = {
            "placement/region": region,
            "instance-id": instance,
            "tags/instance/aws:autoscaling:groupName": group,
        }
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                ok = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                self._answer(200 if ok else 400, "a-token")

            def do_GET(self) -> None:
                if self.headers["X-aws-ec2-metadata-token"] != "a-token":
                    return self._answer(401, "")
                path = self.path.removeprefix("/latest/meta-data/")
                if path == "autoscaling/target-lifecycle-state":
                    outer.asked += 1
                    return self._answer(200, outer.state)
                known = outer.answers.get(path)
                return self._answer(404 if known is None else 200, known or "")

            def _answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
