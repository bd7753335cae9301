"""Moved to tests/support/models.py; kept until every module imports from there."""

from tests.support.models import CPU, build, random_ids, tiny_model  # noqa: F401
