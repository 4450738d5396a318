"""A whole federation on loopback: a SuperLink and its SuperNodes as processes of their own, as between real sites.

For trials and tests. With ``secure`` it is TLS with node authentication, as it should be between organisations.
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
    uninterrupted,
    wait_for,
)

NodeConfig = Mapping[str, Any] | Callable[[int], Mapping[str, Any]]

_START = 90.0  # seconds until a process must listen; importing Flower takes two to ten of them
_AGAIN = 5.0  # seconds between two attempts of a node that is refused


class Trial:
    """A SuperLink and ``num_nodes`` SuperNodes, node ``i`` with partition ``i``; all end with the ``with`` block.

    Everything lies in ``folder``: ``certs``, ``flower`` (FLWR_HOME), ``sites`` (the clients' memories), ``logs``.
    ``node_config`` adds to a node's config, for all nodes or by number. With ``database`` the SuperLink keeps its
    state on the disk and knows the nodes again when it is restarted. ``environment`` adds to what the processes get.
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
        self._wanted: dict[int, float] = {}  # the nodes that are to run, and until when a refusal is no failure
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
        """Start the SuperLink, wait until it listens, and register the nodes' keys that it does not know."""
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

    def stop_superlink(self) -> None:
        """End the SuperLink in good order, its ServerApp with it."""
        self.kill_superlink(signal.SIGTERM)

    def kill_superlink(self, number: int = signal.SIGKILL) -> None:
        """Send the SuperLink a signal and end what is left of it; its ServerApp with it."""
        self._started["superlink"].end(number)

    def server_processes(self) -> list[int]:
        """The ServerApp processes that the SuperLink has started; empty where there is no /proc."""
        return marked_as(f"{self.folder}/superlink", "flwr-serverapp")

    def register(self, public_key: Path) -> None:
        """Make a node's public key known to the SuperLink; one that it knows already stays."""
        done = self.flwr("supernode", "register", str(public_key), CONNECTION, check=False)
        if done.returncode != 0 and TAKEN not in done.stdout + done.stderr:
            raise FedquiltError(f"{public_key}: not registered: {(done.stdout + done.stderr).strip()}")

    # The SuperNodes ------------------------------------------------------------

    def key(self, node: int) -> Path:
        """Where a node's private key is; the public one is beside it."""
        return self.certs / f"node-{node}"

    def start_node(self, node: int) -> None:
        """Start a SuperNode; if it is refused because its old self still counts as there, again until it is accepted.

        A node killed without a word counts as there for up to a minute after its last sign of life.
        """
        with self._lock:
            self._wanted[node] = time.monotonic() + patience(2 * LEASE_SECONDS)
            self._start_node(node)

    def kill_node(self, node: int, number: int = signal.SIGKILL) -> None:
        """Send a SuperNode a signal and end what is left of it and of all it has started."""
        with self._lock:
            self._wanted.pop(node, None)
            self._started[f"node-{node}"].end(number)

    def supernode(
        self, *, key: Path | None = None, secure: bool | None = None, signs: bool = False, **config: Any
    ) -> list[str]:
        """The words that start a SuperNode of this federation with a config and, if given, a private key.

        With ``signs`` the config names the key, too: the node signs its hello with it.
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
        """What ``flwr supernode list`` knows of the nodes: ``node-id``, ``status`` and times."""
        text = self.flwr("supernode", "list", CONNECTION, "--format", "json").stdout
        return list(json.loads(text[text.index("{") :])["nodes"])

    def node_id(self, node: int) -> str | None:
        """The number by which Flower knows a node that runs; None until it is accepted."""
        with self._lock:
            started = self._started.get(f"node-{node}")
            told = ACCEPTED.findall(started.said) if started is not None and started.running else []
        return told[-1] if told else None

    def ready(self, nodes: Iterable[int] | None = None, seconds: float = 180.0) -> float:
        """Wait until the nodes (all that are to run, if left out) are accepted; gives how many seconds it took.

        Raises
        ------
        FedquiltError
            if a process ended for another reason than its old lease, or the seconds are over; shows its log's end.
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
        own = self.home if name == "superlink" else self.folder / "homes" / name  # nodes are on machines of their own
        environment = {**self._environment, "FLWR_HOME": str(own)}
        started = Started(name, words, self.log(name), environment, f"{self.folder}/{name}")
        self._started[name] = started
        return started

    def flwr(self, *words: str, check: bool = True, seconds: float = 180.0) -> subprocess.CompletedProcess[str]:
        """What Flower's command says, asked with this federation's connections (``trial`` is its name).

        Raises
        ------
        FedquiltError
            if it fails, unless ``check`` is off; or takes longer than ``seconds``.
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
        """The file of what a process (``superlink``, ``node-0``, ...) has written, in all its lives."""
        return self.folder / "logs" / f"{name}.log"

    def logs(self, name: str) -> str:
        """What a process has written since it was last started."""
        return self._started[name].said

    def ended(self) -> list[Started]:
        """The processes that have ended although they should run, and will not be started again."""
        with self._lock:
            names = {f"node-{node}": node for node in self._wanted} | {"superlink": -1}
            found = [(node, self._started[name]) for name, node in names.items()]
            return [one for node, one in found if not one.running and not self._may_try_again(node, one)]

    def process(self, name: str) -> Started:
        """The process that ``start`` last started under this name."""
        return self._started[name]

    def close(self) -> None:
        """End everything; nodes first, so that they can sign off."""
        with uninterrupted():
            self._over.set()
            if self._watch.is_alive():
                self._watch.join(30)
            with self._lock:
                self._wanted.clear()
                order = sorted(self._started.values(), key=lambda one: one.name == "superlink")
                for one in order:
                    if one.running and one.name != "superlink":
                        one.process.terminate()  # all at once: each takes seconds
                for one in order:
                    one.end()

    def _start_node(self, node: int) -> None:
        more = self._node_config(node) if callable(self._node_config) else self._node_config
        config = {"partition-id": node, "num-partitions": self.num_nodes, "memories": str(self.folder / "sites")}
        key = self.key(node) if self.secure else None
        self.start(f"node-{node}", *self.supernode(key=key, signs=True, **{**config, **more}))

    def _may_try_again(self, node: int, ended: Started) -> bool:
        """Whether a node ended because its old self still counts as there, which passes."""
        return REFUSED in ended.said and time.monotonic() < self._wanted.get(node, 0.0)

    def _supervise(self) -> None:
        """Start the nodes again that were refused; the others' end is for ``ready`` to tell."""
        while not self._over.wait(_AGAIN):
            with self._lock:
                for node in [*self._wanted]:
                    ended = self._started[f"node-{node}"]
                    if not ended.running and self._may_try_again(node, ended):
                        ended.end()
                        self._start_node(node)
