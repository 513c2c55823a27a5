"""The search space of a real study."""

from job_fixtures import cache, digits, digits_folder  # noqa: F401
