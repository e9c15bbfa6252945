"""The command line: a verb per process, and what a developer does by hand.

Verbs import what they need when they run, so that each process loads only its own stage.
"""

from __future__ import annotations

import sys

# In the order in which the help shows their verbs.
from cloudsync.cli import processes, development, tables, tenants, audit  # isort: skip
from cloudsync.cli.application import app
from cloudsync.cli.failures import registered

VERBS = (processes, development, tables, tenants, audit)
"""Importing them puts their verbs into the program."""


def main() -> None:
    """Run the command line: exit status 1 for an error that has a code, 2 for wrong usage."""
    try:
        app(prog_name="cloudsync")
    except Exception as error:
        known = registered(error)
        if known is None:
            raise
        sentence = " ".join(str(known).split())  # some drivers break their lines
        sys.stderr.write(f"cloudsync: {sentence} [{known.code}]\n")
        sys.exit(1)


__all__ = ["app", "main", "registered"]
