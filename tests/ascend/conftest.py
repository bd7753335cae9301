import json
from pathlib import Path

import pytest

from tests.ascend.runs import REPORTS, Reports, compile_all, require_frontend
from tests.support.once import needed, once


@pytest.fixture(scope="module")
def compiled(request, tmp_path_factory):
    """The cases that the selected tests of a module need, compiled one after the other in one process.

    Cases that have to be rejected come last: then the graph that they spoil has been compiled in the same process.
    """
    require_frontend()
    module, items = request.module.CASES, request.session.items
    cases = sorted(
        needed(item for item in items if item.path == request.path), key=lambda case: case.startswith("wrong_")
    )

    def compile_into(folder: Path) -> None:
        reports = compile_all(module, cases, folder, timeout_s=1700)
        (folder / REPORTS).write_text(json.dumps(reports), encoding="utf-8")

    folder = once(tmp_path_factory, f"ascend_{module}", compile_into)
    return Reports(json.loads((folder / REPORTS).read_text(encoding="utf-8")))
