"""Contradictions between sections of a run file."""

from __future__ import annotations

from fedquilt.config.schema import Config


def cross_problems(config: Config) -> list[str]:
    """Every contradiction between sections; keys that are spoilt are skipped."""
    problems, spoilt = [], config.spoilt
    clients, num = config.clients, config.partition.num_clients
    if not spoilt.touches("clients.cohort", "partition.num_clients"):
        if clients.cohort is not None and clients.cohort > num:
            problems.append(
                f"clients: cohort = {clients.cohort} is more than partition.num_clients = {num}; take at most {num}, "
                "or leave cohort out for all clients"
            )
        elif not spoilt.touches("defence.min_cohort") and config.defence.min_cohort > config.cohort:
            problems.append(
                f"defence: min_cohort = {config.defence.min_cohort} is more than the {config.cohort} clients that take "
                "part in a round; take fewer, or raise clients.cohort"
            )
    if not spoilt.touches("clients.ranks", "adapter") and clients.ranks and not config.groups:
        most = max(clients.ranks)
        if most > config.adapter.largest_rank:
            problems.append(
                f"adapter: rank = {config.adapter.rank} is the server's, and clients.ranks has {most}; raise it to "
                f"{most}"
            )
    keys = config.network.node_keys
    if not spoilt.touches("network.node_keys", "partition.num_clients") and keys and len(keys) != num:
        problems.append(
            f"network: node_keys has {len(keys)} keys for partition.num_clients = {num}; give one for each client, in "
            "their order, or leave it out"
        )
    if config.parties and not spoilt.touches("engine") and config.engine.batch_clients != "off":
        problems.append(
            f"engine: batch_clients = {config.engine.batch_clients!r} is for clients with one model, and the parties "
            "of a vertical federation have different ones; leave it out"
        )
    if not spoilt.touches("engine") and config.engine.prefix_cache != "off":
        cache = f"engine: prefix_cache = {config.engine.prefix_cache!r}"
        if config.parties:
            problems.append(f"{cache} is for clients of a horizontal federation; leave it out")
        if config.engine.batch_clients != "off":
            problems.append(f"{cache} and batch_clients = {config.engine.batch_clients!r}; choose one of them")
    if not spoilt.touches("engine", "threads") and config.engine.processes > 1:
        several = f"engine: processes = {config.engine.processes}"
        if config.threads not in (None, 1):
            problems.append(f"{several} have one thread each, and threads = {config.threads}; leave threads out")
    return problems
