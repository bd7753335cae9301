"""Reports: runs beside each other, and the small report that each run leaves (docs/reports.md).

`run` reads a run directory, `find` finds them, `curves` has the axes. `naming` says in which keys runs differ and calls
them by it, `statistics` has the intervals over seeds. `comparison` puts all that into tables, which `terminal`, `html`,
`markdown` and `data` write. `page` is the frame of HTML. `figures` draws curves as SVG; `trials` are the jobs of a
multirun as points, which `trial_pictures` draws; `run_report` is the report of one run. Nothing here imports mindspore.
"""

from gpt2x.reports.comparison import Comparison, compare
from gpt2x.reports.find import find_runs
from gpt2x.reports.run import Run, read_run
from gpt2x.reports.run_report import report_run
from gpt2x.reports.trial_pictures import sweep_picture

__all__ = ["Comparison", "Run", "compare", "find_runs", "read_run", "report_run", "sweep_picture"]
