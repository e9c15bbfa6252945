"""How long logs are kept."""

from __future__ import annotations

from aws_cdk import aws_logs as logs

from stacks.settings import EnvironmentSettings


def log_retention(settings: EnvironmentSettings) -> logs.RetentionDays:
    """How long logs are kept, as CDK names it."""
    names = {
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
    return names[settings.services.log_days]
