"""Prefect flows: when and where the stages run. What they do is in sparsemm/."""

import os

# Nothing is sent anywhere unless the user turns it on; this must stand before Prefect is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
