"""CloudSync in its database: schema, roles, capture of tracked tables, row-level security, upkeep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from psycopg import Connection

from cloudsync.capture import migrations
from cloudsync.doctor.findings import Finding, failure, ok, warning
from cloudsync.errors import MigrationRefused

_ROLES: Final = ("cloudsync_owner", "cloudsync_client", "cloudsync_relay", "cloudsync_service")
_MAINTAINED_WITHIN: Final = "3 hours"  # upkeep runs every hour


def check_schema(conn: Connection[Any]) -> Iterator[Finding]:
    """Whether the database is at this version. Raises psycopg errors."""
    try:
        pending = migrations.plan(conn)
    except MigrationRefused as error:
        yield failure("database.schema", str(error), "Run the release that the database was migrated with.")
        return
    if pending:
        names = ", ".join(migration.name for migration in pending)
        lacking = [each for each in pending if each.phase == "pre"]
        advice = "Deploy the stage `after`: runbooks/deploy.md."
        if lacking:
            advice = "Run `cloudsync migrate --phase pre`."
        make = failure if lacking else warning
        yield make("database.schema", f"Not applied: {names}.", advice)
    else:
        yield ok("database.schema", "Every migration of this version is applied.")


def is_migrated(conn: Connection[Any]) -> bool:
    """Whether there is anything to look at."""
    return conn.execute("SELECT to_regclass('cloudsync.canary')").fetchone() != (None,)


def check_roles(conn: Connection[Any]) -> Iterator[Finding]:
    """Roles with the rights that they need, and none that undo row-level security."""
    roles: dict[str, Any] = {
        name: (superuser, bypasses, login, replicates)
        for name, superuser, bypasses, login, replicates in conn.execute(
            """
            SELECT rolname::text, rolsuper, rolbypassrls, rolcanlogin, rolreplication OR EXISTS (
                       SELECT FROM pg_roles g
                       WHERE g.rolname = 'rds_replication' AND pg_has_role(r.oid, g.oid, 'MEMBER'))
            FROM pg_roles r WHERE rolname = ANY(%s)
            """,
            (list(_ROLES),),
        ).fetchall()
    }
    problems = [f"{name} is missing" for name in _ROLES if name not in roles]
    for name in ("cloudsync_client", "cloudsync_service"):
        superuser, bypasses, _, _ = roles.get(name, (False, False, False, False))
        if superuser or bypasses:
            problems.append(f"{name} bypasses row-level security")
    if roles.get("cloudsync_client", (False, False, False, False))[2]:
        problems.append("cloudsync_client can log in")
    if not roles.get("cloudsync_relay", (False, False, False, True))[3]:
        problems.append("cloudsync_relay may not replicate")
    member = conn.execute(
        "SELECT pg_has_role(s.oid, c.oid, 'MEMBER') FROM pg_roles s, pg_roles c"
        " WHERE s.rolname = 'cloudsync_service' AND c.rolname = 'cloudsync_client'"
    ).fetchone()
    if member == (False,):
        problems.append("cloudsync_service may not act as cloudsync_client")
    if problems:
        yield failure(
            "database.roles", f"{'; '.join(problems)}.",
            "Compare with the head of sql/schema.sql: ALTER ROLE, GRANT.",
        )  # fmt: skip
    else:
        yield ok("database.roles", "Roles have the rights that they need and no more.")


def check_capture(conn: Connection[Any]) -> Iterator[Finding]:
    """Triggers of every tracked table and of its partitions, and those that follow DDL."""
    tables = conn.execute("SELECT count(*) FROM cloudsync.tracked_tables").fetchone() or (0,)
    silent = conn.execute(
        """
        SELECT DISTINCT tree.relid::regclass::text
        FROM cloudsync.tracked_tables t CROSS JOIN LATERAL (
            SELECT t.relid AS relid UNION SELECT p.relid FROM pg_partition_tree(t.relid::regclass) p) tree
        WHERE EXISTS (SELECT FROM pg_class c WHERE c.oid = tree.relid) AND NOT EXISTS (
            SELECT FROM pg_trigger g
            WHERE g.tgrelid = tree.relid AND g.tgname = 'cloudsync_capture' AND g.tgenabled = 'A')
        ORDER BY 1
        """
    ).fetchall()
    if silent:
        yield failure(
            "database.capture",
            f"Changes of {', '.join(name for (name,) in silent)} are not captured: the trigger is missing or"
            " not ENABLE ALWAYS.",
            "ALTER TABLE … ENABLE ALWAYS TRIGGER cloudsync_capture, or track the table again; then"
            " `cloudsync touch` the rows that changed meanwhile.",
        )
    else:
        yield ok("database.capture", f"{tables[0]} tracked tables are captured.")
    following = conn.execute(
        "SELECT count(*) FROM pg_event_trigger WHERE evtname IN"
        " ('cloudsync_ddl', 'cloudsync_drop', 'cloudsync_rewrite') AND evtenabled = 'A'"
    ).fetchone()
    if following != (3,):
        yield failure(
            "database.ddl",
            "Capture does not follow DDL: an event trigger is missing or not ENABLE ALWAYS.",
            "ALTER EVENT TRIGGER cloudsync_ddl ENABLE ALWAYS; the same for _drop and _rewrite.",
        )
    else:
        yield ok("database.ddl", "Capture follows DDL.")


def check_row_security(conn: Connection[Any]) -> Iterator[Finding]:
    """Clients read through policies alone."""
    open_tables = conn.execute(
        """
        SELECT c.oid::regclass::text FROM cloudsync.tracked_tables t JOIN pg_class c ON c.oid = t.relid
        WHERE NOT c.relrowsecurity OR NOT EXISTS (
            SELECT FROM pg_policy p
            WHERE p.polrelid = c.oid AND p.polname = 'cloudsync_client' AND NOT p.polpermissive)
        ORDER BY 1
        """
    ).fetchall()
    if open_tables:
        names = ", ".join(name for (name,) in open_tables)
        yield failure(
            "database.row_security", f"Nothing keeps clients from rows of {names} that are not theirs.",
            f"Now: REVOKE ALL ON {names} FROM cloudsync_client; then track again.",
        )  # fmt: skip
    else:
        yield ok("database.row_security", "Every tracked table has its policies.")


def check_upkeep(conn: Connection[Any]) -> Iterator[Finding]:
    """Partitions ahead of time, and nothing lost."""
    late = conn.execute(
        "SELECT coalesce(maintained_at < now() - %s::interval, true) FROM cloudsync.retention",
        (_MAINTAINED_WITHIN,),
    ).fetchone()
    if late == (True,):
        yield warning(
            "database.upkeep",
            f"Upkeep has not run for {_MAINTAINED_WITHIN}: old data stays, partitions run out.",
            "See that beat and the general worker run; once by hand: SELECT cloudsync.maintain().",
        )  # fmt: skip
    else:
        yield ok("database.upkeep", "Partitions are made ahead and dropped behind.")
    lost = conn.execute(
        "SELECT count(*) FROM cloudsync.losses WHERE seen_at > now() - interval '1 day'"
    ).fetchone() or (0,)
    if lost[0]:
        yield failure(
            "database.losses", f"{lost[0]} losses were seen in the last day.", "See runbooks/events-lost.md."
        )
    else:
        yield ok("database.losses", "No change was lost in the last day.")
