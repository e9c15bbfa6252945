"""`cloudsync doctor`: looks at an environment from outside: what is wrong, and what to do about it."""
