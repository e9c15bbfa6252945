"""What each process of a deployment has to be told, at least: what it cannot work without."""

from __future__ import annotations

from typing import Final

NEEDS: Final[dict[str, set[str]]] = {
    "migrate": {
        "CLOUDSYNC_POSTGRES_URL",
        "PGPASSWORD",
        "CLOUDSYNC_RELAY_PASSWORD",
        "CLOUDSYNC_SERVICE_PASSWORD",
    },
    "relay": {"CLOUDSYNC_POSTGRES_URL", "PGPASSWORD", "CLOUDSYNC_REDIS_EVENTS_URL"},
    "routing": {
        "CLOUDSYNC_REDIS_EVENTS_URL",
        "CLOUDSYNC_REDIS_BROKER_URL",
        "CLOUDSYNC_REDIS_BROKER_PASSWORD",
    },
    "general": {"CLOUDSYNC_POSTGRES_URL", "PGPASSWORD", "CLOUDSYNC_REDIS_BROKER_PASSWORD"},
    "beat": {"CLOUDSYNC_REDIS_EVENTS_URL", "CLOUDSYNC_REDIS_BROKER_URL", "CLOUDSYNC_REDIS_BROKER_PASSWORD"},
    "publisher": {"CLOUDSYNC_POSTGRES_URL", "CLOUDSYNC_REDIS_EVENTS_URL", "CLOUDSYNC_ENVIRONMENT"},
    "api": {"CLOUDSYNC_POSTGRES_URL", "CLOUDSYNC_JWKS_URL", "CLOUDSYNC_CELLS", "CLOUDSYNC_CELL_BUCKETS"},
    "gateway": {
        "CLOUDSYNC_POSTGRES_URL",
        "CLOUDSYNC_JWKS_URL",
        "CLOUDSYNC_CELL",
        "CLOUDSYNC_CELLS",
        "CLOUDSYNC_CELL_BUCKETS",
        "CLOUDSYNC_DRAIN_S",
        "CLOUDSYNC_LIFECYCLE_HOOK",
    },
}
