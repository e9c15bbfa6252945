"""The platform that is verified: how to reach it, and how to be any user of the scratch tenants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cloudsync.verify.ledger import User


class Fault(NamedTuple):
    """Something that breaks; `strike` returns when what was broken runs again. It may block."""

    name: str
    strike: Callable[[], object]


class Target(NamedTuple):
    """`token(user, lifetime_s)` may block. Rows belong to `tenants`; `users` are those who can sign in."""

    postgres_url: str
    api_url: str
    token: Callable[[User, int], str]
    tenants: tuple[str, str]
    users: Sequence[User]
    faults: Sequence[Fault] = ()
    token_lifetime_s: int = 3600
