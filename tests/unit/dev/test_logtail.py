"""Following the logs of several processes."""

from __future__ import annotations

from pathlib import Path

from cloudsync.dev.logtail import LogFollower
from waiting import eventually


def test_new_lines_arrive_whole_and_with_their_process(tmp_path: Path) -> None:
    (tmp_path / "relay.log").write_text("before\n")
    seen: list[tuple[str, str]] = []
    follower = LogFollower(tmp_path, lambda process, line: seen.append((process, line)))
    with (tmp_path / "relay.log").open("a") as relay:
        relay.write("one\n\ntw")
        relay.flush()
        eventually(lambda: seen == [("relay", "one")])
        relay.write("o\n")
    (tmp_path / "api.log").write_text("hello\nunfinished")
    eventually(lambda: ("relay", "two") in seen and ("api", "hello") in seen)

    (tmp_path / "relay.log").write_text("cut\n")
    eventually(lambda: ("relay", "cut") in seen)
    follower.close()
    assert ("relay", "before") not in seen
    assert seen.count(("api", "hello")) == 1
    assert seen[-1] == ("api", "unfinished")
