"""Who a bearer token speaks for. Algorithms are an allow-list; HS256 exists in development mode alone."""

from __future__ import annotations

import json
import time
from typing import Any, Final

import jwt
import msgspec

from cloudsync.errors import KeysUnreachable, TokenRefused
from cloudsync.settings import Settings

RESERVED_TENANT: Final = "cloudsync:canary"
"""Of rows that the platform writes to watch itself; no token speaks for it."""
KEYS_KEPT_S: Final = 3600
"""So long are keys trusted that could not be fetched anew."""
_RETRY_AFTER_S: Final = 10
_UNREACHABLE: Final = (jwt.PyJWKClientConnectionError, OSError, json.JSONDecodeError)


class Principal(msgspec.Struct, frozen=True, gc=False):
    """A verified user of a tenant, until the token expires (seconds since 1970)."""

    tenant: str
    user: str
    expires_at: int


class _KeySource(jwt.PyJWKClient):
    """The published keys; those fetched last go on counting for an hour when they cannot be fetched.

    No longer: whoever takes a key out of the set wants its tokens refused, and must not be kept from it for
    ever by making the set unreachable.
    """

    _kept: jwt.PyJWKSet | None = None
    _kept_since_s = 0.0
    _retry_s = 0.0

    def get_jwk_set(self, refresh: bool = False) -> jwt.PyJWKSet:
        now_s = time.monotonic()
        kept = self._kept if now_s - self._kept_since_s < KEYS_KEPT_S else None
        try:
            if kept is not None and now_s < self._retry_s:
                # It failed just now: not every connection shall wait for the time-out, one behind the other.
                raise jwt.PyJWKClientConnectionError
            found = super().get_jwk_set(refresh)
        except _UNREACHABLE:
            if now_s >= self._retry_s:
                self._retry_s = now_s + _RETRY_AFTER_S
            if kept is None or refresh:
                raise
            return kept
        if found is not self._kept:
            self._kept, self._kept_since_s = found, now_s
        return found


class TokenVerifier:
    """Verifies tokens against the platform's keys: JWKS in a deployment, a shared secret in development."""

    def __init__(self, settings: Settings) -> None:
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._tenant_claim = settings.jwt_tenant_claim
        self._leeway_s = settings.jwt_leeway_s
        self._secret = settings.jwt_secret if settings.mode == "development" else ""
        self._jwks = (
            # The library's cache of single keys has no expiry: a key taken out of the set would live on.
            _KeySource(settings.jwks_url, cache_keys=False, lifespan=300, timeout=5)
            if settings.jwks_url
            else None
        )
        if not self._secret and self._jwks is None:
            settings.require("jwks_url")

    @property
    def blocking(self) -> bool:
        """Whether `verify` may fetch keys over the network: then call it in a thread."""
        return self._jwks is not None

    def verify(self, token: str) -> Principal:
        """The token's principal.

        Raises TokenRefused with a sentence that is safe to show; its kind KeysUnreachable says nothing
        about the token, only that it could not be checked.
        """
        if not token:
            raise TokenRefused("No token was sent: put it in the Authorization header as `Bearer …`.")
        try:
            key, algorithms = self._key_for(token)
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=algorithms,
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_s,
                options={
                    "require": ["exp", "aud", "iss", "sub", self._tenant_claim],
                    # `exp` ends a token and `nbf` begins it. A fresh one's `iat` is ahead of every clock
                    # that is slow: refusing it would lock everybody out (RFC 7519 asks for no such check).
                    "verify_iat": False,
                },
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefused("The token has expired.", hint="Ask for a new one.") from None
        except jwt.MissingRequiredClaimError as error:
            raise TokenRefused(f"The token lacks the claim `{error.claim}`.") from None
        except jwt.InvalidAudienceError:
            raise TokenRefused("The token is for another audience.") from None
        except jwt.InvalidIssuerError:
            raise TokenRefused("The token comes from another issuer.") from None
        except (jwt.PyJWTError, ValueError):
            raise TokenRefused("The token is not valid here.") from None
        tenant, user = claims[self._tenant_claim], claims["sub"]
        if not (
            isinstance(tenant, str)
            and isinstance(user, str)
            and 0 < len(tenant) <= 200
            and 0 < len(user) <= 200
        ):
            raise TokenRefused(f"`sub` and `{self._tenant_claim}` must be texts of 1 to 200 characters.")
        if tenant == RESERVED_TENANT:
            raise TokenRefused(f"The tenant {RESERVED_TENANT!r} is the platform's own.")
        if "\x00" in tenant or "\x00" in user:
            raise TokenRefused(f"`sub` and `{self._tenant_claim}` must not hold a zero character.")
        return Principal(tenant, user, int(claims["exp"]))

    def _key_for(self, token: str) -> tuple[Any, list[str]]:
        if self._jwks is not None and not (
            self._secret and jwt.get_unverified_header(token).get("alg") == "HS256"
        ):
            key_id = jwt.get_unverified_header(token).get("kid")
            try:
                key = self._jwks.get_signing_key(key_id or "")
            except _UNREACHABLE:
                raise KeysUnreachable(hint="Try again.") from None
            return key.key, ["RS256", "ES256"]
        return self._secret, ["HS256"]


def development_token(settings: Settings, *, tenant: str, user: str, lifetime_s: int = 12 * 3600) -> str:
    """A token signed with the development secret. Raises TokenRefused outside development mode."""
    if settings.mode != "development" or not settings.jwt_secret:
        raise TokenRefused("Development tokens exist in development mode only.")
    now = int(time.time())
    claims = {
        "sub": user,
        settings.jwt_tenant_claim: tenant,
        "iss": settings.jwt_issuer,
        "aud": settings.jwt_audience,
        "iat": now,
        "exp": now + lifetime_s,
    }
    return jwt.encode(claims, settings.jwt_secret, algorithm="HS256")
