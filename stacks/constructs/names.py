"""Names of the CloudWatch metrics that scaling and alarms read and `cloudsync publisher` writes."""

from __future__ import annotations

from typing import Final

from cloudsync.metrics import definitions

NAMESPACE: Final = "CloudSync"
BACKLOG: Final = definitions.BACKLOG.name
CONNECTIONS: Final = definitions.CONNECTIONS.name
ENVIRONMENT: Final = "Environment"
CELL: Final = "Cell"
