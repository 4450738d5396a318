"""Python's collector of cyclic garbage: paused while libraries are imported, and kept from what stays."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from fedquilt.core.collector import paused, spared


class _Cycle:
    """An object that only the collector frees."""

    def __init__(self) -> None:
        self.self = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    gc.unfreeze()
    gc.enable()
    yield
    gc.unfreeze()
    gc.enable()


def test_the_collector_is_off_inside_and_on_again_afterwards_even_after_an_error() -> None:
    def failing() -> None:
        with paused():
            assert not gc.isenabled()
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        failing()
    assert gc.isenabled()


def test_a_collector_that_the_caller_has_switched_off_stays_off() -> None:
    gc.disable()
    with paused():
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_what_was_there_is_spared_inside_and_what_is_made_inside_is_collected() -> None:
    before = weakref.ref(_Cycle())
    with spared():
        inside = weakref.ref(_Cycle())
        gc.collect()
        assert inside() is None
        assert before() is not None
    gc.collect()
    assert before() is None


def test_objects_that_the_caller_has_spared_stay_so() -> None:
    gc.freeze()
    number = gc.get_freeze_count()
    with spared():
        assert gc.get_freeze_count() <= number
    assert 0 < gc.get_freeze_count() <= number


def test_a_library_that_is_imported_while_objects_are_spared_is_spared_too() -> None:
    with paused():
        pass
    assert not gc.get_freeze_count()
    with spared():
        with paused():
            library = _Cycle()
        assert not _collectable(library)
    assert _collectable(library)


def _collectable(wanted: object) -> bool:
    return any(found is wanted for found in gc.get_objects())
