"""What clients must hold, according to PostgreSQL under their rights, and the rights once more in Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection, sql

from cloudsync.verify.ledger import User
from cloudsync.verify.scratch import RightMissing, Scratch
from cloudsync.verify.tables import Table

Rows = dict[str, tuple[dict[str, Any], int]]
"""Key (a JSON array as text) → row and version."""


class Question(NamedTuple):
    """The rows of a table that a user sees under a condition."""

    user: User
    table: int
    condition: sql.Composable


class Truth:
    """One connection that reads as any user. Use it with `async with`."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._connection: AsyncConnection[Any] | None = None

    async def __aenter__(self) -> Truth:
        self._connection = await AsyncConnection.connect(
            self._scratch.url,
            autocommit=True,
            options="-c TimeZone=UTC -c DateStyle=ISO,YMD -c IntervalStyle=iso_8601",
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def rows(self, questions: Sequence[Question]) -> list[Rows]:
        """Answers in order, each under the user's own rights. Raises RightMissing."""
        connection = self._opened
        answers = []
        assumed: User | None = None
        try:
            async with connection.transaction():
                await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                await connection.execute("SET LOCAL ROLE cloudsync_client")
                for question in questions:
                    if question.user != assumed:
                        assumed = question.user
                        await connection.execute(
                            "SELECT set_config('app.tenant_id', %s, true),"
                            " set_config('app.user_id', %s, true)",
                            tuple(assumed),
                        )
                    answers.append(await self._answer(question))
        except psycopg.errors.InsufficientPrivilege as error:
            raise RightMissing(
                f"The role of the PostgreSQL URL may not read as clients do: {error.diag.message_primary}.",
                hint="GRANT cloudsync_client TO it, or use the role that migrates.",
            ) from None
        return answers

    async def _answer(self, question: Question) -> Rows:
        table = self._scratch.tables[question.table]
        tracked = self._scratch.tracked[question.table]
        query = sql.SQL(
            "SELECT ({key})::text, ({row})::text, coalesce((SELECT s.version FROM cloudsync.row_state s"
            " WHERE s.table_id = {table_id} AND s.key = ({key_text})), 0) FROM {table} t WHERE {condition}"
        ).format(
            key=table.json_key(),
            row=table.json_row(),
            table_id=sql.Literal(tracked.table_id),
            key_text=sql.SQL(tracked.key_text_expression.replace("{row}", "t")),
            table=table.identifier,
            condition=question.condition,
        )
        cursor = await self._opened.execute(query)
        return {
            json.dumps(json.loads(key), ensure_ascii=False): (comparable(table, json.loads(row)), version)
            for key, row, version in await cursor.fetchall()
        }

    async def distrust(self, users: Sequence[User]) -> list[str]:
        """Where row-level security differs from the rule that a table was tracked with."""
        findings = []
        members, everything = await self._unfiltered()
        for number, table in enumerate(self._scratch.tables):
            answers = await self.rows([Question(user, number, sql.SQL("true")) for user in users])
            for user, shown in zip(users, answers, strict=True):
                allowed = {
                    key for key, row in everything[number].items() if _allowed(table, user, row, members)
                }
                for key in allowed ^ shown.keys():
                    verb = "hides" if key in allowed else "shows"
                    findings.append(
                        f"row-level security {verb} {table.name} {key}: user {user.user} of {user.tenant}"
                    )
        return findings

    async def _unfiltered(self) -> tuple[set[tuple[int, str]], list[dict[str, dict[str, Any]]]]:
        connection = self._opened
        schema = self._scratch.schema
        async with connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor = await connection.execute(
                sql.SQL("SELECT room, person FROM {}").format(sql.Identifier(schema, "members"))
            )
            members = set(await cursor.fetchall())
            everything = []
            for table in self._scratch.tables:
                cursor = await connection.execute(
                    sql.SQL("SELECT {}::text, tenant_id, owner::text, room FROM {}").format(
                        table.json_key(), table.identifier
                    )
                )
                everything.append(
                    {
                        json.dumps(json.loads(key), ensure_ascii=False): {
                            "tenant": tenant, "owner": owner, "room": room
                        }
                        for key, tenant, owner, room in await cursor.fetchall()
                    }
                )  # fmt: skip
        return members, everything

    @property
    def _opened(self) -> AsyncConnection[Any]:
        assert self._connection is not None  # noqa: S101 - entered
        return self._connection


def comparable(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """A row with every value as its kind compares it."""
    kinds = {column.name: column.kind for column in table.columns}
    return {name: kinds[name].comparable(value) if name in kinds else value for name, value in row.items()}


def _allowed(table: Table, user: User, row: dict[str, Any], members: set[tuple[int, str]]) -> bool:
    """The rule of `Shape.readers`, for a row as it is now."""
    shape = table.shape
    tenant = row["tenant"] if shape.tenant_column else table.tenants[0]
    if tenant != user.tenant:
        return False
    if shape.readers == "tenant" or (shape.by_members and row["room"] is None):
        return True
    if shape.by_owner and row["owner"] == user.user:
        return True
    return shape.by_members and (row["room"], user.user) in members
