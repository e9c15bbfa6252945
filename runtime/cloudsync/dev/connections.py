"""Which servers a command means: those given to it, those of the environment, or those of the folder."""

from __future__ import annotations

import os
from pathlib import Path

from cloudsync.dev import state
from cloudsync.errors import ConfigurationError, UnknownTenant
from cloudsync.settings import Settings, load


def postgres_url(given: str | None, folder: Path, *, dedicated: str | None = None) -> str:
    """The database's URL, as the role that may migrate and track; `dedicated`: a tenant's own one's.

    Raises NotRunning, UnknownTenant.
    """
    if dedicated is not None:
        known = state.require(folder).dedicated
        if dedicated not in known:
            raise UnknownTenant(
                f"The platform of this folder has no database for a tenant {dedicated}.",
                hint=f"Start it with `cloudsync dev --dedicated {dedicated}`.",
            )
        return known[dedicated]
    return given or os.environ.get("CLOUDSYNC_POSTGRES_URL") or state.require(folder).postgres_url


def keyring_file(folder: Path) -> Path:
    """The file with the sealing keys. Raises NotRunning."""
    return Path(os.environ.get("CLOUDSYNC_KEYRING_FILE") or state.require(folder).keyring_file)


def redis_url(given: str | None, folder: Path) -> str:
    """The URL of the Redis with feeds and registry. Raises NotRunning."""
    return given or os.environ.get("CLOUDSYNC_REDIS_EVENTS_URL") or state.require(folder).redis_url


def api_url(given: str | None, folder: Path) -> str:
    """The API's URL. Raises NotRunning."""
    url = given or os.environ.get("CLOUDSYNC_API_URL") or state.require(folder).api_url
    if not url:
        raise ConfigurationError("The platform of this folder runs without the API.")
    return url


def known_api_url(folder: Path) -> str:
    """The API's URL, or empty where none is known."""
    running = state.read(folder)
    return os.environ.get("CLOUDSYNC_API_URL") or (running.api_url if running else "")


def token_settings(folder: Path) -> Settings:
    """Settings that can sign development tokens. Raises NotRunning."""
    if os.environ.get("CLOUDSYNC_JWT_SECRET"):
        return load()
    secret = Path(state.require(folder).secret_file).read_text()
    return load(mode="development", jwt_secret=secret)
