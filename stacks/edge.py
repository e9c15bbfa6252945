"""Edge: the load balancer, its certificate, the firewall and the name."""

from __future__ import annotations

from typing import Final

from aws_cdk import Duration
from aws_cdk import aws_certificatemanager as acm
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_elasticloadbalancingv2 as elbv2
from aws_cdk import aws_route53 as route53
from aws_cdk import aws_route53_targets as targets
from aws_cdk import aws_s3 as s3
from constructs import Construct

from stacks.constructs.findings import accept, accept_of_checkov
from stacks.constructs.firewall import Firewall
from stacks.network import NetworkStack
from stacks.settings import EnvironmentSettings
from stacks.stack import EnvironmentStack, removal_policy

API_PRIORITY: Final = 10
CELL_PRIORITY: Final = 100  # and the number of the cell


class EdgeStack(EnvironmentStack):
    """The only thing that the world reaches, on 443, and on 80 to be sent there."""

    def __init__(self, scope: Construct, *, settings: EnvironmentSettings, network: NetworkStack) -> None:
        super().__init__(scope, "Edge", settings=settings, description="load balancer, firewall, name")
        edge = settings.edge
        self.security_group = ec2.SecurityGroup(
            self,
            "SecurityGroup",
            vpc=network.vpc,
            description="The load balancer; open to the world on 443 and 80.",
            allow_all_outbound=False,
        )
        for port, what in ((443, "clients"), (80, "clients that will be sent to 443")):
            self.security_group.add_ingress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(port), what)
        accept_of_checkov(self.security_group, {"CKV_AWS_260": "port 80 only sends clients to 443"})
        self.balancer = elbv2.ApplicationLoadBalancer(
            self,
            "Balancer",
            vpc=network.vpc,
            internet_facing=True,
            security_group=self.security_group,
            idle_timeout=Duration.seconds(edge.idle_timeout_s),
            drop_invalid_header_fields=True,
            desync_mitigation_mode=elbv2.DesyncMitigationMode.STRICTEST,
            deletion_protection=settings.protected,
        )
        self._keep_access_logs()
        self.listener = self.balancer.add_listener(
            "Https",
            port=443,
            open=False,  # the security group says who
            certificates=[acm.Certificate.from_certificate_arn(self, "Certificate", edge.certificate_arn)],
            ssl_policy=elbv2.SslPolicy.RECOMMENDED_TLS,
            default_action=elbv2.ListenerAction.fixed_response(
                404, content_type="application/json", message_body='{"error":{"code":"not_found"}}'
            ),
        )
        self.balancer.add_listener(
            "Http",
            port=80,
            open=False,
            default_action=elbv2.ListenerAction.redirect(port="443", protocol="HTTPS", permanent=True),
        )
        accept(self.security_group, {"EC23": "clients come from everywhere; only 443 and 80 are open"})
        if edge.waf:
            Firewall(
                self,
                "Firewall",
                resource_arn=self.balancer.load_balancer_arn,
                requests_per_address_5min=edge.requests_per_address_5min,
                settings=settings,
            )
        if edge.hosted_zone_id and edge.hosted_zone_name:
            zone = route53.HostedZone.from_hosted_zone_attributes(
                self, "Zone", hosted_zone_id=edge.hosted_zone_id, zone_name=edge.hosted_zone_name
            )
            route53.ARecord(
                self,
                "Name",
                zone=zone,
                record_name=f"{edge.domain}.",
                target=route53.RecordTarget.from_alias(targets.LoadBalancerTarget(self.balancer)),
            )

    def _keep_access_logs(self) -> None:
        days = self.settings.edge.access_logs_days
        if not days:
            reason = "this environment keeps no access logs, by its settings"
            accept(self.balancer, {"ELB2": reason})
            accept_of_checkov(self.balancer, {"CKV_AWS_91": reason})
            return
        bucket = s3.Bucket(
            self,
            "AccessLogs",
            encryption=s3.BucketEncryption.S3_MANAGED,  # the load balancer can write no other
            enforce_ssl=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            versioned=False,
            lifecycle_rules=[
                s3.LifecycleRule(
                    expiration=Duration.days(days), abort_incomplete_multipart_upload_after=Duration.days(1)
                )
            ],
            removal_policy=removal_policy(self.settings),
            auto_delete_objects=not self.settings.protected,
        )
        self.balancer.log_access_logs(bucket)
        accept(bucket, {"S1": "it is the log; a log of who reads the log has no end"})
        accept_of_checkov(
            bucket,
            {
                "CKV_AWS_18": "it is the log; a log of who reads the log has no end",
                "CKV_AWS_21": "each object is written once, under a name of its own",
            },
        )
        if not self.settings.protected:
            accept_of_checkov(
                self.node.find_child("Custom::S3AutoDeleteObjectsCustomResourceProvider").node.find_child(
                    "Handler"
                ),
                {
                    "CKV_AWS_115": "called once, when the stack is removed",
                    "CKV_AWS_116": "CloudFormation awaits the answer and fails without one",
                    "CKV_AWS_117": "it asks AWS alone",
                    "CKV_AWS_173": "it has no variables",
                },
            )
