"""A real link of one's own."""

from tests.link.conftest import link

__all__ = ["link"]
