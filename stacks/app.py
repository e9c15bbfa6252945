"""The application that `app.py` and the tests synthesize alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from aws_cdk import App, Validations
from cdk_nag import AwsSolutionsChecks

from stacks.settings import EnvironmentSettings
from stacks.stage import CloudSyncStage, FinishStage

ROOT: Final = Path(__file__).resolve().parents[1]


def build_app(settings: EnvironmentSettings, *, outdir: str | None = None, checked: bool = False) -> App:
    """Everything of one environment. With `checked`, findings of cdk-nag fail the synth.

    The feature flags of cdk.json are passed here: only the command line reads that file by itself.
    """
    app = App(
        context=_flags(), outdir=outdir, analytics_reporting=False, tree_metadata=False, stack_traces=False
    )
    FinishStage(app, settings=settings, main=CloudSyncStage(app, settings=settings))
    if checked:
        Validations.of(app).add_plugins(AwsSolutionsChecks())
    return app


def _flags() -> dict[str, Any]:
    flags: dict[str, Any] = json.loads((ROOT / "cdk.json").read_text())["context"]
    # Where a construct was made: paths of temporary files, different in each synth.
    return {**flags, "aws:cdk:disable-creation-stack-traces": True}
