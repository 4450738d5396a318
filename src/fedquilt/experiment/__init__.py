"""Composition root: builds a federation from a run file, and runs, compares or plans it; see ``fedquilt.api``."""
