"""``fedquilt run``."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli.screen import Shown, out, show_table
from fedquilt.core.disk import write_bytes
from fedquilt.core.errors import ConfigError, suggestion
from fedquilt.core.profiling import Profile, recording
from fedquilt.core.shell import command
from fedquilt.record import Record

ENGINES = ("embedded", "flower-sim", "flower")


def run(
    config: Annotated[Path | None, typer.Argument(help="The run file (TOML).")] = None,
    changes: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Keys to override.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the interrupted run in this folder.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Run folder; OUTPUT/NAME of the run file if left out.")] = None,
    back_to: Annotated[
        int | None,
        typer.Option(
            "--from",
            metavar="ROUND",
            min=0,
            help="With --resume: continue from the state after this many rounds, and discard later rounds. Which "
            "checkpoints exist depends on checkpoints.keep in the run file; 0 starts again.",
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Execution engine: embedded (this process), flower-sim (Flower's simulation), or flower (a "
            "federation, see --superlink)."
        ),
    ] = "embedded",
    superlink: Annotated[
        str | None,
        typer.Option(help="With flower: name of the SuperLink connection in Flower's config.toml."),
    ] = None,
    cpus: Annotated[float, typer.Option(help="CPUs per simulated client (flower-sim).")] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs per simulated client, may be fractional (flower-sim).")] = 0.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Show where the time went, and write it to trace.json in the run folder, in Chrome's trace format. "
            "Only with --engine embedded.",
        ),
    ] = False,
) -> None:
    """Run one federation, or continue an interrupted run."""
    from fedquilt.config.load import load

    _refuse(engine, superlink=superlink, resume=resume, config=config, back_to=back_to, profile=profile)
    target = resume
    spans = None
    try:
        settings = load(config, changes or [])[0] if config is not None else None
        if settings is not None:
            target = folder or Path(settings.output) / settings.name
            Record.refuse(target)
        # importing takes seconds, so errors of the command line and the run file come first
        from fedquilt.experiment import resume as resumed
        from fedquilt.experiment import run as embedded
        from fedquilt.experiment.flower import simulate
        from fedquilt.experiment.flower_app import deploy

        with Shown(quiet) as progress, recording() if profile else nullcontext() as spans:
            if engine == "flower-sim" and target is not None:
                simulate(settings, target, progress, cpus=cpus, gpus=gpus, back_to=back_to)
            elif superlink is not None and target is not None:
                deploy(settings, target, superlink, progress.say)
            elif resume is not None:
                resumed(resume, progress=progress, back_to=back_to)
            elif settings is not None and target is not None:
                embedded(settings, target, progress)
    except KeyboardInterrupt:
        try:
            _stopped(target, engine, superlink)
        finally:
            if engine == "flower-sim":  # threads of Flower's simulation may wait for workers that are gone
                sys.stdout.flush()
                os._exit(130)
    if spans is not None and target is not None:
        _show_profile(spans, target)
    out.print(f"{target}: finished; show it with: {command('report', target)}", highlight=False, soft_wrap=True)


def _refuse(
    engine: str,
    *,
    superlink: str | None,
    resume: Path | None,
    config: Path | None,
    back_to: int | None,
    profile: bool,
) -> None:
    """Raise ConfigError for options that do not go together."""
    if engine not in ENGINES:
        raise ConfigError(
            f"--engine {engine}: no such engine{suggestion(engine, ENGINES)}; allowed: {', '.join(ENGINES)}"
        )
    if (engine == "flower") != (superlink is not None):
        raise ConfigError(
            "--engine flower and --superlink NAME go together: NAME is a connection in Flower's config.toml "
            "(`flwr config list`)"
        )
    if (config is None) == (resume is None):
        raise ConfigError(
            f"give a run file, as in: {command('run', 'my.toml')}; or an interrupted run, as in: "
            f"{command('run', '--resume', 'runs/my')}"
        )
    if back_to is not None and (resume is None or engine == "flower"):
        raise ConfigError(
            f"--from {back_to}: needs --resume RUN, and does not work with --engine flower, whose clients keep their "
            "state on their own disks"
        )
    if profile and engine != "embedded":
        raise ConfigError(f"--profile: does not work with --engine {engine}, whose clients are other processes")


def _show_profile(profile: Profile, folder: Path) -> None:
    """Print the sums of all spans, and write the spans to a trace file."""
    write_bytes(folder / "trace.json", profile.trace().encode())
    whole = sum(share.own_seconds for share in profile.shares.values())
    rows = [
        (
            share.name,
            str(share.count),
            f"{share.seconds:.2f}",
            f"{share.own_seconds:.2f}",
            f"{share.cpu_seconds:.2f}",
            f"{100 * share.own_seconds / whole:.1f}%",
        )
        for share in sorted(profile.shares.values(), key=lambda share: -share.own_seconds)
    ]
    heading = ("part", "times", "seconds", "without inner parts", "cpu seconds", "share")
    show_table([heading, *rows], "Where the time went")
    out.print(f"{folder / 'trace.json'}: open it at ui.perfetto.dev or chrome://tracing", soft_wrap=True)


def _stopped(target: Path | None, engine: str, superlink: str | None) -> None:
    """Say how to continue the run after Ctrl-C."""
    if target is None or not (target / "config.json").exists():
        text = "stopped before the run started; nothing was saved"
    else:
        text = f"stopped before the first round was finished; {target} has no checkpoint yet"
        record = Record.open(target)
        if record.has_checkpoint:
            text = f"stopped; {target / 'checkpoint.json'} holds the first {record.next_round} rounds"
        same = [] if engine == "embedded" else ["--engine", engine, *(["--superlink", superlink] if superlink else [])]
        text += f"; continue with: {command('run', '--resume', target, *same)}"
    out.print(text, highlight=False, soft_wrap=True)
    raise typer.Exit(130)
