"""Tasks run by mteb, per-query values, and the statistics that put an interval on every number."""
