"""Runs with a server that owns a model and data: embedded, over Flower, resumed, exported, refused."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from teaching import TRAITS, teaching

from fedquilt.client.texts import prompts_of
from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, RunError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Order
from fedquilt.core.worker import Worker
from fedquilt.experiment import build, resume, run
from fedquilt.experiment.check import check
from fedquilt.experiment.export import export
from fedquilt.experiment.forecast import work_of
from fedquilt.experiment.merged_model import export_merged
from fedquilt.experiment.plan import plan
from fedquilt.methods import registry
from fedquilt.models.hf import load_model
from fedquilt.models.hf_files import config_from, read_tokenizer
from fedquilt.models.locate import Source
from fedquilt.record import Record, read_rounds
from fedquilt.record.tree_bytes import tree_to_bytes
from fedquilt.report.groups import group_rows
from fedquilt.report.runs import read_run

FILE = """
rounds = 3
threads = 1
device = "cpu"
model = { name = "tiny:llama?layers=2&width=16", task = "causal-lm", max_length = 48 }
data = { source = "arithmetic:blank?train=60&test=8" }
partition = { scheme = "iid", num_clients = 3 }
clients = { budgets = [1, 2, 2] }
adapter = { rank = 2 }
training = { steps = 2, batch_size = 4, learning_rate = 0.01 }
method = { name = "teaching" }

[server]
model = { name = "tiny:llama?layers=3&width=24", task = "causal-lm", max_length = 48 }
data = { source = "arithmetic:blank?train=20&test=6" }
adapter = { rank = 4 }
training = { steps = 3 }
"""


def config(**changes: object) -> Config:
    raw = tomllib.loads(FILE)
    return parse({**raw, **changes})


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(registry.ENTRIES, "teaching", registry.Entry(teaching, TRAITS))
        yield


@pytest.fixture(scope="module")
def whole(_registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run. Not to be changed."""
    return run(config(), tmp_path_factory.mktemp("server") / "run")


def test_the_server_trains_its_own_model_on_its_own_rows(whole: Path) -> None:
    experiment = build(config())
    server = experiment.federation.server
    assert server is not None
    assert server.worker.id == -1
    assert server.architecture == "llama-3x24"
    assert (len(server.questions.texts), len(server.questions.answers or ())) == (20, 20)
    assert experiment.federation.layouts.keys() == {"llama-2x16"}
    _, state, memories = Record.open(whole).load_checkpoint()
    own = state["server"]
    assert own["round"] == 3
    assert own["memory"] == {"answers": 3 * 3 * 3}
    start = experiment.method.init(experiment.rng.child("init"))["server"]["params"]
    assert own["params"].keys() == start.keys() == server.layout.depth.keys()
    assert any(not torch.equal(own["params"][name], start[name]) for name in start)
    assert all(memory["params"].keys() <= experiment.layout.depth.keys() for memory in memories.values())


def test_a_run_goes_on_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    again = shutil.copytree(whole, tmp_path / "again")
    resume(again, back_to=2)
    assert (whole / "checkpoint.json").is_file()
    left, right = (Record.open(folder).load_checkpoint() for folder in (whole, again))
    for name, tensor in left[1]["server"]["params"].items():
        assert torch.equal(tensor, right[1]["server"]["params"][name])
    assert left[1]["server"]["seed"] == right[1]["server"]["seed"]
    assert [line["state"] for line in read_rounds(whole)] == [line["state"] for line in read_rounds(again)]


def test_the_same_bits_over_flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flwr")
    from in_process_grid import InProcessGrid

    from fedquilt.engine.flower.client import client_app
    from fedquilt.experiment import flower, flower_site

    real, on_sites = flower_site.build, []

    def watched(*words: object, **named: object) -> object:
        made = real(*words, **named)
        assert made.owner is not None
        on_sites.append(next(made.owner.loaded.model.parameters()).is_meta)
        assert made.federation.server.questions.texts == ()
        return made

    monkeypatch.setattr(flower_site, "build", watched)
    for dtype in ("float32", "int8"):
        settings = config(rounds=2, network={"dtype": dtype, "timeout": 5.0, "wait": 5.0})
        folder, whole = tmp_path / f"flower-{dtype}", run(settings, tmp_path / f"embedded-{dtype}")
        grid = InProcessGrid(client_app(flower_site.joined(settings), folder / "sites"), 3)
        run(settings, folder, connect=flower.over(grid, settings, name="in-process", poll=0.05))
        ours, theirs = (tree_to_bytes(Record.open(path).load_checkpoint()[1]) for path in (folder, whole))
        assert ours == theirs
        for line, other in zip(read_rounds(folder), read_rounds(whole), strict=True):
            assert not line["exchanges"][0]["dropped"]
            assert line["evaluation"]["server"] == other["evaluation"]["server"]
    assert on_sites
    assert all(on_sites)


