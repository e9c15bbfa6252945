"""Where logs go, and how long they are kept."""

from __future__ import annotations

from typing import Final

from aws_cdk import RemovalPolicy
from aws_cdk import aws_logs as logs
from constructs import Construct

from stacks.constructs.findings import accept_of_checkov
from stacks.settings import EnvironmentSettings
from stacks.stack import removal_policy

_RETENTION: Final = {
    1: logs.RetentionDays.ONE_DAY,
    3: logs.RetentionDays.THREE_DAYS,
    7: logs.RetentionDays.ONE_WEEK,
    14: logs.RetentionDays.TWO_WEEKS,
    30: logs.RetentionDays.ONE_MONTH,
    60: logs.RetentionDays.TWO_MONTHS,
    90: logs.RetentionDays.THREE_MONTHS,
    180: logs.RetentionDays.SIX_MONTHS,
    365: logs.RetentionDays.ONE_YEAR,
}


def log_group(
    scope: Construct,
    construct_id: str,
    *,
    settings: EnvironmentSettings,
    name: str | None = None,
    removal: RemovalPolicy | None = None,
) -> logs.LogGroup:
    """A log group that is kept as long as the settings say."""
    group = logs.LogGroup(
        scope,
        construct_id,
        log_group_name=name,
        retention=_RETENTION[settings.services.log_days],
        removal_policy=removal or removal_policy(settings),
    )
    accept_of_checkov(
        group, {"CKV_AWS_158": "CloudWatch encrypts by itself, and logs hold no row data and no tokens"}
    )
    return group
