"""Tenants: who they are, on what plan, where their rows are, and which are disabled."""
