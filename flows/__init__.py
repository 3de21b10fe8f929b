"""Prefect flows, which decide when and where the stages of sparsemm/ run."""

import os

# Telemetry is off unless the user turns it on. Prefect reads these variables when it is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
