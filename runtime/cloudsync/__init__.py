"""CloudSync: every change in a PostgreSQL database, in real time, at every client that may see it."""

__version__ = "0.1.0"
