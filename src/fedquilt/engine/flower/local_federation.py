"""A complete local federation on loopback, for trials and tests: a SuperLink and SuperNodes in processes of their own.

With ``secure`` it uses TLS with node authentication, as a federation between organisations should.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fedquilt.core.errors import FedquiltError
from fedquilt.core.interrupts import uninterrupted
from fedquilt.engine.flower.compat import ACCEPTED, LEASE_SECONDS, QUIET, REFUSED, TAKEN
from fedquilt.engine.flower.local_config import CONNECTION, config_value, prepare
from fedquilt.engine.flower.processes import (
    Started,
    free_port,
    listening,
    marked,
    marked_as,
    patience,
    tail,
    tool,
    wait_for,
)

NodeConfig = Mapping[str, Any] | Callable[[int], Mapping[str, Any]]

_START = 90.0  # seconds until a process must listen; importing Flower takes two to ten of them
_AGAIN = 5.0  # seconds between two attempts of a node that is refused


class Trial:
    """A SuperLink and SuperNodes, node ``i`` with partition ``i``; all end with the ``with`` block.

    Parameters
    ----------
    folder
        Holds everything: ``certs``, ``flower`` (FLWR_HOME), ``sites`` (the clients' memories) and ``logs``.
    num_nodes
        The number of SuperNodes.
    secure
        Use TLS with node authentication.
    node_config
        Additions to the nodes' configs, for all nodes or as a function of the node's number.
    database
        Whether the SuperLink keeps its state on disk, so that it knows the nodes when it is restarted.
    environment
        Additions to the environment variables of the processes.
    """

    def __init__(
        self,
        folder: Path,
        num_nodes: int = 3,
        *,
        secure: bool = True,
        node_config: NodeConfig | None = None,
        database: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if num_nodes < 1:
            raise FedquiltError(f"--nodes {num_nodes}: must be at least 1")
        self.folder, self.num_nodes, self.secure = folder.absolute(), num_nodes, secure
        self.home, self.certs, self.database = self.folder / "flower", self.folder / "certs", database
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._node_config: NodeConfig = {} if node_config is None else node_config
        self._environment = {**QUIET, **os.environ, **(environment or {})}
        self._environment["PATH"] = os.pathsep.join([str(Path(tool("flwr")).parent), os.environ.get("PATH", "")])
        self._started: dict[str, Started] = {}
        self._wanted: dict[int, float] = {}  # the nodes that should run, and the time until which a refusal is retried
        self._lock, self._over = threading.RLock(), threading.Event()
        self._watch = threading.Thread(target=self._supervise, name="trial", daemon=True)

    def __enter__(self) -> Trial:
        left = marked(str(self.folder))
        if left:
            raise FedquiltError(
                f"{self.folder}: a federation of this folder is still running (processes "
                f"{', '.join(map(str, left))}); end it where it was started, or choose another folder"
            )
        try:
            keys = [self.key(node) for node in range(self.num_nodes)] if self.secure else []
            prepare(self.folder, self.home, self.certs, keys, self.address)
            self.start_superlink()
            for node in range(self.num_nodes):
                self.start_node(node)
            self._watch.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The SuperLink ------------------------------------------------------------

    def start_superlink(self) -> None:
        """Start the SuperLink, wait until it listens, and register the nodes' keys that it does not know yet."""
        words = [tool("flower-superlink"), "--port", str(self.port), "--disable-runtime-dependency-installation"]
        words += ["--database", str(self.folder / "state.db")] if self.database else []
        if self.secure:
            words += ["--ssl-ca-certfile", str(self.certs / "ca.crt"), "--enable-supernode-auth"]
            words += ["--ssl-certfile", str(self.certs / "server.crt"), "--ssl-keyfile", str(self.certs / "server.key")]
        else:
            words += ["--insecure"]
        process = self.start("superlink", *words)
        wait_for(lambda: listening(self.port), process, _START, f"it does not listen on {self.address}")
        for node in range(self.num_nodes) if self.secure else ():
            self.register(self.key(node).with_suffix(".pub"))

    def kill_superlink(self, number: int = signal.SIGKILL) -> None:
        """Send the SuperLink a signal, then kill what is left of it and its ServerApp."""
        self._started["superlink"].end(number)

    def server_processes(self) -> list[int]:
        """Return the ServerApp processes that the SuperLink has started; empty on systems without /proc."""
        return marked_as(f"{self.folder}/superlink", "flwr-serverapp")

    def register(self, public_key: Path) -> None:
        """Register a node's public key with the SuperLink, unless it is registered already."""
        done = self.flwr("supernode", "register", str(public_key), CONNECTION, check=False)
        if done.returncode != 0 and TAKEN not in done.stdout + done.stderr:
            raise FedquiltError(f"{public_key}: not registered: {(done.stdout + done.stderr).strip()}")

    # The SuperNodes ------------------------------------------------------------

    def key(self, node: int) -> Path:
        """Return the path of a node's private key; the public key is beside it."""
        return self.certs / f"node-{node}"

    def start_node(self, node: int) -> None:
        """Start a SuperNode, and retry while it is refused because its previous process still counts as online.

        A node that was killed counts as online for up to a minute after its last heartbeat.
        """
        with self._lock:
            self._wanted[node] = time.monotonic() + patience(2 * LEASE_SECONDS)
            self._start_node(node)

    def kill_node(self, node: int, number: int = signal.SIGKILL) -> None:
        """Send a SuperNode a signal, then kill what is left of it and its child processes."""
        with self._lock:
            self._wanted.pop(node, None)
            self._started[f"node-{node}"].end(number)

    def supernode(
        self, *, key: Path | None = None, secure: bool | None = None, signs: bool = False, **config: Any
    ) -> list[str]:
        """Return the command that starts a SuperNode of this federation with a config and, if given, a private key.

        With ``signs`` the config names the key too, so that the node signs its announcement with it.
        """
        words = [tool("flower-supernode"), "--superlink", self.address, "--port", str(free_port())]
        if self.secure if secure is None else secure:
            words += ["--root-certificates", str(self.certs / "ca.crt")]
        else:
            words += ["--insecure"]
        words += ["--auth-supernode-private-key", str(key)] if key is not None else []
        config |= {"key": str(key)} if signs and key is not None else {}
        return [*words, "--node-config", " ".join(f"{name}={config_value(value)}" for name, value in config.items())]

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes as listed by ``flwr supernode list``: ``node-id``, ``status`` and times."""
        text = self.flwr("supernode", "list", CONNECTION, "--format", "json").stdout
        return list(json.loads(text[text.index("{") :])["nodes"])

    def node_id(self, node: int) -> str | None:
        """Return Flower's id of a running node; None until it is accepted."""
        with self._lock:
            started = self._started.get(f"node-{node}")
            found = ACCEPTED.findall(started.said) if started is not None and started.running else []
        return found[-1] if found else None

    def ready(self, nodes: Iterable[int] | None = None, seconds: float = 180.0) -> float:
        """Wait until the nodes (by default all that should run) are accepted; returns the seconds that it took.

        Raises
        ------
        FedquiltError
            if a process ended and is not restarted, or on a timeout; the message holds the end of its log.
        """
        began = time.monotonic()
        for node in sorted(self._wanted) if nodes is None else nodes:
            while self.node_id(node) is None:
                with self._lock:
                    started = self._started[f"node-{node}"]
                    given_up = not started.running and not self._may_try_again(node, started)
                for process in (self._started["superlink"], *((started,) if given_up else ())):
                    if not process.running:
                        raise FedquiltError(f"{process.name} ended: {tail(process)}")
                if time.monotonic() - began > patience(seconds):
                    raise FedquiltError(f"node {node}: not accepted after {seconds:g} s: {tail(started)}")
                time.sleep(0.2)
        return time.monotonic() - began

    # Everything ------------------------------------------------------------

    def start(self, name: str, *words: str) -> Started:
        """Start any process as part of the federation; it ends with the others."""
        own = self.home if name == "superlink" else self.folder / "homes" / name  # as if nodes were separate machines
        environment = {**self._environment, "FLWR_HOME": str(own)}
        started = Started(name, words, self.log(name), environment, f"{self.folder}/{name}")
        self._started[name] = started
        return started

    def flwr(self, *words: str, check: bool = True, seconds: float = 180.0) -> subprocess.CompletedProcess[str]:
        """Run Flower's command with this federation's connection, which is named ``trial``.

        Raises
        ------
        FedquiltError
            if it fails, unless ``check`` is off, or takes longer than ``seconds``.
        """
        environment = {**self._environment, "FLWR_HOME": str(self.home)}
        try:
            done = subprocess.run(
                [tool("flwr"), *words], capture_output=True, text=True, env=environment, timeout=patience(seconds)
            )
        except subprocess.TimeoutExpired as error:
            raise FedquiltError(f"flwr {' '.join(words)}: no answer within {seconds:g} s") from error
        if check and done.returncode != 0:
            raise FedquiltError(f"flwr {' '.join(words)}: {(done.stdout + done.stderr).strip()}")
        return done

    def log(self, name: str) -> Path:
        """Return the log file of a process (``superlink``, ``node-0``, ...), which all its restarts append to."""
        return self.folder / "logs" / f"{name}.log"

    def logs(self, name: str) -> str:
        """Return the output of a process since it was last started."""
        return self._started[name].said

    def ended(self) -> list[Started]:
        """Return the processes that have ended unexpectedly and will not be restarted."""
        with self._lock:
            names = {f"node-{node}": node for node in self._wanted} | {"superlink": -1}
            found = [(node, self._started[name]) for name, node in names.items()]
            return [one for node, one in found if not one.running and not self._may_try_again(node, one)]

    def process(self, name: str) -> Started:
        """Return the process that ``start`` last started under this name."""
        return self._started[name]

    def close(self) -> None:
        """End all processes; nodes first, so that they can sign off."""
        with uninterrupted():
            self._over.set()
            if self._watch.is_alive():
                self._watch.join(30)
            with self._lock:
                self._wanted.clear()
                order = sorted(self._started.values(), key=lambda one: one.name == "superlink")
                for one in order:
                    if one.running and one.name != "superlink":
                        one.process.terminate()  # signal all before waiting, because each takes seconds
                for one in order:
                    one.end()

    def _start_node(self, node: int) -> None:
        more = self._node_config(node) if callable(self._node_config) else self._node_config
        config = {"partition-id": node, "num-partitions": self.num_nodes, "memories": str(self.folder / "sites")}
        key = self.key(node) if self.secure else None
        self.start(f"node-{node}", *self.supernode(key=key, signs=True, **{**config, **more}))

    def _may_try_again(self, node: int, ended: Started) -> bool:
        """Whether a node ended because its previous process still counts as online, which is temporary."""
        return REFUSED in ended.said and time.monotonic() < self._wanted.get(node, 0.0)

    def _supervise(self) -> None:
        """Restart nodes that were refused; ``ready`` reports those that ended for another reason."""
        while not self._over.wait(_AGAIN):
            with self._lock:
                for node in [*self._wanted]:
                    ended = self._started[f"node-{node}"]
                    if not ended.running and self._may_try_again(node, ended):
                        ended.end()
                        self._start_node(node)
