"""The oracle: random programs of writes, rights, subscriptions and disturbances, held against SQL.

A `Program` says what happens; the `Runner` makes it happen in a scratch schema of a real platform. What was
written is kept in a `Ledger`; what every client was sent is judged by it, and at the end every view is
compared with what SQL shows its user. Nothing here uses the platform's own filters, expressions or notion of
who may see a row.
"""
