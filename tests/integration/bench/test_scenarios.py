"""Every scenario, short and small, on real processes: the JSON's shape, and nothing lost or repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cloudsync.bench import command
from cloudsync.bench.scenarios.coming_back import _logged, _statements
from cloudsync.dev.platform import Platform
from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.errors import ConfigurationError, NotRunning
from waiting import eventually

STAGES = {
    "detection_p95_ms",
    "processing_p95_ms",
    "delivery_p95_ms",
    "end_to_end_p50_ms",
    "end_to_end_p95_ms",
}
CORRECT = {"lost", "repeated"}


def run(tmp_path: Path, *arguments: str) -> Any:
    """The JSON of a run that must succeed."""
    file = tmp_path / "results" / "bench.json"
    assert command.main([*arguments, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def check(result: Any, scenario: str, *names: str) -> dict[str, float]:
    assert set(result) == {"scenario", "machine", "started_at", "config", "metrics", "notes"}
    assert result["scenario"] == scenario
    assert set(result["machine"]) == {"cores", "memory_gb", "os", "python"}
    metrics: dict[str, float] = result["metrics"]
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    assert set(names) <= set(metrics)
    assert metrics.get("lost", 0) == metrics.get("repeated", 0) == metrics.get("reordered", 0) == 0
    assert metrics.get("disconnects", 0) == 0
    return metrics


@pytest.fixture
def there(platform: Platform) -> list[str]:
    """Arguments that mean the tests' own platform."""
    return ["--platform", str(platform.data)]


def test_latency(there: list[str], tmp_path: Path, platform: Platform) -> None:
    result = run(tmp_path, "latency", *there, "--seconds", "1", "--clients", "3", "--rate", "40")
    metrics = check(result, "latency", *STAGES, *CORRECT, "changes_per_s", "deliveries_per_s")
    assert metrics["changes"] == 40
    assert metrics["cpu_percent_gateway"] > 0
    assert result["config"]["clients"] == 3
    with psycopg.connect(platform.postgres_url()) as connection:
        left = connection.execute("SELECT to_regclass('public.cloudsync_bench')").fetchone()
    assert left == (None,)


@pytest.mark.slow
def test_throughput(there: list[str], tmp_path: Path) -> None:
    result = run(tmp_path, "throughput", *there, "--seconds", "1", "--clients", "4", "--rate", "200")
    metrics = check(
        result, "throughput", *STAGES, *CORRECT,
        "offered_changes_per_s", "ceiling_changes_per_s", "deliveries_per_s", "disconnects",
    )  # fmt: skip
    assert metrics["ceiling_changes_per_s"] > 0
    assert result["config"]["rows_per_transaction"] == 5


def test_fanout(there: list[str], tmp_path: Path) -> None:
    result = run(tmp_path, "fanout", *there, "--seconds", "1", "--clients", "30", "--processes", "2")
    metrics = check(result, "fanout", *STAGES, *CORRECT, "deliveries_per_s")
    assert metrics["deliveries_per_s"] > 100


def test_connections(there: list[str], tmp_path: Path) -> None:
    result = run(tmp_path, "connections", *there, "--seconds", "0.3", "--clients", "60", "--processes", "2")
    metrics = check(result, "connections", *CORRECT, "rss_kb_per_connection")
    assert metrics["gateway_rss_after_kb"] > 10_000


def test_write(there: list[str], tmp_path: Path) -> None:
    result = run(tmp_path, "write", *there, "--seconds", "1")
    metrics = check(result, "write", "confirm_p95_ms", "end_to_end_p95_ms", "complete_p95_ms", "lost")
    assert metrics["changes"] == 50
    assert [metrics[name] for name in ("unconfirmed", "lost", "rejected", "repeated")] == [0, 0, 0, 0]


def test_text(there: list[str], tmp_path: Path) -> None:
    result = run(tmp_path, "text", *there, "--seconds", "1")
    metrics = check(
        result, "text", "confirm_p95_ms", "end_to_end_p95_ms", "operations_per_s_1", "operations_per_s_4",
        "stored_per_s_1", "stored_per_s_4", *CORRECT,
    )  # fmt: skip
    assert (metrics["edits"], metrics["diverged"]) == (40, 0)


@pytest.mark.slow
def test_writers(there: list[str], tmp_path: Path) -> None:
    result = run(
        tmp_path, "writers", *there, "--seconds", "1", "--clients", "4", "--scale", "1", "--rounds", "1"
    )
    metrics = check(result, "writers", "commit_ratio", "untracked_commits_per_s", "tracked_commits_per_s")
    assert metrics["commit_ratio"] > 0
    assert metrics["failed"] == 0


@pytest.mark.slow
def test_relay(tmp_path: Path) -> None:
    result = run(tmp_path, "relay", "--events", "3000", "--no-fsync")
    metrics = check(result, "relay", *CORRECT, "changes_per_s", "events_per_cpu_s")
    assert metrics["events"] == 3000
    assert result["config"]["platform"] == "private, fsync off"


@pytest.mark.slow
def test_several_make_a_list(there: list[str], tmp_path: Path) -> None:
    results = run(tmp_path, "fanout", "latency", *there, "--seconds", "0.5", "--clients", "2", "--rate", "20")
    assert [result["scenario"] for result in results] == ["fanout", "latency"]
    for result in results:
        check(result, result["scenario"], *STAGES, *CORRECT)
        assert result["config"]["platform"] == "running"


def test_the_relay_is_measured_on_a_platform_of_its_own(there: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="platform of its own"):
        command.main(["relay", *there])


def test_a_folder_where_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(NotRunning):
        command.main(["latency", "--platform", str(tmp_path)])


def test_an_unknown_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(["speed"])
    assert exit_.value.code == 2
    assert "speed" in capsys.readouterr().err


@pytest.mark.slow
def test_outage(tmp_path: Path) -> None:
    result = run(tmp_path, "outage", "--seconds", "4", "--clients", "2", "--rate", "200", "--no-fsync")
    metrics = check(
        result, "outage", "lost", "sent_again", "commit_p95_ratio", "drained_s", "slot_holds_most_mb"
    )
    assert metrics["parked_most"] > 100


@pytest.mark.slow
def test_return(tmp_path: Path) -> None:
    result = run(tmp_path, "return", "--seconds", "2", "--clients", "200", "--rate", "100", "--no-fsync")
    metrics = check(result, "return", "back_s", "gateway_rss_peak_kb", "lost")
    assert metrics["replayed"] == 200
    upkeep = 20 * (metrics["back_s"] + 2)
    assert metrics["gateway_statements"] < upkeep, "clients cost nothing"
    assert metrics["events_received"] >= 200  # two clients look at each row


def test_what_gateways_ask_is_counted(postgres: EmbeddedPostgres) -> None:
    url = postgres.url()
    with psycopg.connect(url, autocommit=True) as one:
        start = postgres.log.stat().st_size
        with (
            _logged(one),
            psycopg.connect(url, autocommit=True, application_name="cloudsync-gateway") as gateway,
        ):
            gateway.execute("SELECT 1")
            one.execute("SELECT 2")
            eventually(lambda: _statements(postgres.log, start))
        assert _statements(postgres.log, start) == 1
