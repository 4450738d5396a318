"""The composition root: from a run file to a running federation, a comparison, or a plan; see ``fedquilt.api``."""
