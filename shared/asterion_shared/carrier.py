"""What can carry the messages between a coordinator and its sites."""

from typing import Literal

Carrier = Literal["link", "flower"]
"""Asterion's own link (gRPC with mutual TLS), or stock Flower."""