def test_the_servers_model_is_scored_reported_and_exported(whole: Path, tmp_path: Path) -> None:
    folder = whole
    for line in read_rounds(folder):
        assert line["evaluation"]["server"]["examples"] == 6
    (row,) = group_rows({"teaching": [read_run(folder)]}, "accuracy")
    assert row["group"] == "server"
    assert row["final"] == read_rounds(folder)[-1]["evaluation"]["server"]["accuracy"]
    out = export(folder, tmp_path / "adapter", server=True)
    base = load_model("tiny:llama?layers=3&width=24", "causal-lm", num_classes=None, rng=Rng(1).child("model")).model
    experiment = build(config())
    _, state, _ = Record.open(folder).load_checkpoint()
    owner = experiment.owner
    assert owner is not None
    owner.bench.load(state["server"]["params"])
    ids = torch.arange(4, 12).view(1, -1)
    peft = pytest.importorskip("peft")
    adapted = peft.PeftModel.from_pretrained(base, str(out)).eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=ids).logits, owner.bench.model(input_ids=ids).logits)
    export_merged(folder, tmp_path / "merged", server=True)
    assert (tmp_path / "merged" / "config.json").is_file()
    with pytest.raises(RunError, match="--server: the server is in no group"):
        export(folder, tmp_path / "other", client=0, server=True)


def test_a_check_finds_what_is_wrong_with_the_server(tmp_path: Path) -> None:
    assert check(config()) == []
    server = tomllib.loads(FILE)["server"]
    (problem,) = check(config(server={**server, "private": {"source": "nowhere.csv"}}))
    assert "server.private.source = 'nowhere.csv'" in problem
    missing = tomllib.loads(FILE)
    del missing["server"]
    (problem,) = check(parse(missing))
    assert problem.startswith("server: missing; method.name = 'teaching' needs a server")
    (problem,) = check(config(method={"name": "fedit"}))
    assert problem.startswith("server.model, server.data, server.adapter, server.training: no effect")
    (problem,) = check(config(server={**server, "adapter": {"kind": "common"}}))
    assert "set server.adapter.kind = 'lora'" in problem


def test_a_plan_counts_the_texts(tmp_path: Path) -> None:
    (first, *_) = plan(config())
    assert first.bytes_down == 3 * (64 + 4)
    assert first.bytes_up == 3 * (24 + 4) + 3 * 4


def test_the_server_trains_on_its_private_rows_and_asks_the_public_ones(tmp_path: Path) -> None:
    server = tomllib.loads(FILE)["server"]
    for name, rows in (("asked.csv", 5), ("own.csv", 9), ("test.csv", 4)):
        lines = [f"{name} {row},{row}" for row in range(rows)]
        (tmp_path / name).write_text("\n".join(["text,answer", *lines]) + "\n", encoding="utf-8")
    public = {"source": str(tmp_path / "asked.csv")}
    private = {"source": str(tmp_path / "own.csv"), "test": str(tmp_path / "test.csv"), "target": "answer"}
    group = {"budget": 2, "model": {"name": "tiny:gpt2?layers=2&width=16", "task": "causal-lm", "max_length": 48}}
    settings = config(
        server={**server, "data": public, "private": private, "share": "private"},
        clients={},
        groups=[{"label": "first", "budget": 2}, {"label": "second", "share": 2, **group}],
    )
    own = build(settings).federation.server
    assert own is not None
    assert [text.split()[0] for text in own.questions.texts] == ["asked.csv"] * 5
    assert (own.questions.answers, own.share) == (None, "private")
    (line, *_) = read_rounds(run(settings, tmp_path / "run"))
    assert line["evaluation"]["server"]["examples"] == 4
    assert not line["exchanges"][0]["dropped"]
    assert [row["group"] for row in group_rows({"": [read_run(tmp_path / "run")]}, "accuracy")] == [
        *("first", "second", "server", "worst group")
    ]


