"""Puts this folder on the path, so that ``drawn_factors`` can be imported under ``--import-mode=importlib``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
