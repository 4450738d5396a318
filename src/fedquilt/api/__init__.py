"""fedquilt from Python: run, compare, plan and check experiments, and read what they left; see ``docs/python.md``.

Each name here is also one of ``fedquilt`` itself: ``fedquilt.run``.
"""

from fedquilt.api.comparison import Comparison, compare
from fedquilt.api.preview import check, plan
from fedquilt.api.progress import PrintedRounds
from fedquilt.api.rows import Rows
from fedquilt.api.run import Run, open_run, run

__all__ = ["Comparison", "PrintedRounds", "Rows", "Run", "check", "compare", "open_run", "plan", "run"]
