"""Resolution: what becomes of a client's change when others have changed the same row."""
