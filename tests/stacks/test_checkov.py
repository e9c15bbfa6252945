"""What checkov says of every environment's templates. `make checkov` makes its environment and runs this."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from assembly import Assembly

_PROGRAM = os.environ.get("CLOUDSYNC_CHECKOV", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _PROGRAM, reason="its pins conflict with ours: `make checkov` runs this"),
]


@pytest.mark.parametrize("name", ["dev", "staging", "prod"])
def test_nothing_is_found_that_is_not_explained(
    synthesized: Callable[[str], Assembly], name: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            _PROGRAM,
            "--framework=cloudformation",
            "--skip-download",  # it would ask its maker for descriptions
            "--output=json",
            f"--directory={synthesized(name).folder}",
        ],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    found = json.loads(done.stdout)
    assert found["summary"]["passed"] > 400, "it has looked at the templates"
    assert [
        (each["check_id"], each["check_name"], each["resource"]) for each in found["results"]["failed_checks"]
    ] == []
    reasons = [each["check_result"]["suppress_comment"] for each in found["results"]["skipped_checks"]]
    assert all(reasons)
