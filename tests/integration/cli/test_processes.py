"""The processes' verbs where something that they need is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

_WITHOUT_BOTO3 = """
import sys
sys.modules["boto3"] = None  # as if it were not installed
sys.argv[0] = "cloudsync"
from cloudsync.cli import main
main()
"""


@pytest.mark.parametrize("verb", ["publisher"])
def test_without_the_extra_of_aws_one_sentence_names_it(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_BOTO3, verb], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "cloudsync: boto3, which speaks to AWS, is not installed. Install CloudSync with its extra aws:"
        " pip install 'cloudsync[aws]'. [configuration]\n"
    )