def test_texts_are_completed_scored_and_trained_on() -> None:
    worker, order, prompts = build(config()).clients[0], Order({}, rng=Rng(5)), ["1 + 2 = ", "3"]
    assert worker.complete(order, None, [], new_tokens=4) == []
    drawn, again = (worker.complete(order, None, prompts, new_tokens=4, temperature=1.0) for _ in range(2))
    assert drawn == again
    assert len(worker.complete(order, None, prompts, new_tokens=4)) == 2
    total, tokens = worker.log_probs(order, None, prompts, ["3", "12"])
    posed = worker.posing(prompts, ["3", "12"])
    scored = replace(posed, splits={"test": posed.train}).evaluate(order)
    assert scored["loss"] == pytest.approx(-float(total.sum() / tokens.sum()))
    assert posed.fit(order, None, range(2)).num_examples == 2


TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"


def test_in_a_chat_a_public_question_is_read_by_the_template_of_each_model(tmp_path: Path) -> None:
    """The server's model has a template, the clients' has none."""
    name = "tiny:llama?layers=3&width=24"
    load_model(name, "causal-lm", num_classes=None, rng=Rng(1)).model.save_pretrained(tmp_path)
    tokenizer = read_tokenizer(Source("tiny", values={}), config_from({"model_type": "llama"}), {})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    server = tomllib.loads(FILE)["server"]
    server["model"]["name"] = str(tmp_path)
    rows = [{"instruction": f"{number} + 1", "output": str(number + 1)} for number in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    server["data"] = {"source": str(tmp_path / "rows.jsonl"), "format": "instruction"}
    questions, read = {}, {}
    for chat in (False, True):
        experiment = build(config(server={**server, "chat": chat}))
        own = experiment.federation.server
        assert own is not None
        assert experiment.owner is not None
        workers = {"server": own.worker, "client": experiment.clients[0]}
        questions[chat] = own.questions.texts
        read[chat] = {who: _read_by(worker, questions[chat][:1]) for who, worker in workers.items()}
        trained = prompts_of(experiment.owner.server.language, experiment.owner.server.train, [0])
        assert trained == ["[user]0 + 1[assistant]"]  # its own rows are conversations either way
    plain = "User:\n0 + 1\n\nAssistant:\n"
    assert (questions[False][0], questions[True][0]) == (plain, "0 + 1")
    assert read == {
        False: {"server": plain, "client": plain},
        True: {"server": "[user]0 + 1[assistant]", "client": plain},
    }


def _read_by(worker: Worker, questions: Sequence[str]) -> str:
    """The one question's text as the worker's model reads it, to complete it, and to learn an answer of it."""
    posed, language = worker.posing(questions, ["1"]), worker.language
    lent = worker.lending(Order({}, rng=Rng(0)), None, lambda lent: lent.columns(questions, ["1"]))
    found = {prompts_of(language, columns, [0])[0] for columns in (posed.train, lent)}
    assert len(found) == 1
    return found.pop()


def test_a_conversation_that_is_no_question_is_refused(tmp_path: Path) -> None:
    said = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": said}), encoding="utf-8")
    server = tomllib.loads(FILE)["server"]
    data = {"source": str(tmp_path / "rows.jsonl"), "format": "messages"}
    (problem,) = check(config(server={**server, "data": data, "chat": True}))
    assert "server.chat = true: a public question is one turn of the user" in problem
    assert "has the turns system, user; write it as one text" in problem
    with pytest.raises(ConfigError, match=r"server\.chat = true: needs server\.share = 'public'"):
        config(server={**server, "chat": True, "share": "private"})


def test_the_forecast_counts_the_servers_training_and_evaluation() -> None:
    """A step of the server costs as much more as its model is larger."""
    experiment = build(config())
    owner = experiment.owner
    assert owner is not None
    sizes = [sum(one.numel() for one in group.bench.model.parameters()) for group in (owner, experiment.only)]
    whole, without = work_of(experiment, 0), work_of(replace(experiment, owner=None), 0)
    assert without.round_steps == 3 * 2
    assert whole.round_steps == pytest.approx(3 * 2 + 3 * sizes[0] / sizes[1])
    assert whole.evaluation_steps > without.evaluation_steps


def test_a_base_of_the_server_is_refused_by_its_key() -> None:
    server = tomllib.loads(FILE)["server"]
    (problem,) = check(config(server={**server, "model": {**server["model"], "dtype": "float16"}}))
    assert problem.startswith("server.model.dtype = 'float16'")


def test_a_group_must_not_bear_the_servers_name() -> None:
    with pytest.raises(ConfigError, match=r"groups\[0\]\.label = 'server': is the name of the server's own row"):
        config(clients={}, groups=[{"label": "server", "budget": 2}])
