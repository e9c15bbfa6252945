"""Names of the CloudWatch metrics that scaling reads and `cloudsync publisher` writes."""

from __future__ import annotations

from typing import Final

NAMESPACE: Final = "CloudSync"
BACKLOG: Final = "redis.pubsub.backlog"
CONNECTIONS: Final = "websocket.connections.active"
ENVIRONMENT: Final = "Environment"
CELL: Final = "Cell"
