"""What the platform can do, measured: scenarios, the clients that receive, and what they report."""
