"""What runs of unlike clients have in common: words beside the run file, and an end before the end."""

import pytest

from fedquilt.experiment.run import Progress


@pytest.fixture
def words(tmp_path):
    """A file of labelled words, ``words.tsv``, in the test's folder."""
    lines = [f"{'good' if row % 2 else 'bad'} thing {row % 5}\t{'yes' if row % 2 else 'no'}" for row in range(48)]
    path = tmp_path / "words.tsv"
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def stopped():
    """What watches a run and ends it, as Ctrl-C does, when its first round is done."""

    class Stopping(Progress):
        def round(self, line):
            raise KeyboardInterrupt

    return Stopping()
