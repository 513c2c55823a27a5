"""A network with decided outputs, and the three sets."""

from network_fixtures import *  # noqa: F403
