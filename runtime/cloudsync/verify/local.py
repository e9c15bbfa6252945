"""A platform of this machine as a target, with everything that can break on it."""

from __future__ import annotations

from cloudsync.dev.faults import Faults
from cloudsync.dev.platform import Platform
from cloudsync.verify.ledger import User
from cloudsync.verify.program import USERS
from cloudsync.verify.target import Fault, Target

_TENANTS = ("oracle-a", "oracle-b")


def target_of(platform: Platform) -> Target:
    """The platform with two tenants of its own; development tokens."""
    return Target(
        postgres_url=platform.postgres_url(),
        api_url=platform.api_url,
        token=lambda user, lifetime_s: platform.token(user.tenant, user.user, lifetime_s=lifetime_s),
        tenants=_TENANTS,
        users=[User(_TENANTS[tenant], user) for tenant, user in USERS],
        faults=faults_of(platform),
    )


def faults_of(platform: Platform) -> list[Fault]:
    """Kills of every process and losses in Redis, the mild ones first."""
    faults = Faults(platform)
    names = platform.processes
    found = [
        Fault("connections to Redis cut", faults.cut_redis_connections),
        Fault("sessions in PostgreSQL ended", faults.cut_postgres_connections),
        *(
            Fault(f"child of {name} killed", lambda name=name: faults.kill_child(name))  # type: ignore[misc]
            for name in names
            if name in ("routing", "general")
        ),
        *(
            Fault(f"{name} killed", lambda name=name: faults.kill(name))  # type: ignore[misc]
            for name in names
            if name not in ("postgres", "valkey")
        ),
        Fault("Redis flushed", faults.flush_redis),
    ]
    if "valkey" in names:
        found.append(Fault("Redis killed", lambda: faults.kill("valkey")))
    return found
