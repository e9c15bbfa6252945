"""Alarms of CloudWatch: whom they tell, and what RDS's own figures say of a database."""

from __future__ import annotations

from typing import Final

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_sns as sns
from constructs import Construct

from stacks.constructs.database import Database
from stacks.settings import EnvironmentSettings

_MINUTE: Final = Duration.minutes(1)
_BUSY_PERCENT: Final = 90
_REPLICA_LAG_S: Final = 300


class Alarms:
    """The alarms in one scope; each names its runbook and tells the topic of the settings."""

    def __init__(self, scope: Construct, settings: EnvironmentSettings) -> None:
        self._scope = scope
        self._topic = (
            sns.Topic.from_topic_arn(scope, "Topic", settings.alarm_topic_arn)
            if settings.alarm_topic_arn
            else None
        )

    def add(
        self,
        name: str,
        metric: cloudwatch.IMetric,
        *,
        minutes: int,
        text: str,
        runbook: str,
        above: float | None = None,
        below: float | None = None,
    ) -> None:
        comparison = cloudwatch.ComparisonOperator
        alarm = cloudwatch.Alarm(
            self._scope,
            name,
            metric=metric,
            threshold=above if above is not None else below or 0,
            comparison_operator=(
                comparison.GREATER_THAN_THRESHOLD if above is not None else comparison.LESS_THAN_THRESHOLD
            ),
            evaluation_periods=minutes,
            datapoints_to_alarm=minutes,
            # A metric that is not there is another alarm's business: relay.silence, sync.canary.lag.
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
            alarm_description=f"{text} See runbooks/{runbook}.md.",
        )
        if self._topic is not None:
            alarm.add_alarm_action(actions.SnsAction(self._topic))
            alarm.add_ok_action(actions.SnsAction(self._topic))


class DatabaseAlarms(Construct):
    """What RDS says of a database, whether the processes say something or not.

    They are where the database is, and go with it: elsewhere they would import what it is called, and a
    replica that the settings no longer name could not go (runbooks/remove-an-export.md).
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        database: Database,
        what: str,
        settings: EnvironmentSettings,
    ) -> None:
        super().__init__(scope, construct_id)
        alarms, instance, bounds = Alarms(self, settings), database.instance, database.settings
        alarms.add(
            "Storage",
            instance.metric_free_storage_space(period=_MINUTE),
            below=bounds.storage_gib * 1024**3 * 0.1,
            minutes=15,
            text=f"critical: less than a tenth of the storage of {what} is free.",
            runbook="slot-lost",
        )
        alarms.add(
            "Cpu",
            instance.metric_cpu_utilization(period=_MINUTE),
            above=_BUSY_PERCENT,
            minutes=15,
            text=f"warning: {what} has had no processor to spare for a quarter of an hour.",
            runbook="database-busy",
        )
        alarms.add(
            "Slot",
            instance.metric("OldestReplicationSlotLag", statistic=cloudwatch.Stats.MAXIMUM, period=_MINUTE),
            above=bounds.slot_wal_keep_gib * 1024**3 / 2,
            minutes=5,
            text=f"critical: a replication slot of {what} holds half of the WAL at which it is given up.",
            runbook="slot-lost",
        )
        for number, replica in enumerate(database.replicas, 1):
            alarms.add(
                f"Replica{number}",
                replica.metric("ReplicaLag", statistic=cloudwatch.Stats.MAXIMUM, period=_MINUTE),
                above=_REPLICA_LAG_S,
                minutes=10,
                text=f"warning: replica {number} of {what} is minutes behind.",
                runbook="database-busy",
            )
