"""What ``export --to`` writes and ``evaluate`` scores, for a classifier and a language model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from datasets import load_dataset  # noqa: F401  (peft's own import of it is slow inside a test)
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import fedquilt
from fedquilt.core.errors import ConfigError, DataError, RunError
from fedquilt.core.rng import Rng
from fedquilt.experiment.benchmarks import benchmark
from fedquilt.experiment.evaluate import evaluate
from fedquilt.experiment.export_kinds import exported
from fedquilt.models.hf import load_model
from fedquilt.record import read_config

WORDS = {"good": ["fine", "great", "lovely"], "bad": ["awful", "poor", "sad"]}


def rows_file(file: Path, sites=("north", "south"), count=6) -> Path:
    lines = ["text,label,site"]
    for site in sites:
        for number in range(count):
            for label, words in WORDS.items():
                lines.append(f"a {words[number % 3]} day {number},{label},{site}")
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    tables = {
        "rounds": 2,
        "name": "moods",
        "model": {"name": "tiny:bert?layers=2&width=16", "task": "sequence-classification"},
        "data": {"source": str(rows_file(folder / "rows.csv")), "text": "text", "label": "label", "group": "site"},
        "partition": {"scheme": "natural", "num_clients": 2, "test_fraction": 0.25},
        "clients": {"budgets": [2], "shares": "1"},
        "adapter": {"rank": 2},
        "training": {"steps": 4, "batch_size": 4, "learning_rate": 0.01},
        "method": {"name": "fedsa-lora"},
    }
    return fedquilt.run(tables, folder=folder / "run").folder


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer")
    load_model("tiny:llama?layers=2&width=16", "causal-lm", num_classes=None, rng=Rng(1)).save(folder / "base")
    rows = [{"prompt": f"{n} and", "completion": f" {n + 1}"} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = {
        "rounds": 1,
        "model": {"name": str(folder / "base"), "task": "causal-lm", "max_length": 32},
        "data": {"source": str(folder / "rows.jsonl"), "text": "prompt", "target": "completion"},
        "partition": {"num_clients": 2, "test_fraction": 0.25},
        "clients": {"budgets": [2], "shares": "1"},
        "adapter": {"rank": 4},
        "training": {"steps": 2, "batch_size": 4},
        "method": {"name": "fedsa-lora"},
    }
    return fedquilt.run(tables, folder=folder / "run").folder


def test_a_classifier_is_exported_with_its_card_its_classes_and_its_sites(classifier, tmp_path):
    exported(classifier, tmp_path / "out", client=1)
    text = (tmp_path / "out" / "README.md").read_text()
    assert 'library_name: peft\npipeline_tag: text-classification\ntags: ["fedquilt", "federated-learning"' in text
    assert "# license: yours to choose" in text
    assert "# moods: the model of client south" in text
    for words in ("| north | ", "bad: ", "Method: `fedsa-lora`", "without differential privacy", "| worst client | "):
        assert words in text
    assert "PeftModel.from_pretrained(base, folder)" in text
    again = re.search(r"```toml\n(.*?)```", text, re.S)[1]
    from fedquilt.config.load import load, resolved

    (tmp_path / "run.toml").write_text(again)
    assert resolved(load(tmp_path / "run.toml")[0]) == read_config(classifier)
    (tmp_path / "out" / "README.md").write_text("# My own\n")
    exported(classifier, tmp_path / "out", client=1)
    assert (tmp_path / "out" / "README.md").read_text() == "# My own\n"


def test_a_card_alone_and_a_run_without_a_global_model(classifier, tmp_path):
    assert exported(classifier, tmp_path / "card", "card", client=0) == f"wrote {tmp_path / 'card' / 'README.md'}"
    assert [path.name for path in (tmp_path / "card").iterdir()] == ["README.md"]
    with pytest.raises(RunError, match="has no global model"):
        exported(classifier, tmp_path / "none", "card")


def test_a_merged_classifier_has_names_and_the_same_logits(classifier, tmp_path):
    exported(classifier, tmp_path / "out", "merged", client=0)
    made = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert made.config.label2id == {"bad": 0, "good": 1}
    ids = torch.arange(4, 24).view(2, 10)
    live = fedquilt.open_run(classifier).model(client=0)
    with torch.no_grad():
        torch.testing.assert_close(made(input_ids=ids).logits, live(input_ids=ids).logits, rtol=0, atol=1e-5)
    assert "library_name: transformers" in (tmp_path / "out" / "README.md").read_text()
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "bert"


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_an_export_scores_what_its_run_scores(classifier, tmp_path, to):
    other = rows_file(tmp_path / "new.csv", sites=("west",), count=4)
    exported(classifier, tmp_path / "out", to, client=0)
    ours = evaluate(classifier, str(other), client=0)
    assert ours["examples"] == 8
    assert evaluate(tmp_path / "out", str(other)) == pytest.approx(ours, abs=1e-5)
    assert evaluate(classifier, str(other), client=1)["loss"] != ours["loss"]


def test_a_run_scores_its_own_test_rows_as_it_did(writer, tmp_path):
    line = json.loads((writer / "result.json").read_text())["final"]["clients"]["0"]
    rows = json.loads((writer / "partition.json").read_text())["clients"][0]["test"]
    lines = (writer.parent / "rows.jsonl").read_text().splitlines()
    (tmp_path / "own.jsonl").write_text("".join(f"{lines[row]}\n" for row in rows))
    assert evaluate(writer, str(tmp_path / "own.jsonl"), client=0) == pytest.approx(line, abs=1e-6)


def test_what_cannot_be_scored_is_refused(classifier, tmp_path):
    with pytest.raises(RunError, match="is no run folder, and no export"):
        evaluate(tmp_path, "rows.csv")
    (tmp_path / "bare.csv").write_text("text,label\na day,unheard\n")
    with pytest.raises(DataError, match="unheard"):
        evaluate(classifier, str(tmp_path / "bare.csv"), client=0)
    with pytest.raises(DataError, match=r"--input 'nowhere.csv'"):
        evaluate(classifier, "nowhere.csv", client=0)
    exported(classifier, tmp_path / "out", client=0)
    with pytest.raises(RunError, match="which has one model"):
        evaluate(tmp_path / "out", str(tmp_path / "bare.csv"), client=0)


def test_every_client_s_adapter_is_served_by_one_vllm(writer, tmp_path):
    said = exported(writer, tmp_path / "lora", "vllm")
    folders = sorted(path.name for path in (tmp_path / "lora").iterdir())
    assert folders == ["client-0", "client-1", "serve.sh"]
    words = shlex.split((tmp_path / "lora" / "serve.sh").read_text().splitlines()[1])
    assert words[:4] == ["exec", "vllm", "serve", str(writer.parent / "base")]
    assert words[4:9] == ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "2"]
    modules = dict(word.split("=") for word in words[10:])
    assert said.splitlines()[-1] == shlex.join(words[1:])
    ids = torch.arange(4, 14)[None]
    for client in range(2):
        base = AutoModelForCausalLM.from_pretrained(writer.parent / "base")
        made = PeftModel.from_pretrained(base, modules[f"client-{client}"]).eval()
        live = fedquilt.open_run(writer).model(client=client)
        with torch.no_grad():
            torch.testing.assert_close(made(input_ids=ids).logits, live(input_ids=ids).logits)


def test_what_vllm_cannot_serve_is_refused(classifier, writer, tmp_path):
    with pytest.raises(RunError, match="fine-tunes a model for sequence-classification"):
        exported(classifier, tmp_path / "out", "vllm")
    with pytest.raises(RunError, match="leave --server out"):
        exported(writer, tmp_path / "out", "vllm", server=True)
    config = json.loads((writer / "adapters" / "client-000" / "adapter_config.json").read_text())
    from fedquilt.experiment import export_vllm

    for key, value, words in (
        ("use_dora", True, "it uses DoRA"),
        ("modules_to_save", ["lm_head"], "saved whole"),
        ("rank_pattern", {"q_proj": 2}, "different ranks"),
        ("base_model_name_or_path", "tiny:llama", "no model that vLLM can load"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(RunError, match=words):
            export_vllm._refuse(tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_export_does_not_choose_which_code_is_run(classifier, tmp_path, monkeypatch):
    exported(classifier, tmp_path / "out", client=1)
    about = json.loads((tmp_path / "out" / "fedquilt.json").read_text())
    about["config"]["model"] |= {"name": "hf:somebody/model", "trust_remote_code": True}
    (tmp_path / "out" / "fedquilt.json").write_text(json.dumps(about))
    loading = []
    monkeypatch.setattr("fedquilt.experiment.evaluate.adapted", lambda *args: loading.append(args))
    with pytest.raises(RunError, match=r"asks for model\.trust_remote_code, and an export may be anybody's"):
        evaluate(tmp_path / "out", "rows.csv")
    assert loading == []


def test_no_adapter_takes_the_name_of_the_command_or_of_another():
    from fedquilt.experiment import export_vllm

    assert export_vllm._unused("serve.sh", {}) == "serve.sh-again"
    assert export_vllm._unused("../../etc", {"etc": Path()}) == "etc-again"
    assert export_vllm._unused("-a=b c", {}) == "a-b-c"


def test_benchmarks_need_the_harness_and_a_language_model(classifier, monkeypatch):
    from fedquilt.experiment import benchmarks

    monkeypatch.setattr(benchmarks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--tasks: needs lm-eval; install it with"):
        benchmark(classifier, ["arc_easy"])
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: name)
    with pytest.raises(RunError, match="--tasks is for language models"):
        benchmark(classifier, ["arc_easy"], client=0)


TASK = """
task: numbers
dataset_path: json
dataset_kwargs:
  data_files: {rows}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{[completion, ' none'].index(completion)}}}}"
doc_to_choice: "{{{{[completion, ' none']}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def test_a_task_of_ones_own_is_scored_by_the_harness(writer, tmp_path):
    pytest.importorskip("lm_eval")
    (tmp_path / "numbers.yaml").write_text(TASK.format(rows=writer.parent / "rows.jsonl"))
    scores = benchmark(writer, ["numbers"], client=1, include=tmp_path)
    assert set(scores) == {"numbers"}
    assert 0 <= scores["numbers"]["acc"] <= 1
    with pytest.raises(ConfigError, match="--tasks other: lm-eval has no such task"):
        benchmark(writer, ["other"], client=1, include=tmp_path)
