"""What the user is told when something is wrong: one clear message, a non-zero exit, no traceback unless asked for."""

import json
import os
from pathlib import Path

import pytest
import torch

import fedquilt.cli.app as app


def check_error(said, *words):
    """The one message on standard error, after the checks that every wrong input must pass."""
    assert said.code == 1
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.err.startswith("error: ")
    for word in words:
        assert word in said.err
    return said.err


KEYS = [
    ("training.stepz=3", ("training.stepz = 3: unknown key", "did you mean 'steps'", "allowed: steps, epochs")),
    ("rounds=many", ("rounds = 'many': must be a whole number",)),
    ("rounds=0", ("rounds = 0: must be at least 1",)),
    ("adapter.rslora=1", ("adapter.rslora = 1: must be true or false",)),
    ("clients.budgets=[0,2,3]", ("clients.budgets[0] = 0: must be at least 1",)),
    ("clients.budgets=[1,2,4]", ("clients.budgets[2] is 4", "3 blocks", "from 1 to 3")),
    ("clients.budgets=[1,2]", ("shares '1-1-1' make 3 groups but there are 2 budgets",)),
    ("clients.cohort=9", ("cohort = 9", "num_clients = 6", "at most 6")),
    ("partition.classes_per_client=11", ("classes_per_client = 11", "10 classes")),
    ("partition.num_clients=500", ("num_clients = 500", "240 examples")),
    ("model.task=image-clasification", ("model.task = 'image-clasification'", "did you mean 'image-classification'")),
    ("method.name=fed-hullo", ("method.name = 'fed-hullo'", "did you mean 'fed-hello'", "fedra, exclusive")),
    ("method.smoothing=high", ("method.smoothing = 'high': must be a number",)),
    ("data.source=nowhere.tsv", ("data.source = 'nowhere.tsv': there is no file or folder",)),
    ("data.source=$FEDQUILT_DATA/mnist.npz", ("FEDQUILT_DATA is not set; set it to the folder that holds the files",)),
    ("model.name=./gone", ("gone': there is no such folder", "'tiny:<architecture>'")),
    ("model.name=tiny:vit?deep=3", ("there is no size 'deep'", "layers, width, heads")),
    ("device=cuda:9", ("device = 'cuda:9': not on this machine; allowed here: auto",)),
    ("trainin", ("override 'trainin': must look like key=value",)),
]


def test_two_kinds_of_export_at_once_are_refused(command):
    said = command("export", "run", "--out", "made", "--merged", "--to", "vllm")
    check_error(said, "--merged: is the same as --to merged, and --to vllm is given")


@pytest.mark.parametrize(("change", "words"), KEYS)
def test_a_wrong_key_is_named_with_its_value_and_what_is_allowed(command, monkeypatch, change, words):
    monkeypatch.delenv("FEDQUILT_DATA", raising=False)
    check_error(command("run", "tiny.toml", change), *words)
    assert not Path("runs").exists()  # nothing was begun


def test_fisher_scores_without_proxy_rows_say_what_to_set(command):
    said = command("run", "tiny.toml", "method.allocation=fim", "method.scores_from=server", "data.proxy=0")
    check_error(said, "method.scores_from = 'server'", "set data.proxy", "or method.scores_from = 'clients'")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("rounds = [", ("bad.toml: not valid TOML",)),
        ("rounds = 3", ("model: missing", "data: missing")),
        ("", ("model: missing",)),
    ],
)
def test_a_broken_run_file_is_named(command, content, words):
    Path("bad.toml").write_text(content)
    check_error(command("run", "bad.toml"), *words)


def test_a_missing_or_unreadable_run_file_is_named(command):
    check_error(command("run", "nowhere.toml"), "nowhere.toml: no such file; the folder searched is")
    Path("folder.toml").mkdir()
    check_error(command("run", "folder.toml"), "folder.toml: cannot be read (Is a directory)")
    Path("latin.toml").write_bytes(b'name = "caf\xe9"')
    check_error(command("run", "latin.toml"), "latin.toml: not UTF-8 text")


def test_run_wants_a_file_or_a_run_to_resume_and_not_both(command):
    check_error(command("run"), "give a run file, as in: fedquilt run my.toml")
    both = command("run", "tiny.toml", "--resume", "runs/tiny")
    check_error(both, "or an interrupted run, as in: fedquilt run --resume runs/my")
    check_error(command("run", "--resume", "runs/gone"), "runs/gone: no such run folder")


def test_an_unknown_command_or_option_shows_the_usage(command):
    for words in (("frobnicate",), ("run", "tiny.toml", "--frob"), ("export", "runs/x")):
        said = command(*words)
        assert said.code == 2
        assert "Usage: fedquilt" in said.err
        assert "Traceback" not in said.err


