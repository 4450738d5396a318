import csv

from fedquilt.core.rng import Rng
from fedquilt.experiment.data import assign, read


def test_text_ids_of_natural_clients_are_their_names(config, tmp_path):
    sites = ["Chur", "Basel"]
    rows = [(f"word {n}", "ab"[n % 2], sites[n < 15]) for n in range(40)]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "site"), *rows])
    wanted = config(
        *("data.source=./rows.csv", "data.group=site", "partition.scheme=natural", "partition.num_clients=2"),
        *("model.name=tiny:bert", "model.task=sequence-classification", "data.proxy=0", "clients.cohort=2"),
    )
    table, test = read(wanted, Rng(0))
    assigned = assign(wanted, table, test, Rng(0))
    assert assigned.names == {0: "Basel", 1: "Chur"}
    assert sum(len(rows) for rows in (assigned.splits[0].train, assigned.splits[0].test)) == 15


def test_clients_that_are_dealt_by_chance_have_no_names(config):
    wanted = config()
    table, test = read(wanted, Rng(0))
    assert assign(wanted, table, test, Rng(0)).names == {}
