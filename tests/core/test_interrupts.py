"""Ctrl-C where it is ignored."""

from __future__ import annotations

import os
import signal
import time
from threading import Thread

from fedquilt.core.interrupts import uninterrupted


def test_a_second_interrupt_does_not_stop_the_clearing_up():
    before = signal.getsignal(signal.SIGINT)
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_cannot_set_handlers_and_is_left_alone():
    seen = []

    def inside():
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]