def test_a_run_folder_that_exists_is_never_touched(command, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    said = command("run", "tiny.toml", "--folder", finished)
    check_error(said, "this folder exists and is not empty", f"fedquilt run --resume {finished}", "choose another name")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    check_error(command("run", "tiny.toml", "--folder", "tiny.toml"), "tiny.toml: is a file, not a folder")


def test_a_dataset_without_labels_and_one_of_the_wrong_kind_are_refused(command):
    Path("said.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(40)))
    check_error(command("run", "tiny.toml", "data.source=./said.jsonl"), "holds text", "needs images")
    text = ("model.name=tiny:bert", "model.task=sequence-classification", "clients.budgets=[1,1,2]")
    said = command("run", "tiny.toml", "data.source=./said.jsonl", *text)
    check_error(said, "said.jsonl': has no labels, which this task needs", "set data.label", "columns: text")


def saved_vit(folder):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    images = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    ViTForImageClassification(ViTConfig(**sizes, **images, num_labels=10)).save_pretrained(folder)
    return Path(folder) / "model.safetensors"


@pytest.mark.parametrize("keep", [0.5, 0.0, 1.0])
def test_a_corrupt_weights_file_is_named(command, capsys, keep):
    file = saved_vit("vit")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)] if keep < 1 else b"\xff" * 8 + content[8:])
    capsys.readouterr()
    check_error(
        command("run", "tiny.toml", "model.name=./vit"), "vit': one of its safetensors files is damaged", "again"
    )
    assert not Path("runs").exists()


def test_a_model_without_a_block_list_says_so(command, capsys):
    from transformers import AlbertConfig, AlbertForSequenceClassification

    sizes = {"vocab_size": 50, "embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 3}
    model = AlbertForSequenceClassification(AlbertConfig(**sizes, num_attention_heads=2, intermediate_size=32))
    model.save_pretrained("albert")
    Path("said.tsv").write_text("text\tlabel\n" + "".join(f"row {n}\t{n % 2}\n" for n in range(40)))
    capsys.readouterr()
    changes = ("model.name=./albert", "model.task=sequence-classification", "data.source=./said.tsv")
    said = command("run", "tiny.toml", *changes, "partition.classes_per_client=1")
    check_error(
        said, "AlbertForSequenceClassification has no list of equal blocks of 3", "fedquilt needs a transformer whose"
    )


def test_an_empty_client_is_named(command):
    changes = ("partition.scheme=dirichlet", "partition.alpha=0.01", "partition.min_size=0", "data.proxy=0")
    said = command("run", "tiny.toml", *changes, "partition.num_clients=20")
    check_error(said, "client ", " of 20 has no examples; set partition.min_size to 1 or more")


def test_when_every_loss_is_nan_the_run_ends_with_the_causes(command):
    said = command("run", "tiny.toml", "training.learning_rate=1e30", "--quiet")
    check_error(
        said, "round 1, exchange 'fit': 0 of 4 clients", "loss is nan at step 2", "lower training.learning_rate (1e+30)"
    )


def test_one_client_whose_loss_is_nan_is_named_and_the_run_goes_on(command, monkeypatch):
    import fedquilt.client.fit as fit

    def unlucky(bench, columns, parts, *rest, real=fit._backward):
        loss, correct, seen = real(bench, columns, parts, *rest)
        return (float("nan") if len(columns["labels"]) == unlucky.rows else loss), correct, seen

    partition = json.loads(
        command("run", "tiny.toml", "--folder", "first") and Path("first/partition.json").read_text()
    )
    sizes = [len(client["train"]) for client in partition["clients"]]
    client = next(id for id, size in enumerate(sizes) if sizes.count(size) == 1)
    unlucky.rows = sizes[client]
    monkeypatch.setattr(fit, "_backward", unlucky)
    said = command("run", "tiny.toml", "clients.cohort=6", "--folder", "second", "--quiet")
    assert said.code == 0
    assert said.err.splitlines() == [
        f"second: round {n + 1}/3: client {client} dropped: loss is nan at step 1" for n in range(3)
    ]


def test_a_folder_that_cannot_be_written_is_named(command):
    Path("taken").write_text("a file where a folder should be")
    check_error(command("run", "tiny.toml", "output=taken"), "taken/tiny: cannot be written", "no run was started")


def test_report_plot_and_export_name_what_is_no_run(command):
    check_error(command("report", "runs/none"), "runs/none: no such run folder")
    check_error(command("plot", "runs/none"), "runs/none: no such run folder")
    check_error(command("export", "runs/none", "--out", "x"), "runs/none: no such run folder")
    Path("empty").mkdir()
    check_error(command("report", "empty"), "empty: not a run folder, it has no config.json")
    check_error(command("export", "empty", "--out", "x"), "empty: not a run folder, it has no config.json")


def test_a_file_that_cannot_be_written_is_named_without_a_traceback(command, finished):
    said = command("report", finished, "--save", "no/such/folder/table.md")
    assert said.code == 1
    assert said.err == "error: no/such/folder/table.md: No such file or directory\n"


def test_debug_anywhere_on_the_line_shows_the_traceback(command):
    from fedquilt.core.errors import ConfigError

    for words in (("--debug", "run", "nowhere.toml"), ("run", "nowhere.toml", "--debug")):
        with pytest.raises(ConfigError, match=r"nowhere.toml: no such file"):
            command(*words)


def test_an_error_that_nobody_foresaw_is_one_line_too(command, monkeypatch):
    def fails(**named):
        raise ZeroDivisionError("division by zero\nsecond line")

    monkeypatch.setattr(app, "app", fails)
    assert check_error(command("run", "tiny.toml")) == (
        "error: unexpected ZeroDivisionError: division by zero; rerun with --debug for the traceback, and report it\n"
    )
    with pytest.raises(ZeroDivisionError):
        command("run", "tiny.toml", "--debug")


def test_no_test_can_reach_the_network():
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("word", ["data.classes=[cat, dog]", "data.classes=[cat,dog"])
def test_a_list_whose_quotes_the_shell_took_is_shown_in_quotes(command, word):
    said = command("check", "tiny.toml", word)
    assert said.code == 1
    assert """'data.classes=["cat", "dog"]'""" in said.err
