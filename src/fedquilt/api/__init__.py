"""The Python API: run, compare, plan and check experiments, and read their results; see ``docs/python.md``.

Each name here is also available from ``fedquilt`` itself, as in ``fedquilt.run``.
"""

from fedquilt.api.comparison import Comparison, compare
from fedquilt.api.patch import patch
from fedquilt.api.preview import check, plan
from fedquilt.api.progress import PrintedRounds
from fedquilt.api.rows import Rows
from fedquilt.api.run import Run, open_run
from fedquilt.api.start import run

__all__ = ["Comparison", "PrintedRounds", "Rows", "Run", "check", "compare", "open_run", "patch", "plan", "run"]
