"""Clients as cards: what each has, what it sent and received, and how it scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from fedquilt.report.charts import Chart, bars, lines
from fedquilt.report.columns import counted, human_bytes, human_metric
from fedquilt.report.html import facts_html, table_html
from fedquilt.report.runs import Run, client_names, client_table
from fedquilt.report.score_charts import thinned, tidy
from fedquilt.report.scores import LOWER_IS_BETTER, client_curves, received_curves, scale_of
from fedquilt.report.table import Groups

MOST_CARDS = 48
"""The largest number of cards: of more clients the first half of them, and those that score worst and best."""

MOST_ROWS = 500
"""The largest number of lines of a table of clients or of dropped replies."""

MOST_SEEDS = 5
"""The largest number of seeds whose clients have cards."""

SCORES, LABELS = "client-scores", "client-labels"
"""The names of the charts that all cards share, each with rows of all clients."""

_MOST_LABELS = 12
_MOST_LINES = 6


@dataclass
class Client:
    """What is known of one client: its entry in the partition, and its part in the rounds."""

    about: Mapping[str, Any]
    name: str
    seed: str = ""
    up: int = 0
    down: int = 0
    rounds: int = 0
    dropped: int = 0
    reasons: list[str] = field(default_factory=list)
    score: float | None = None

    @property
    def id(self) -> int:
        """The client's number."""
        return int(self.about["id"])

    @property
    def key(self) -> int | str:
        """What the rows of shared charts call it: its number, with its seed where there are several."""
        return f"{self.id}, seed {self.seed}" if self.seed else self.id


def clients_of_run(run: Run, metric: str, *, by_seed: bool = False) -> list[Client]:
    """Return the clients of a run with their bytes, rounds and last scores, by their numbers.

    With ``by_seed`` they stand beside those of other seeds, and each tells its own.
    """
    names, seed = client_names(run), str(run.seed) if by_seed else ""
    found = {int(one["id"]): Client(one, names[int(one["id"])], seed) for one in client_table(run)}
    for line in run.rounds:
        there: set[int] = set()
        for exchange in line.get("exchanges") or ():
            for key, sent in (exchange.get("clients") or {}).items():
                if one := found.get(int(key)):
                    one.up += int(sent.get("bytes_up", 0))
                    one.down += int(sent.get("bytes_down", 0))
                    there.add(one.id)
            for key, reason in (exchange.get("dropped") or {}).items():
                if one := found.get(int(key)):
                    one.dropped += 1
                    one.reasons.append(str(reason))
        for id in there:
            found[id].rounds += 1
    for id, (_, values) in _curves(run, metric).items():
        if id in found and values:
            found[id].score = values[-1]
    return [found[id] for id in sorted(found)]


