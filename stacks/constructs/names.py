"""Names of the CloudWatch metrics that scaling and alarms read and `cloudsync publisher` writes."""

from __future__ import annotations

from typing import Final

from cloudsync.metrics import definitions

NAMESPACE: Final = definitions.CLOUDWATCH_NAMESPACE
BACKLOG: Final = definitions.BACKLOG.name
CONNECTIONS: Final = definitions.CONNECTIONS.name
ENVIRONMENT: Final = definitions.CLOUDWATCH_ENVIRONMENT
CELL: Final = definitions.CLOUDWATCH_CELL
