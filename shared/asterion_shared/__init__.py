"""What both sides of a federation must agree on: plans, parameters, tasks, metrics, messages."""

__version__ = "0.1.0"
