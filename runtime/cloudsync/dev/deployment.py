"""The deployment's command line, `python -m stacks`: a process of its own, as the runtime knows no stacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cloudsync.errors import ConfigurationError


def run(*arguments: str) -> int:
    """Run it in the checkout that this folder is part of; its exit status. Raises ConfigurationError."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "stacks" / "environments").is_dir():
            done = subprocess.run([sys.executable, "-m", "stacks", *arguments], cwd=folder, check=False)
            return done.returncode
    raise ConfigurationError(
        "There is no folder stacks/ here.", hint="Environments are described in a checkout; run this in it."
    )
