"""Capture: every change of a tracked table becomes a row of `cloudsync.change_log` (the SQL side is in `sql/`)."""
