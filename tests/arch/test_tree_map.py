"""docs/design.md has one line for each file of the source tree."""

from __future__ import annotations

from project_sources import sources
from tree_map import INTRODUCTION, summary, tree_map, written_map


def test_every_file_says_what_it_is() -> None:
    silent = [source.path for source in sources() if not summary(source.tree)]
    assert not silent, silent


def test_the_map_is_that_of_the_tree() -> None:
    assert len(sources()) > 100
    wanted, there = tree_map().splitlines(), written_map().splitlines()
    missing, old = [one for one in wanted if one not in there], [one for one in there if one not in wanted]
    assert wanted == there, f"run `python tests/arch/tree_map.py`; missing: {missing[:5]}; no longer true: {old[:5]}"
    assert INTRODUCTION in tree_map()
