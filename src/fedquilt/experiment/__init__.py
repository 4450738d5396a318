"""The composition root: from a run file to a running federation, a comparison, or a plan.

Programs import its verbs from here, or use ``fedquilt.api``, which returns objects in place of folders. Modules of the
package are imported by their own names: ``fedquilt.experiment.run`` is the function.
"""

from fedquilt.experiment.build import Experiment, build
from fedquilt.experiment.check import check
from fedquilt.experiment.compare import compare
from fedquilt.experiment.export import export
from fedquilt.experiment.plan import plan
from fedquilt.experiment.progress import Progress
from fedquilt.experiment.run import resume, run

__all__ = ["Experiment", "Progress", "build", "check", "compare", "export", "plan", "resume", "run"]