def chosen(clients: Sequence[Client], metric: str) -> list[Client]:
    """Return at most ``MOST_CARDS`` clients: the first half of them, and the quarters that score worst and best."""
    if len(clients) <= MOST_CARDS:
        return [*clients]
    scored = sorted((one for one in clients if one.score is not None), key=lambda one: one.score or 0.0)
    if metric in LOWER_IS_BETTER:
        scored.reverse()
    ends = [*scored[: MOST_CARDS // 4], *scored[-(MOST_CARDS // 4) :]]
    kept = {one.id: one for one in (*clients[: MOST_CARDS // 2], *ends)}
    return [kept[id] for id in sorted(kept)]


def shared_charts(groups: Groups, shown: Sequence[tuple[Run, Sequence[Client]]], metric: str) -> list[Chart]:
    """Return the charts of the cards' clients, run by run: their scores over rounds by label, and their labels."""
    scale, y = scale_of(metric)
    scores = [row for run, clients in shown for row in _score_rows(groups, run, clients, metric, scale)]
    labels = [
        [one.key, count, str(name)]
        for _, clients in shown
        for one in clients
        for name, count in _labels(one)[:_MOST_LABELS]
        if count
    ]
    columns = {"client": "client", "series": "method", "x": "round", "y": y}
    spec = lines("round", y, "method", places=1 if metric == "accuracy" else 3)
    found = [Chart(SCORES, "Scores of each client over rounds", "", small(spec), columns, scores)] if scores else []
    if labels:
        columns = {"client": "client", "x": "training rows", "y": "label"}
        spec = small(bars("training rows", "", places=0, num_bars=5))
        found.append(Chart(LABELS, "Labels of each client", "", spec, columns, labels))
    return found


def _score_rows(groups: Groups, run: Run, clients: Sequence[Client], metric: str, scale: float) -> Iterator[list[Any]]:
    """The scores of a run's clients, by the methods that had the same partition of the data."""
    keys, digest = {one.id: one.key for one in clients}, run.partition.get("digest")
    alike = {label: [one for one in own if one.partition.get("digest") == digest] for label, own in groups.items()}
    same = {label: run if run in own else own[0] for label, own in alike.items() if own}
    for label, one in [*same.items()][:_MOST_LINES]:
        for id, (rounds, values) in sorted(_curves(one, metric).items()):
            if id in keys:
                points, _ = thinned([*zip(rounds, values, strict=True)])
                yield from ([keys[id], label, at + 1, tidy(value * scale)] for at, value in points)


def small(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A specification for the little room on a card: without legend and without titles of axes."""

    def less(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: less(one) for key, one in value.items()}
        return [less(one) for one in value] if isinstance(value, list) else value

    found: dict[str, Any] = less(spec)
    found["height"] = 90
    found.pop("params", None)
    for one in (found, *found.get("layer", ())):
        encoding = one["encoding"]
        encoding.pop("opacity", None)
        for key, channel in encoding.items():
            if key in ("x", "y"):
                channel["title"] = None
                channel["axis"] = {**(channel.get("axis") or {}), "tickCount": 3}
            elif key in ("color", "strokeDash"):
                channel["legend"] = None
    return found


def card_html(one: Client, metric: str, drawn: Sequence[Chart]) -> str:
    """The card of a client, with places for its part of the shared charts."""
    about = one.about
    group = str(about.get("group") or "")
    facts = {"model": str(about.get("architecture") or "-"), **_own_facts(one, metric)}
    places = []
    for chart in drawn:
        own = [row for row in chart.rows if row[0] == one.key]
        if own:
            words = _labels_words(own) if chart.name == LABELS else _scores_words(own)
            what = "training rows by label" if chart.name == LABELS else chart.columns["y"]
            places.append(
                f'<p class="small">{escape(what)}</p>'
                f'<div class="drawing small" data-chart="{chart.name}" data-only="{one.key}" role="img" '
                f'aria-label="{escape(words)}"></div>'
            )
    words = " ".join([one.name, group, *facts.values(), *one.reasons]).lower()
    score = "" if one.score is None else f"{one.score:.6g}"
    heading = f"<h3>{escape(f'Client {one.name}')}</h3>"
    badge = f'<span class="badge">{escape(group)}</span>' if group else ""
    lost = ""
    if one.dropped:
        said = f"dropped {counted(one.dropped, 'time')}: {one.reasons[-1]}"
        lost = f'<p class="lost">{escape(said)}</p>'
    return (
        f'<article class="card" data-words="{escape(words)}" data-group="{escape(group)}" data-id="{one.id}" '
        f'data-seed="{escape(one.seed)}" '
        f'data-score="{score}"><header>{heading}{badge}</header>{facts_html(facts)}{lost}{"".join(places)}</article>'
    )


def table_of_clients(clients: Sequence[Client], metric: str) -> str:
    """The clients as a table, one line each."""
    with_group, by_seed = any(one.about.get("group") for one in clients), any(one.seed for one in clients)
    first = ["client", *(["seed"] if by_seed else []), *(["group"] if with_group else [])]
    head = [*first, "model", "budget", "rows", "rounds", "up", "down", "dropped"]
    body = [
        [
            one.name,
            *([one.seed] if by_seed else []),
            *([str(one.about.get("group") or "-")] if with_group else []),
            str(one.about.get("architecture") or "-"),
            budget_words(one.about.get("budget")),
            _rows(one),
            str(one.rounds),
            human_bytes(one.up),
            human_bytes(one.down),
            str(one.dropped),
            human_metric(one.score, metric),
        ]
        for one in clients[:MOST_ROWS]
    ]
    left = f"The first {MOST_ROWS} of {len(clients):,} clients." if len(clients) > MOST_ROWS else ""
    return table_html([[*head, f"last {metric}"], *body], "All clients", left)


def budget_words(budget: Any) -> str:
    """A budget in words: a number of layers, or several bounds."""
    if budget is None:
        return "-"
    if isinstance(budget, Mapping):
        known = [f"{key.replace('_', ' ')} {value}" for key, value in budget.items() if value is not None]
        return ", ".join(known) or "-"
    return counted(int(budget), "layer")


def _own_facts(one: Client, metric: str) -> dict[str, str]:
    facts = {"budget": budget_words(one.about.get("budget"))}
    if one.about.get("rank") is not None:
        facts["rank"] = str(one.about["rank"])
    facts |= {"rows": _rows(one), "rounds": str(one.rounds), "sent": human_bytes(one.up)}
    facts["received"] = human_bytes(one.down)
    facts |= {} if one.score is None else {metric: human_metric(one.score, metric)}
    return facts | ({"seed": one.seed} if one.seed else {})


def _rows(one: Client) -> str:
    count = len(one.about["train"]) if "train" in one.about else one.about.get("examples")
    return "-" if count is None else f"{int(count):,}"


def _labels(one: Client) -> list[tuple[str, int]]:
    return sorted((one.about.get("labels") or {}).items(), key=lambda pair: -int(pair[1]))


def _labels_words(rows: Sequence[Sequence[Any]]) -> str:
    return f"Training rows by label: {', '.join(f'{name} {count:,}' for _, count, name in rows)}"


def _scores_words(rows: Sequence[Sequence[Any]]) -> str:
    last = {label: value for _, label, _, value in rows}
    return f"Score over rounds; at the end {', '.join(f'{label} {value}' for label, value in last.items())}"


def _curves(run: Run, metric: str) -> dict[int, tuple[list[int], list[float]]]:
    return client_curves(run, metric) or received_curves(run, metric)
