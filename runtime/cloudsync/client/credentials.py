"""The token that a client shows, and how it gets a new one."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
from collections.abc import Awaitable, Callable
from typing import Any

from cloudsync.client.errors import TokenCallbackFailed
from cloudsync.errors import CloudSyncError, TokenRefused

TokenCallback = Callable[[], str | Awaitable[str]]


class Credentials:
    """A fixed token, or one that a callback hands out as often as it is asked."""

    def __init__(self, token: str | TokenCallback) -> None:
        """Raises TokenRefused if it is neither."""
        if not isinstance(token, str) and not callable(token):
            raise TokenRefused("A token is a text, or a function that returns one.")
        self._callback = None if isinstance(token, str) else token
        self._token = _checked(token) if isinstance(token, str) else None
        self.fresh = False
        """Whether the token was made for the present attempt, so that its refusal is final."""

    @property
    def renewable(self) -> bool:
        return self._callback is not None

    async def current(self) -> str:
        if self._token is None:
            return await self.renew()
        self.fresh = self._callback is None
        return self._token

    async def renew(self) -> str:
        """A new token from the callback. Raises TokenCallbackFailed, or the CloudSyncError that it raised."""
        if self._callback is None:
            assert self._token is not None  # noqa: S101
            return self._token
        try:
            answer: Any
            if inspect.iscoroutinefunction(self._callback):
                answer = self._callback()
            else:
                answer = await asyncio.to_thread(self._callback)  # it may well block on the network
            token = await answer if inspect.isawaitable(answer) else answer
        except CloudSyncError:
            raise
        except Exception as error:
            raise TokenCallbackFailed(f"The token callback failed: {type(error).__name__}.") from error
        self._token = _checked(token)
        self.fresh = True
        return self._token

    def reject(self) -> None:
        """The token was refused or has expired: ask for another one next time."""
        if self._callback is not None:
            self._token = None


def user_of(token: str) -> str | None:
    """The user that a JWT names, unverified: the server decides, this only tells stores apart."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        payload = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None
    subject = payload.get("sub") if isinstance(payload, dict) else None
    return subject if isinstance(subject, str) else None


def _checked(token: object) -> str:
    text = token.strip() if isinstance(token, str) else ""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise TokenRefused("The token must be a text of printable ASCII characters without blanks.")
    return text
