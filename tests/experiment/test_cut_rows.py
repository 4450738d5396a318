"""How many texts are too long for the model, counted for each client and each of its splits."""

import tomllib

from fedquilt.config.load import parse
from fedquilt.experiment.build import build
from fedquilt.experiment.check import check

TEXTS = ["no", "a word", "two words more", "a text of some more words than the others have"] * 10
FILE = """
rounds = 1
threads = 1
model = {{ name = "tiny:bert", task = "sequence-classification", max_length = {length} }}
data = {{ source = "{source}", text = "note", label = "kind" }}
partition = {{ num_clients = 3, test_fraction = 0.25 }}
method = {{ name = "fedit" }}
"""


def config(folder, length):
    (folder / "notes.csv").write_text(
        "note,kind\n" + "".join(f"{text},{'ab'[n % 2]}\n" for n, text in enumerate(TEXTS))
    )
    return parse(tomllib.loads(FILE.format(length=length, source=folder / "notes.csv")))


def test_texts_that_are_too_long_are_counted_for_each_client(tmp_path):
    whole = build(config(tmp_path, 64))
    lengths = {id: client.train["attention_mask"].sum(1).tolist() for id, client in whole.clients.items()}
    four = sorted({length for own in lengths.values() for length in own})
    assert len(four) == len({*TEXTS})
    assert whole.groups[0].lost["cut"] == 0
    width = four[1]
    lost = build(config(tmp_path, width)).groups[0].lost
    assert (lost["max_tokens"], lost["rows"], lost["cut"]) == (width, 40, 20)
    assert lost["tokens"] == 10 * sum(length - width for length in four[2:])
    assert lost["answers"] == 0  # a class is no text
    assert sum(own[split] for own in lost["clients"] for split in ("train", "validation", "test")) == 20
    for own in lost["clients"]:
        assert own["train"] == sum(length > width for length in lengths[own["id"]])
    told: list[str] = []
    assert check(config(tmp_path, width), notes=told) == []
    assert f"20 of the 40 rows are longer than {width} tokens and are cut ({lost['tokens']} tokens" in " ".join(told)
