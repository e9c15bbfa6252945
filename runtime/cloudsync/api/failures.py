"""Errors as answers: `{"error": {"code", "message"}}` with a registered code and nothing internal."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import psycopg
import redis.exceptions
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg_pool import PoolTimeout
from starlette.exceptions import HTTPException

from cloudsync import logs
from cloudsync.api.bodies import ErrorBody
from cloudsync.errors import CloudSyncError
from cloudsync.metrics.definitions import CLIENT_ERRORS
from cloudsync.metrics.recorder import recorder
from cloudsync.protocol.codes import ERROR_MEANINGS

_STATUS: Final = {
    "bad_request": 422,
    "bad_token": 401,
    "bad_value": 422,
    "conflict_changed": 409,
    "conflict_resolved": 409,
    "forbidden": 403,
    "internal": 500,
    "limit_reached": 409,
    "method_not_allowed": 405,
    "not_found": 404,
    "tenant_disabled": 403,
    "too_large": 413,
    "unavailable": 503,
    "unknown_conflict": 404,
    "unknown_table": 404,
}
_CODE_OF_STATUS: Final = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
_HEADERS: Final = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}
_log = logs.get("api")


def answer(code: str, message: str | None = None, **more: Any) -> JSONResponse:
    """The answer for a registered code; without a message, the registry's own."""
    status = _STATUS.get(code, 400)
    recorder.counter(CLIENT_ERRORS, code=code).add()
    body = {"error": {"code": code, "message": message or ERROR_MEANINGS[code]}, **more}
    return JSONResponse(body, status_code=status, headers=_HEADERS.get(status))


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for OpenAPI."""
    return {_STATUS[code]: {"model": ErrorBody, "description": ERROR_MEANINGS[code]} for code in codes}


def install(app: FastAPI) -> None:
    """Give `app` an answer for every kind of failure."""
    app.add_exception_handler(CloudSyncError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for kind in (PoolTimeout, psycopg.OperationalError, redis.exceptions.RedisError, TimeoutError):
        app.add_exception_handler(kind, _unavailable)
    # Not migrated yet, or no rights: the operator's matter, not the caller's.
    app.add_exception_handler(psycopg.ProgrammingError, _unavailable)


async def _refused(_: Request, error: Any) -> JSONResponse:
    if error.code not in ERROR_MEANINGS:
        _log.error("request failed", error=error.code, reason=str(error))
        return answer("internal")
    return answer(error.code, str(error))


async def _invalid(_: Request, error: Any) -> JSONResponse:
    problems = [
        ".".join(str(part) for part in problem["loc"][1:] if isinstance(part, str)) + ": " + problem["msg"]
        for problem in error.errors()
        if problem["type"] != "json_invalid"
    ]
    text = "; ".join(problem.removeprefix(": ") for problem in problems)[:500]
    return answer("bad_request", f"{text}." if text else "The body is not JSON.")


async def _http(_: Request, error: Any) -> JSONResponse:
    if error.status_code == 400:
        return answer("bad_request", "The body cannot be read as JSON.")
    response = answer(_CODE_OF_STATUS.get(error.status_code, "bad_request"))
    response.status_code = error.status_code
    response.headers.update(error.headers or {})
    return response


async def _unavailable(request: Request, error: Exception) -> JSONResponse:
    # The text of a driver's error may hold addresses: it goes to the log, never to the caller.
    _log.warning("service unavailable", path=request.url.path, reason=_reason(error))
    return answer("unavailable")


def _reason(error: Exception) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "timeout"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
