"""Running a config: rounds, evaluation and record; resuming a stopped run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from fedquilt.adapters.folders import replace_folder
from fedquilt.config.load import NOT_DETERMINING, parse, resolved
from fedquilt.config.schema import Config
from fedquilt.core.closing import closed
from fedquilt.core.collector import spared
from fedquilt.core.errors import RoundError, RunError
from fedquilt.core.loop import rounds
from fedquilt.core.profiling import span
from fedquilt.core.shell import command
from fedquilt.core.types import Tree
from fedquilt.engine.cohort import uniform_cohorts
from fedquilt.engine.flower.handshake import run_key
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment.build import Experiment, build
from fedquilt.experiment.defence import bounds_of, check_of
from fedquilt.experiment.disclosed import disclosing
from fedquilt.experiment.engine import EMBEDDED, Connect, Engine, in_turn
from fedquilt.experiment.export import save_adapters
from fedquilt.experiment.forecast import work_of
from fedquilt.experiment.inputs_record import names_of, outputs_record, weights_digest
from fedquilt.experiment.progress import Forecasting
from fedquilt.experiment.round_record import are_finite, final_record, message_counter, round_line
from fedquilt.experiment.same_inputs import all_rows, rows_as_at_start, same_inputs
from fedquilt.experiment.server import endpoint_record
from fedquilt.experiment.side_by_side import chosen, refuse_elsewhere, with_processes
from fedquilt.experiment.stopped import advice, is_finished, refuse_to_go_back
from fedquilt.experiment.threads import restored_threads, spare_threads
from fedquilt.experiment.trackers import refuse_missing
from fedquilt.experiment.tracking import Tracking, tracking
from fedquilt.privacy.spending import cohort_key, cohort_stream, hides_cohorts, spending
from fedquilt.record import Record, environment, hold, read_environment, read_rounds
from fedquilt.record.folder import ADAPTERS


def run(
    config: Config,
    folder: Path | str,
    progress: object = None,
    connect: Connect = EMBEDDED,
    *,
    label: str | None = None,
) -> Path:
    """Run a config into a new folder; returns the folder.

    Parameters
    ----------
    config
        The config.
    folder
        The run's folder.
    progress
        Receives reports: an object with any of the methods of ``Progress``, or None.
    connect
        How the run connects to its engine; by default all clients are in this process.
    label
        The name of the run in a comparison, which reports show.

    Raises
    ------
    FedquiltError
        RunError if the folder exists and is not empty or cannot be written, RoundError if too few clients reply, and
        the errors of ``build``, before the folder is made.
    """
    folder = Path(folder)
    Record.refuse(folder)
    refuse_elsewhere(config, connect.name)
    refuse_missing(config.track)
    with spared(), hold(folder) as held, restored_threads():
        if config.engine.processes > 1:
            torch.set_num_threads(1)  # a forked process cannot use the threads of the one that it is a copy of
        elif config.threads is not None:
            torch.set_num_threads(config.threads)
        reporting = Forecasting(progress)
        reporting.stage(folder.name, "loading data and model")
        with span("start-up"):
            experiment = build(connect.adapted(config), connect.here)
        if (told := spare_threads(experiment)) is not None:
            reporting.say(told)
        bench = experiment.groups[0].bench  # device and precision are one for all groups
        around = environment(
            seed=config.seed,
            device=str(bench.device),
            precision=bench.precision,
            model=weights_digest(experiment.models),
            rows=all_rows(experiment),
            architecture=", ".join(dict.fromkeys(group.architecture for group in experiment.groups)),
        )
        if len(experiment.federation.layouts) > 1 and not experiment.traits.across:
            around["apart"] = [*experiment.federation.layouts]  # the method runs separately in each of them
        key, choice = run_key(), chosen(experiment)
        if choice.said:
            reporting.say(choice.said)
        engine = connect.make(experiment, key, {}, reporting)
        experiment = experiment.announced(engine.announced)
        around |= {"engine": connect.name, "run_key": key, "cohort_key": cohort_key(config)}
        around |= {"outputs": outputs_record(experiment.models), **endpoint_record(config)}
        around |= {} if label is None else {"label": label}
        around |= {} if choice.width == 1 else {"batch_clients": choice.width}
        record = Record.create(folder, resolved(config), around, experiment.partition, held)
        return _go_on(experiment, record, 0, None, engine, reporting)


def resume(
    folder: Path | str,
    config: Config | None = None,
    progress: object = None,
    connect: Connect = EMBEDDED,
    *,
    back_to: int | None = None,
) -> Path:
    """Resume a run from its last complete checkpoint; the result is bit-identical to that of an uninterrupted run.

    A finished run is not changed, unless ``back_to`` is given.

    Parameters
    ----------
    folder
        The run's folder.
    config
        If given, must determine the same result as the run's own; ``engine.processes`` is then that of this config.
    progress
        Receives reports: an object with any of the methods of ``Progress``, or None.
    connect
        How the run connects to its engine, which must be the one that it began with.
    back_to
        Continue from the state after this many rounds (0: from the start), whose checkpoint must exist, and discard
        later rounds.

    Raises
    ------
    FedquiltError
        RunError if another process writes to the folder, a file in it was changed, or the run cannot go back.
    """
    folder, wanted = Path(folder), None if config is None else resolved(config)
    if back_to is None and is_finished(Record.open(folder, wanted, NOT_DETERMINING)):
        return folder
    with spared(), hold(folder) as held, restored_threads():
        record = Record.open(folder, wanted, NOT_DETERMINING, held)
        if back_to is None and is_finished(record):  # finished by another process in the meantime
            return folder
        record.check()
        objects = {} if config is None else config.objects
        around, wished = read_environment(folder), config
        config = parse(record.config).with_objects(objects)
        if wished is not None:
            config = with_processes(folder, config, wished.engine.processes, around["threads"])
            config = config.model_copy(update={"track": wished.track})
            refuse_elsewhere(config, connect.name)
        began_on = around.get("engine", EMBEDDED.name)
        if began_on != connect.name:  # the clients' memories belong to that engine
            raise RunError(f"{folder}: began with --engine {began_on}; go on with the same one, not {connect.name}")
        if back_to is not None:
            refuse_to_go_back(record, config, back_to)
        at = back_to if back_to is not None else None if record.has_checkpoint else 0
        start, state, memories = record.load_checkpoint(at)
        torch.set_num_threads(around["threads"])  # sums depend on the number of threads
        reporting = Forecasting(progress)
        reporting.stage(folder.name, "loading data and model")
        experiment = build(connect.adapted(config), connect.here)
        engine = connect.make(experiment, around.get("run_key", ""), memories, reporting)
        experiment = experiment.announced(rows_as_at_start(folder, engine.announced))
        same_inputs(folder, experiment)
        again: dict[str, Any] = {"resumed": True}
        if back_to is None:
            record.truncate_rounds()
        else:
            again["abandoned_rounds"] = record.go_back(back_to)
        return _go_on(experiment, record, start, state, engine, reporting, again)


def _go_on(
    experiment: Experiment,
    record: Record,
    start: int,
    state: Tree,
    engine: Engine,
    reporting: Forecasting,
    again: Mapping[str, Any] | None = None,
) -> Path:
    """Run the rounds from ``start`` on.

    Parameters
    ----------
    experiment : the experiment.
    record : the run's folder.
    start : the first round.
    state : the server's state before it.
    engine : the engine.
    reporting : receives reports.
    again : added to the record of the first round when a run is resumed.
    """
    with tracking(experiment.config, record, start, reporting.say) as tracked:
        if not isinstance(engine, LocalEngine):
            return _all_rounds(experiment, record, start, state, engine, reporting, tracked, again)
        engine.keep_ledgers(record.folder / "sites")  # the same folder as in Flower's simulation
        engine.width = read_environment(record.folder).get("batch_clients", 1)
        with closing(engine):
            return _all_rounds(experiment, record, start, state, engine, reporting, tracked, again)


def _all_rounds(
    experiment: Experiment,
    record: Record,
    start: int,
    state: Tree,
    engine: Engine,
    reporting: Forecasting,
    tracked: Tracking,
    again: Mapping[str, Any] | None,
) -> Path:
    config, began = experiment.config, time.perf_counter()
    profiles = experiment.federation.profiles
    check = check_of(config, profiles)
    hiding = read_environment(record.folder).get("cohort_key")  # runs without a key draw cohorts from the seed
    cohorts = uniform_cohorts(profiles, config.cohort, cohort_stream(config, hiding))
    reporting.begins(record.folder.name, start, config, work_of(experiment, start))
    finished = rounds(
        experiment.method,
        cohorts,
        engine.send,
        experiment.rng,
        num_rounds=config.rounds,
        state=state,
        start=start,
        quorum=config.quorum,
        min_replies=config.defence.min_cohort,
        check=check,
        bounds=bounds_of(config),
    )
    heads = {group.config.head.policy for group in experiment.groups}
    names = names_of(experiment.partition, experiment.groups)
    hidden = hides_cohorts(experiment.federation, heads, hiding, stateless=experiment.traits.stateless)
    spent = spending(config, cohorts, sum(not one.public for one in experiment.method.exchanges), hidden)
    since = message_counter(engine)
    before = [one for one in read_rounds(record.folder) if one["round"] < start] if start else []
    disclosed = disclosing(config.disclosure, experiment.federation.vertical, before)
    try:
        for done in finished:
            state = done.state
            reporting.stage(record.folder.name, "evaluating")
            line = round_line(experiment, done, engine.memories, since(), clients=engine.has_clients)
            line |= {"privacy": spent(done.number), **disclosed(line), **in_turn(engine), **tracked.failures()}
            if done.number == start:
                line |= again or {}  # so that readers of the record see that the run was resumed
            with span("checkpoint"):
                record.append_round(line)
                record.save_checkpoint(done.number + 1, state, engine.memories, are_finite(line))
            tracked.round(line, names)
            reporting.round({**line, "names": names, "run": record.folder.name, "rounds": config.rounds})
    except RoundError as error:
        raise RoundError(f"{error}; {advice(record, config)}") from error
    reporting.stage(record.folder.name, "writing adapters")
    record.check()  # no adapters are written to a folder that was deleted or replaced in the meantime
    try:
        with span("export"):
            replace_folder(
                record.folder / ADAPTERS, lambda fresh: save_adapters(experiment, state, engine.memories, fresh)
            )
    except RunError as error:
        left = command("run", "--resume", record.folder)
        raise RunError(f"{error}; all rounds are in the checkpoint, so only this is left to do: {left}") from error
    reporting.stage(record.folder.name, "evaluating the final model")
    last = closed(
        experiment.method, state, profiles, engine.send, experiment.rng, num_rounds=config.rounds, check=check
    )
    ended = final_record(read_rounds(record.folder)[-1]["evaluation"], last, since())
    tracked.ended(config.rounds, ended, names)
    ended |= {"rounds": config.rounds, "seconds": time.perf_counter() - began, **tracked.failures()}
    record.save_result({"status": "finished", **ended})
    reporting.ended(record.folder.name)
    return record.folder
