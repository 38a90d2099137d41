"""The status page: one look at everything, for people; it needs no script and nothing from elsewhere.

However many look, Redis is asked once in SNAPSHOT_SECONDS by each process: what Prometheus gets, and about 60 commands
in one round trip for the last hour.
"""
