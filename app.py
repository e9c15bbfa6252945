"""Entry point: `cdk deploy -c env=prod 'CloudSync-prod/*'`, or `python app.py prod` only to synthesize."""

import os
import sys

from stacks import environments

try:
    name = (
        sys.argv[1] if len(sys.argv) > 1 else environments.name_of_context(os.environ.get("CDK_CONTEXT_JSON"))
    )
    settings = environments.load(name)
except environments.EnvironmentRefused as refused:
    sys.exit(f"cloudsync: {refused}")

from stacks.app import build_app

app = build_app(settings, outdir=os.environ.get("CDK_OUTDIR", "cdk.out"), checked=True)
try:
    app.synth()
except RuntimeError as error:  # jsii's; what was found has been printed
    if "ValidationFailed" not in str(error):
        raise
    sys.exit("cloudsync: the findings above keep this environment from being deployed.")
