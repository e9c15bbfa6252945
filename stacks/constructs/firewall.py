"""AWS WAF before the load balancer."""

from __future__ import annotations

from typing import Final

from aws_cdk import Fn, RemovalPolicy, Stack
from aws_cdk import aws_wafv2 as waf
from constructs import Construct

from stacks.constructs.logs import log_group
from stacks.settings import EnvironmentSettings

_MANAGED: Final = (
    "AWSManagedRulesAmazonIpReputationList",
    "AWSManagedRulesKnownBadInputsRuleSet",
    "AWSManagedRulesCommonRuleSet",
)
# A token travels in either; the browser has no other way than the second.
_SECRET_HEADERS: Final = ("authorization", "sec-websocket-protocol")


class Firewall(Construct):
    """Managed rules, and a bound on what one address may ask.

    The bound is far above what an office of clients asks that reconnect all at once: they are one address,
    and blocking them would turn a deploy into an outage.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        resource_arn: str,
        requests_per_address_5min: int,
        settings: EnvironmentSettings,
    ) -> None:
        super().__init__(scope, construct_id)
        managed = [
            waf.CfnWebACL.RuleProperty(
                name=name,
                priority=10 + place,
                override_action=waf.CfnWebACL.OverrideActionProperty(none={}),
                statement=waf.CfnWebACL.StatementProperty(
                    managed_rule_group_statement=waf.CfnWebACL.ManagedRuleGroupStatementProperty(
                        vendor_name="AWS", name=name
                    )
                ),
                visibility_config=_visibility(name),
            )
            for place, name in enumerate(_MANAGED)
        ]
        rate = waf.CfnWebACL.RuleProperty(
            name="RequestsPerAddress",
            priority=1,
            action=waf.CfnWebACL.RuleActionProperty(block={}),
            statement=waf.CfnWebACL.StatementProperty(
                rate_based_statement=waf.CfnWebACL.RateBasedStatementProperty(
                    limit=requests_per_address_5min, aggregate_key_type="IP", evaluation_window_sec=300
                )
            ),
            visibility_config=_visibility("RequestsPerAddress"),
        )
        acl = waf.CfnWebACL(
            self,
            "Acl",
            scope="REGIONAL",
            default_action=waf.CfnWebACL.DefaultActionProperty(allow={}),
            rules=[rate, *managed],
            visibility_config=_visibility("CloudSync"),
        )
        waf.CfnWebACLAssociation(self, "Association", resource_arn=resource_arn, web_acl_arn=acl.attr_arn)
        stack = Stack.of(self)
        log = log_group(
            self,
            "Log",
            settings=settings,
            # WAF writes to no other name; the stack's id makes it this stack's own.
            name=Fn.join("-", ["aws-waf-logs", "cloudsync", Fn.select(2, Fn.split("/", stack.stack_id))]),
            removal=RemovalPolicy.DESTROY,
        )
        waf.CfnLoggingConfiguration(
            self,
            "Logging",
            resource_arn=acl.attr_arn,
            log_destination_configs=[
                stack.format_arn(service="logs", resource=f"log-group:{log.log_group_name}")
            ],
            redacted_fields=[
                waf.CfnLoggingConfiguration.FieldToMatchProperty(single_header={"Name": name})
                for name in _SECRET_HEADERS
            ],
            logging_filter={
                "DefaultBehavior": "DROP",
                "Filters": [
                    {
                        "Behavior": "KEEP",
                        "Requirement": "MEETS_ANY",
                        "Conditions": [{"ActionCondition": {"Action": "BLOCK"}}],
                    }
                ],
            },
        )


def _visibility(name: str) -> waf.CfnWebACL.VisibilityConfigProperty:
    return waf.CfnWebACL.VisibilityConfigProperty(
        cloud_watch_metrics_enabled=True, metric_name=name, sampled_requests_enabled=False
    )
