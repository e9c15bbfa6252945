"""Reading secrets of another stack."""

from __future__ import annotations

from aws_cdk import Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stacks.processes import SecretField


def by_arn(scope: Construct, construct_id: str, field: SecretField) -> secretsmanager.ISecret:
    """The secret as an import: a grant on the original would write into its stack, and make a cycle."""
    return secretsmanager.Secret.from_secret_complete_arn(
        scope, construct_id, field.secret.secret_full_arn or ""
    )


def may_read(role: iam.IRole, field: SecretField) -> None:
    """Let a role read a secret itself, whenever it likes."""
    role.add_to_principal_policy(
        iam.PolicyStatement(
            actions=["secretsmanager:GetSecretValue"], resources=[field.secret.secret_full_arn or ""]
        )
    )
    may_decrypt(role, field)


def may_decrypt(role: iam.IRole, field: SecretField) -> None:
    """Let a role use the key of a secret, through Secrets Manager alone."""
    role.add_to_principal_policy(
        iam.PolicyStatement(
            actions=["kms:Decrypt"],
            resources=[field.key.key_arn],
            conditions={
                "StringEquals": {"kms:ViaService": f"secretsmanager.{Stack.of(role).region}.amazonaws.com"}
            },
        )
    )
