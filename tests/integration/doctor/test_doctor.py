"""The doctor on environments that are broken one way each: it names the fault, and what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import redis
from rich.console import Console

from cloudsync.dev.platform import Platform
from cloudsync.dev.postgres import EmbeddedPostgres
from cloudsync.doctor import servers
from cloudsync.doctor.command import examine, report
from cloudsync.doctor.findings import Finding
from cloudsync.feeds.keys import epoch_key
from waiting import eventually

_ROOT = Path(__file__).parents[3]


def by_subject(postgres_url: str, redis_url: str, **more: str) -> dict[str, Finding]:
    found = list(examine(postgres_url=postgres_url, redis_url=redis_url, **{"slot": "cloudsync"} | more))
    for finding in found:
        assert finding.text.endswith("."), finding
        assert bool(finding.advice) == (finding.state != "ok"), finding
        for page in re.findall(r"[\w/-]+\.md", finding.advice):
            assert (_ROOT / page).exists(), finding
    return {finding.subject: finding for finding in found}


def run(database: str, *statements: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def tracked(database: str) -> str:
    """A database that is as it must be, with a tracked and partitioned table; no process has run."""
    run(
        database,
        "CREATE TABLE t (id int, tenant_id text, PRIMARY KEY (id, tenant_id)) PARTITION BY LIST (tenant_id)",
        "CREATE TABLE t_rest PARTITION OF t DEFAULT",
        "SELECT cloudsync.track('t')",
        "SELECT cloudsync.maintain()",
    )
    return database


def test_a_database_without_processes(tracked: str, redis_url: str) -> None:
    found = by_subject(tracked, redis_url)
    wrong = {name for name, finding in found.items() if finding.state == "failure"}
    assert wrong == {"relay.slot", "relay.state"}
    assert found["database.capture"].text == "1 tracked tables are captured."


def relay_state(age: str = "0 s", mode: str = "live") -> str:
    return (
        "INSERT INTO cloudsync.relay_state"
        " (database_id, system_identifier, timeline, slot_name, heartbeat_at, mode, epoch)"
        f" VALUES ('db1', '1', 1, 'cloudsync', clock_timestamp() - interval '{age}', '{mode}', 'e1')"
    )


@pytest.mark.parametrize(
    ("statement", "subject", "state"),
    [
        ("ALTER TABLE t_rest DISABLE TRIGGER cloudsync_capture", "database.capture", "failure"),
        ("ALTER TABLE t_rest ENABLE TRIGGER cloudsync_capture", "database.capture", "failure"),
        ("DROP POLICY cloudsync_client ON t", "database.row_security", "failure"),
        ("ALTER EVENT TRIGGER cloudsync_ddl DISABLE", "database.ddl", "failure"),
        (
            "UPDATE cloudsync.retention SET maintained_at = now() - interval '5 hours'",
            "database.upkeep",
            "warning",
        ),
        (
            "INSERT INTO cloudsync.losses (seen_by, process, events, detail) VALUES ('canary', 'g', 1, '{}')",
            "database.losses",
            "failure",
        ),
        ("DELETE FROM cloudsync.migrations", "database.schema", "failure"),
        ("UPDATE cloudsync.migrations SET digest = 'x'", "database.schema", "failure"),
        (relay_state(age="50 s"), "relay.state", "failure"),
        (relay_state(mode="parked"), "relay.state", "warning"),
        (relay_state(mode="fenced"), "relay.state", "failure"),
        (relay_state(), "queue.epoch", "failure"),
        (
            "INSERT INTO cloudsync.pending_events (lsn, ordinal, shard, event) VALUES ('0/1', 1, 1, 'x')",
            "relay.parked",
            "warning",
        ),
    ],
)
def test_a_fault_of_the_database_is_named(
    tracked: str, redis_url: str, statement: str, subject: str, state: str
) -> None:
    before = by_subject(tracked, redis_url)
    assert subject not in before or before[subject].state in ("ok", "failure")
    # As it would come about: past our own triggers on DDL, which refuse some of these.
    run(tracked, "ALTER EVENT TRIGGER cloudsync_ddl DISABLE", "ALTER EVENT TRIGGER cloudsync_drop DISABLE")
    run(tracked, statement)
    if subject != "database.ddl":
        run(
            tracked,
            "ALTER EVENT TRIGGER cloudsync_ddl ENABLE ALWAYS",
            "ALTER EVENT TRIGGER cloudsync_drop ENABLE ALWAYS",
        )
    found = by_subject(tracked, redis_url)
    assert found[subject].state == state
    other_failures = {
        name
        for name, finding in found.items()
        if finding.state == "failure" and name not in (subject, "relay.slot", "relay.state", "queue.epoch")
    }
    assert other_failures <= {"database.ddl"}


def test_roles_with_too_much_or_too_little(tracked: str, redis_url: str) -> None:
    breakages: list[tuple[str, str, str]] = [
        ("cloudsync_client BYPASSRLS", "cloudsync_client NOBYPASSRLS", "bypasses row-level security"),
        ("cloudsync_client LOGIN", "cloudsync_client NOLOGIN", "can log in"),
        ("cloudsync_relay NOREPLICATION", "cloudsync_relay REPLICATION", "may not replicate"),
    ]
    for broken, mended, said in breakages:
        run(tracked, f"ALTER ROLE {broken}")
        try:
            finding = by_subject(tracked, redis_url)["database.roles"]
        finally:
            run(tracked, f"ALTER ROLE {mended}")
        assert finding.state == "failure"
        assert said in finding.text
    assert by_subject(tracked, redis_url)["database.roles"].state == "ok"


def test_a_database_that_was_never_migrated(postgres: EmbeddedPostgres, redis_url: str) -> None:
    found = by_subject(postgres.url(), redis_url)
    assert found["database.schema"].state == "failure"
    assert "cloudsync migrate" in found["database.schema"].advice
    assert "database.capture" not in found


def test_redis_that_evicts_or_is_full(tracked: str, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as server:
        server.config_set("maxmemory-policy", "allkeys-lru")
        server.config_set("maxmemory", str(64 * 1024))
        try:
            found = by_subject(tracked, redis_url)
        finally:
            server.config_set("maxmemory", "0")
            server.config_set("maxmemory-policy", "noeviction")
    assert found["redis.events.policy"].state == "failure"
    assert found["redis.events.memory"].state == "failure"


def test_servers_that_are_away_do_not_hide_one_another(tracked: str, redis_url: str) -> None:
    found = by_subject("postgresql://x@127.0.0.1:1/x", redis_url, broker_url="redis://127.0.0.1:1/0")
    assert found["postgres.reach"].state == "failure"
    assert found["redis.broker.reach"].state == "failure"
    assert found["redis.events.policy"].state == "ok"
    found = by_subject(tracked, "redis://127.0.0.1:1/0", api_url="http://127.0.0.1:1")
    assert found["redis.events.reach"].state == "failure"
    assert found["database.schema"].state == "ok"
    assert found["api.ready"].state == "failure"


def test_clocks_and_connections_in_the_clear(
    tracked: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = servers.time.time
    for skew_s, state in ((-1.0, "warning"), (60.0, "failure")):
        monkeypatch.setattr(servers.time, "time", lambda skew_s=skew_s: real() + skew_s)
        found = by_subject(tracked, redis_url)
        assert found["postgres.clock"].state == found["redis.events.clock"].state == state
    monkeypatch.undo()
    assert servers._encryption("x", "Redis", False, "redis.example.com").state == "failure"
    assert servers._encryption("x", "Redis", True, "redis.example.com").state == "ok"
    for here in ("", "/run/postgresql", "localhost", "127.0.0.1", "::1"):
        assert servers._encryption("x", "PostgreSQL", False, here).state == "ok"


def test_a_server_that_cannot_stream(tmp_path: Path, redis_url: str) -> None:
    settings = {"wal_level": "replica", "max_slot_wal_keep_size": "-1", "transaction_timeout": "0"}
    with EmbeddedPostgres(tmp_path / "plain", durable=False, settings=settings) as server:
        found = by_subject(server.url(), redis_url)
    assert found["postgres.wal_level"].state == "failure"
    assert found["postgres.slot_limit"].state == found["postgres.timeouts"].state == "warning"


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "cloudsync", "doctor", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_a_running_platform_is_well(platform: Platform, redis_url: str) -> None:
    environment = {
        **platform.environment("gateway"),
        "CLOUDSYNC_POSTGRES_URL": platform.postgres_url(),
        "CLOUDSYNC_API_URL": platform.api_url,
    }

    def well() -> bool:  # its first upkeep may still be running
        return command(environment).returncode == 0

    eventually(well, 30)
    answered = command(environment, "--json")
    states = {each["subject"]: each["state"] for each in json.loads(answered.stdout)}
    assert "failure" not in states.values()
    for subject in (
        "relay.slot",
        "relay.state",
        "queue.epoch",
        "queue.backlog",
        "queue.gateways",
        "api.ready",
    ):
        assert states[subject] == "ok", answered.stdout
    shown = command(environment, "--all").stdout
    assert "The relay is live." in shown
    assert "0 broken." in shown

    # Another Redis than the platform's own: the exit status says so, and the advice what to do.
    elsewhere = command({**environment, "CLOUDSYNC_REDIS_EVENTS_URL": redis_url})
    assert elsewhere.returncode == 1
    assert "does not have the epoch" in " ".join(elsewhere.stdout.split())
    assert "runbooks/redis-unavailable.md" in elsewhere.stdout
    with redis.Redis.from_url(redis_url) as server:
        assert not server.keys(epoch_key("*")), "the doctor changes nothing"


def test_where_all_is_well_nothing_stands_before_that(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [Finding("relay", "ok", "The relay is live.", "")]
    assert report(findings, Console(), as_json=False, all_of_them=False) == 0
    assert capsys.readouterr().out == "1 in order, 0 to be looked at, 0 broken.\n"


def test_without_an_environment_it_says_what_it_needs(tmp_path: Path) -> None:
    answered = command({}, "--data", str(tmp_path))
    assert answered.returncode == 1
    assert "[not_running]" in answered.stderr
