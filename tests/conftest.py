"""For all tests."""

# Large packages, loaded once: a run whose process lacks them has a child build its network.
import asterion_shared.networks  # noqa: F401
