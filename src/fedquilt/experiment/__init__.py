"""The composition root: from a run file to a running federation, a comparison, or a plan."""

from fedquilt.experiment.app import deploy
from fedquilt.experiment.build import Experiment, build
from fedquilt.experiment.check import check, method_problems
from fedquilt.experiment.compare import Job, compare, jobs
from fedquilt.experiment.flower import simulate
from fedquilt.experiment.memory import Afforded, afforded, budget_lines, budgeted
from fedquilt.experiment.plan import ClientPlan, plan
from fedquilt.experiment.run import Progress, resume, run
from fedquilt.experiment.saving import export

__all__ = [
    "Afforded",
    "ClientPlan",
    "Experiment",
    "Job",
    "Progress",
    "afforded",
    "budget_lines",
    "budgeted",
    "build",
    "check",
    "compare",
    "deploy",
    "export",
    "jobs",
    "method_problems",
    "plan",
    "resume",
    "run",
    "simulate",
]
