"""One layer of every kind, and the plans it can have."""

from layer_fixtures import *  # noqa: F403
