"""The trackers of experiments: TensorBoard, MLflow, Weights & Biases and Trackio behind one small interface.

No other module imports them. Whatever they raise, ``experiment.tracking`` catches, which calls each in a thread.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from threading import get_ident
from typing import Any, NamedTuple, Protocol, TextIO

from fedquilt.core.errors import ConfigError
from fedquilt.core.shell import pip_install
from fedquilt.core.track import Track


class Tracked(NamedTuple):
    """A run as trackers know it.

    Attributes
    ----------
    key
        The key of the run, which no other run has; its first characters tell runs of one name apart.
    project, name, group
        The project, the run's name, and the name of the comparison or run file that it belongs to.
    folder
        What a tracker keeps on this machine is below it.
    settings
        The settings that are sent.
    first
        The first step that will be sent: 1, or a later one if the run is resumed.
    """

    key: str
    project: str
    name: str
    group: str
    folder: Path
    settings: Mapping[str, Any]
    first: int

    @property
    def resumed(self) -> bool:
        """Whether the tracker may know the run already."""
        return self.first > 1


class Tracker(Protocol):
    """A tracker that follows one run.

    Attributes
    ----------
    shown
        How to look at what it was sent.
    """

    shown: str

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a step."""

    def end(self, finished: bool) -> None:
        """Send what is left; nothing follows, unless an unfinished run is resumed."""


def refuse_missing(track: Track) -> None:
    """Raise ConfigError, with the command that installs it, if the package of a tracker is missing."""
    problems = [
        f"track.to = '{name}': {name} is not installed; install it with `{pip_install(name)}`, or leave it out"
        for name in track.trackers
        if not is_installed(name)
    ]
    if problems:
        raise ConfigError(problems)


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name, such as wandb makes, does not count."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


class TensorBoard:
    """Event files in ``FOLDER/tensorboard/PROJECT/NAME``."""

    def __init__(self, run: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        root = run.folder / "tensorboard"
        own = root / run.project / f"{run.name}-{run.key[:8]}"  # where another run has the name
        usual = root / run.project / run.name
        place = own if own.exists() or (usual.exists() and not run.resumed) else usual
        # steps from there on are shown no more: they will be sent again
        self._writer = SummaryWriter(str(place), purge_step=run.first if run.resumed else None)
        if not run.resumed:
            self._writer.add_text("settings", f"```\n{json.dumps(run.settings, indent=1)}\n```")
        self.shown = shlex.join(["tensorboard", "--logdir", str(root)])

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, finished: bool) -> None:
        self._writer.close()


class MLflow:
    """A run of MLflow, in ``FOLDER/mlflow.db`` or at MLFLOW_TRACKING_URI; found again by the key of the run."""

    def __init__(self, run: Tracked) -> None:
        # a server that does not answer must not hold a run up for the ten minutes that are usual there
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            run.folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{run.folder.absolute() / 'mlflow.db'}"
        self._metric, self._client = Metric, MlflowClient(uri)
        found = self._client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found else self._client.create_experiment(run.project)
        known = self._client.search_runs([experiment], f"tags.`fedquilt.run` = '{run.key}'") if run.resumed else []
        if known:
            self._id = known[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {"fedquilt.run": run.key, "fedquilt.group": run.group}
            self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
            params = [Param(name, str(value)) for name, value in run.settings.items()]
            self._client.log_batch(self._id, params=params)
        served = uri.startswith(("http:", "https:"))
        self.shown = uri if served else shlex.join(["mlflow", "ui", "--backend-store-uri", uri])

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in numbers.items()]
        for begin in range(0, len(metrics), 1000):  # MLflow takes no more at once
            self._client.log_batch(self._id, metrics=metrics[begin : begin + 1000])

    def end(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


class WandB:
    """A run of Weights & Biases, whose id is the key of the run; offline unless there is a key of wandb."""

    def __init__(self, run: Tracked) -> None:
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        # without a key it would ask for one on the terminal
        mode = os.environ.get("WANDB_MODE") or "online"
        if mode not in ("offline", "dryrun", "disabled") and not wandb.api.api_key:
            mode = "offline"
        run.folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(  # nothing is sent that was not asked for: no code, commit, machine, packages, output
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=30,
        )
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            group=run.group,
            id=run.key,
            resume="allow",
            dir=str(run.folder),
            mode=mode,
            config=dict(run.settings),
            settings=settings,
        )
        self._run.define_metric("*", step_metric="round")
        left = f"{shlex.quote(str(run.folder / 'wandb'))}/offline-run-*-{run.key}"
        self.shown = str(self._run.url) if mode == "online" else f"wandb sync {left}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({**numbers, "round": step})

    def end(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _OfOtherThreads(io.TextIOBase):
    """Standard output without what this thread writes: a call that hangs must not take the output of the run."""

    def __init__(self, shown: TextIO) -> None:
        self._shown, self._thread = shown, get_ident()

    def write(self, text: str) -> int:
        return len(text) if get_ident() == self._thread else self._shown.write(text)

    def flush(self) -> None:
        self._shown.flush()

    def isatty(self) -> bool:
        return self._shown.isatty()

    def fileno(self) -> int:
        return self._shown.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._shown.encoding


class Trackio:
    """A run of Trackio, in ``FOLDER/trackio`` or TRACKIO_DIR."""

    def __init__(self, run: Tracked) -> None:
        folder = os.environ.setdefault("TRACKIO_DIR", str((run.folder / "trackio").absolute()))  # read on import
        with redirect_stdout(_OfOtherThreads(sys.stdout)):  # it prints how to look at the run
            import trackio

            self._run = trackio.init(
                project=run.project,
                name=run.name,
                group=run.group,
                config=dict(run.settings),
                resume="allow" if run.resumed else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.shown = f"TRACKIO_DIR={shlex.quote(folder)} {shlex.join(['trackio', 'show', '--project', run.project])}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        with redirect_stdout(_OfOtherThreads(sys.stdout)):
            self._run.log(dict(numbers), step=step)

    def end(self, finished: bool) -> None:
        with redirect_stdout(_OfOtherThreads(sys.stdout)):
            import trackio

            trackio.finish()  # not of the run alone, which would be ended and told of once more when Python ends


TRACKERS: Mapping[str, Callable[[Tracked], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
    "trackio": Trackio,
}
"""The trackers by their names, which are those of their packages."""
