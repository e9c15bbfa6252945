"""The client's calls of the HTTP API."""

from __future__ import annotations

import ipaddress
import ssl
from typing import Any
from urllib.parse import urlsplit

import httpx

from cloudsync.client import errors
from cloudsync.errors import ConfigurationError, TokenRefused

_TIMEOUT_S = 5.0


class TemporarilyUnavailable(errors.Unreachable):
    """The API does not answer right now."""


class Rest:
    """The API at `url`. Every call raises TemporarilyUnavailable, or the error that the API names."""

    def __init__(self, url: str, *, ssl_context: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"{url!r} is not the URL of an API: it starts with http:// or https://.")
        self.secure = parts.scheme == "https"
        self.url = url.rstrip("/")
        self._verify: Any = (ssl_context or True) if self.secure else False
        self._trust_env = not is_loopback(parts.hostname)

    async def endpoint(self, token: str) -> str:
        """The WebSocket URL of the token's user."""
        url = (await self._call("GET", "/v1/endpoint", token)).get("url")
        if not isinstance(url, str) or urlsplit(url).scheme not in ("ws", "wss"):
            raise errors.ProtocolBroken("The API did not name an endpoint to connect to.")
        if self.secure and urlsplit(url).scheme != "wss":
            raise errors.ProtocolBroken(
                "The API named an endpoint without TLS: the token would travel in clear."
            )
        return url

    async def register(
        self, token: str, *, name: str | None, platform: str | None, ephemeral: bool = False
    ) -> str:
        """A new client id of the token's user; `ephemeral`: its process keeps nothing beyond its end."""
        wanted = {"name": name, "platform": platform, "ephemeral": ephemeral}
        answer = await self._call("POST", "/v1/clients", token, wanted)
        return str(answer["client_id"])

    async def revoke(self, token: str, client_id: str) -> None:
        """End one of the token's user's clients for good."""
        await self._call("DELETE", f"/v1/clients/{client_id}", token)

    async def development_token(self, *, tenant: str, user: str) -> str:
        """A token of any user; only where the platform runs in development mode."""
        answer = await self._call("POST", "/v1/dev/token", None, {"tenant": tenant, "user": user})
        return str(answer["token"])

    async def _call(
        self, method: str, path: str, token: str | None, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        try:
            async with httpx.AsyncClient(
                timeout=_TIMEOUT_S, verify=self._verify, trust_env=self._trust_env
            ) as client:
                response = await client.request(method, self.url + path, headers=headers, json=body)
        except httpx.HTTPError as error:
            raise TemporarilyUnavailable(
                f"{self.url} does not answer: {str(error).rstrip('.') or type(error).__name__}."
            ) from None
        except (httpx.InvalidURL, UnicodeError):
            raise TokenRefused("The token or the URL holds characters that cannot be sent.") from None
        return _read(response, f"{self.url}{path}")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: then no proxy has a place in between."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(response: httpx.Response, where: str) -> dict[str, Any]:
    if response.status_code == 204:
        return {}
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_success and isinstance(body, dict):
        return body
    told = body.get("error") if isinstance(body, dict) else None
    code, message = (told.get("code"), told.get("message")) if isinstance(told, dict) else (None, None)
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise TemporarilyUnavailable(message or f"{where} answered {response.status_code}.")
    if response.status_code == 401:
        raise TokenRefused(message)
    if code is None or response.status_code == 404:
        raise errors.ProtocolBroken(f"{where} is not a CloudSync API: it answered {response.status_code}.")
    raise errors.from_code(str(code), str(message))
