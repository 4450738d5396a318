"""Puts this folder on the path, so that ``run_folders`` can be imported under ``--import-mode=importlib``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
