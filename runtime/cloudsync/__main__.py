"""`python -m cloudsync`."""

from cloudsync.cli import main

main()
