"""The server side on Flower: a ServerApp, and Flower's simulation engine on this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedquilt.core.errors import RoundError
from fedquilt.engine.flower import compat


def server_app(main: Callable[[Grid, Context], None]) -> ServerApp:
    """Make a ServerApp that calls ``main``; if it raises, Flower marks the run as failed."""
    app = ServerApp()
    app.main()(main)
    return app


def simulate(
    main: Callable[[Grid, threading.Event], None],
    app: ClientApp,
    num_nodes: int,
    *,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> None:
    """Run ``main`` as the server of ``num_nodes`` simulated nodes, each a ``ClientApp`` with ``cpus`` and ``gpus``.

    The event given to ``main`` is set when the simulation has ended before ``main``.

    Parameters
    ----------
    main
        The server's function of the Grid and the event.
    app
        The clients' ClientApp.
    num_nodes
        The number of simulated nodes.
    cpus, gpus
        What each client may use.

    Raises
    ------
    Exception
        whatever ``main`` raises.
    RoundError
        if the simulation ended before ``main`` did.
    """
    compat.quiet()
    stop, raised, ended = threading.Event(), [], threading.Event()

    def guarded(grid: Grid, context: Context) -> None:
        try:
            main(grid, stop)
        except BaseException as error:  # Flower would log it and go on; it is raised below
            raised.append(error)
        finally:
            ended.set()

    try:
        compat.simulate(server_app(guarded), app, num_nodes, cpus=cpus, gpus=gpus)
    finally:
        stop.set()
        ended.wait(30)
    if raised:
        raise raised[0]
    if not ended.is_set():
        raise RoundError("Flower's simulation ended before the run did; see its messages above")
