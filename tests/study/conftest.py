"""A job small enough to search in a second, and a network with decided outputs."""

from job_fixtures import *  # noqa: F403
from network_fixtures import fits, network, plan, sets  # noqa: F401
