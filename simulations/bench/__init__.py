"""The speed of ``asterion simulate`` beside its peers; ``make bench-simulation`` runs it."""

import os

# Nothing is sent to anybody. The peers read these when they are imported, which is after this.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
