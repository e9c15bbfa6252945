"""Why a change is not applied: PostgreSQL's reasons as registered codes and sentences of our own.

The sentences name the table's own columns and rules. They repeat no values but what the client sent: a
driver's message may hold another user's.
"""

from __future__ import annotations

import psycopg
from psycopg import errors

from cloudsync.errors import RequestError


class ChangeRefused(RequestError):
    """The change is not applied and will not be."""

    def __init__(self, code: str = RequestError.code, message: str | None = None) -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]  # one of the registered codes


class TryAgain(Exception):
    """The change was neither applied nor refused: a lock, a lost connection, a table being altered."""


_MESSAGE_LIMIT = 300


def refusal_of(error: psycopg.Error, table: str) -> ChangeRefused | None:
    """What to tell the client; None if the same change may pass later, or the server is at fault."""
    diag = error.diag
    if diag.sqlstate == "CS011":
        return ChangeRefused("bad_operation", "The operation reaches beyond the text.")
    if diag.sqlstate == "CS012":
        return ChangeRefused("too_large", "The text would be longer than the server takes.")
    rule = f" ({diag.constraint_name})" if diag.constraint_name else ""
    match error:
        case errors.UniqueViolation() | errors.ExclusionViolation():
            return ChangeRefused("not_unique", f"Another row of {table} has what must be unique{rule}.")
        case errors.NotNullViolation():
            return ChangeRefused("constraint_violated", f"{table}.{diag.column_name} must have a value.")
        case errors.ForeignKeyViolation():
            return ChangeRefused("constraint_violated", f"The change breaks a reference of {table}{rule}.")
        case errors.IntegrityError():
            return ChangeRefused("constraint_violated", f"The change breaks a rule of {table}{rule}.")
        case errors.GeneratedAlways():
            return ChangeRefused("generated_column", f"PostgreSQL computes a column of {table} by itself.")
        case errors.InsufficientPrivilege():
            return ChangeRefused("forbidden", f"You may not write such a row to {table}.")
        case errors.RaiseException():
            # Written by the application for whoever writes.
            return ChangeRefused("refused", (diag.message_primary or "Refused.")[:_MESSAGE_LIMIT])
        case (
            errors.PlpgsqlError() | errors.NoDataFound() | errors.TooManyRows() | errors.AssertFailure()
            | errors.CardinalityViolation() | errors.TriggeredDataChangeViolation()
        ):  # fmt: skip
            return ChangeRefused("refused", f"A trigger of {table} refused the change.")
        case errors.ProgramLimitExceeded() | errors.StatementTooComplex():
            return ChangeRefused("too_large", f"The row is larger than {table} can hold.")
        case psycopg.DataError():
            return ChangeRefused("bad_value", f"A value does not fit its column in {table}.")
    if _is_the_applications(diag.sqlstate):
        return ChangeRefused("refused", (diag.message_primary or "Refused.")[:_MESSAGE_LIMIT])
    return None


def _is_the_applications(sqlstate: str | None) -> bool:
    """Whether a code is none of PostgreSQL's, nor ours: an application's RAISE … USING ERRCODE."""
    if sqlstate is None or sqlstate.startswith("CS"):
        return False
    try:
        errors.lookup(sqlstate)
    except KeyError:
        return True
    return False
