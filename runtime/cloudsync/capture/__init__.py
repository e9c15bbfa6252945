"""Capture: every change of a tracked table becomes a row of `cloudsync.change_log`. Its SQL is in `sql/`."""
