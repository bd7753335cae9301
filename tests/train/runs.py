"""Moved to tests/support; kept until every module imports from there."""

from tests.support.processes import begin, start, train  # noqa: F401
from tests.support.small_runs import ROOT, SMALL, corpus, curve, run_dirs, small  # noqa: F401
