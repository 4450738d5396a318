"""Gigabytes turned into layers and rank: the largest that fits, by the same estimate as the plan's."""

import json

import pytest

from fedquilt.config.load import load
from fedquilt.core.errors import ConfigError
from fedquilt.experiment.memory import Afforded, afforded, budget_lines, budgeted
from fedquilt.experiment.plan import plan
from fedquilt.experiment.run import run
from fedquilt.record import read_partition

# with 4 blocks of width 32, adapters of rank 8, and no row of data
DEEP = ("model.name='tiny:vit?layers=4&width=32&image=8&patch=4'", "adapter.rank=8", "data.source=nowhere.tsv")
METHODS = ["fed-hello", "fedit", "fedra", "exclusive", "straggler", "local-only", "ffa-lora"]


def peak(config, layers, rank=8, method="fedit", *more):
    """Of the heaviest of six clients of this budget, by the plan."""
    budget = ("clients.shares='1'", f"clients.budgets=[{layers}]", f"adapter.rank={rank}")
    wanted = config(*DEEP, f"method={{name='{method}'}}", *budget, *more)
    return max(one.peak_bytes for one in plan(wanted))


def test_each_group_gets_the_most_layers_that_fit(config):
    wanted = config(*DEEP, "method={name='fed-hello',allocation='gd',shape='inverted-triangle'}")
    inverted = ("method={name='fed-hello',allocation='gd',shape='inverted-triangle'}",)

    def needs(layers):
        change = (*DEEP, *inverted, "clients.shares='1'", f"clients.budgets=[{layers}]")
        return max(one.peak_bytes for one in plan(config(*change)))

    sizes = [needs(layers) for layers in range(1, 5)]
    assert sizes == sorted(set(sizes))  # each layer more needs more
    groups = afforded(wanted, [sizes[0] / 1e9, (sizes[2] - 1) / 1e9, 5.0])
    assert [group.layers for group in groups] == [1, 2, 4]
    assert [group.rank for group in groups] == [8, 8, 8]
    assert [group.peak_bytes for group in groups] == [sizes[0], sizes[1], sizes[3]]
    assert [group.memory_bytes for group in groups] == [sizes[0], sizes[2] - 1, 5_000_000_000]


@pytest.mark.parametrize("method", METHODS)
def test_no_client_of_the_planned_run_needs_more_than_its_group_has(config, method):
    wanted = config(*DEEP, f"method={{name='{method}'}}")
    least, most = peak(config, 1, 8, "straggler"), peak(config, 4)
    sizes = [(least + (most - least) * share) / 1e9 for share in (0.3, 0.7, 1.0)]
    groups = afforded(wanted, sizes)
    limits = {id: groups[id // 2].memory_bytes for id in range(6)}
    plans = plan(budgeted(wanted, groups))
    assert plans
    assert all(one.peak_bytes <= groups[one.client // 2].peak_bytes <= limits[one.client] for one in plans)
    assert [group.layers for group in groups] == sorted(group.layers for group in groups)


def test_where_layers_are_drawn_the_draw_that_needs_most_counts(config):
    """One of four layers, drawn: the first block's turn comes, though not in the round that is planned."""
    drawn = config(*DEEP, "method={name='fedra',drop_layers=false}")
    first = peak(config, 1, 8, "local-only", "method.shape=triangle")
    last = peak(config, 1, 8, "local-only", "method.shape=inverted-triangle")
    assert last < first
    with pytest.raises(ConfigError, match="one layer at rank 1 needs"):
        afforded(drawn, [last / 1e9] * 3)
    (group, _, _) = afforded(drawn, [first / 1e9] * 3)
    assert (group.layers, group.rank, group.peak_bytes) == (1, 8, first)


def test_where_one_layer_does_not_fit_the_rank_is_halved(config):
    wanted = config(*DEEP, "method={name='fedit'}", "adapter.rank=10")
    by_rank = {rank: peak(config, 1, rank, "straggler") for rank in (1, 2, 5, 10)}
    assert list(by_rank.values()) == sorted(set(by_rank.values()))
    straggler = config(*DEEP, "method={name='straggler'}", "adapter.rank=10")
    sizes = [by_rank[2], by_rank[10] - 1, by_rank[10]]
    groups = afforded(straggler, [size / 1e9 for size in sizes])
    assert [(group.layers, group.rank) for group in groups] == [(1, 2), (1, 5), (1, 10)]
    assert [group.peak_bytes for group in groups] == [by_rank[2], by_rank[5], by_rank[10]]
    assert budgeted(wanted, groups).clients.ranks == (2, 5, 10)
    with pytest.raises(
        ConfigError, match=rf"--memory {(by_rank[1] - 1) / 1e9:g}: one layer at rank 1 needs .* GB; give"
    ):
        afforded(straggler, [(by_rank[1] - 1) / 1e9, 1.0, 1.0])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([2.0, 4.0], r"--memory: 2 numbers \(2, 4\) for the 3 groups of clients.shares = '1-1-1'; give one for each"),
        ([2.0, 1.0, 4.0], r"--memory: 2, 1, 4; give gigabytes above 0, each at least as large as the one before"),
        ([0.0, 1.0, 4.0], r"--memory: 0, 1, 4; give gigabytes above 0"),
        ([1.0, 1.0, float("nan")], r"--memory: 1, 1, nan; give gigabytes above 0"),
        ([1.0, 1.0, float("inf")], r"--memory: 1, 1, inf; give gigabytes above 0"),
    ],
)
def test_numbers_that_make_no_groups_are_refused(config, sizes, message):
    with pytest.raises(ConfigError, match=message):
        afforded(config(*DEEP), sizes)


def test_the_lines_are_those_of_a_run_file_that_runs(config, tiny, tmp_path):
    groups = afforded(config(), [1.0, 1.0, 1.0])
    text = tiny.read_text().replace("[clients]\nbudgets = [1, 2, 3]", budget_lines(groups))
    (tmp_path / "fitted.toml").write_text(text)
    wanted, _ = load(tmp_path / "fitted.toml", ["rounds=1"])
    assert wanted.clients == budgeted(config(), groups).clients
    assert wanted.clients.budgets == (3, 3, 3)
    clients = read_partition(run(wanted, tmp_path / "run"))["clients"]
    assert {(client["budget"], client["rank"]) for client in clients} == {(3, 2)}


def test_the_command_prints_what_fits_and_the_lines_for_the_run_file(command):
    words = ("plan", "tiny.toml", "--memory", "1", "--memory", "2", "--memory", "4")
    said = command(*words)
    assert said.code == 0, said.err
    assert said.out.endswith("[clients]\nbudgets = [3, 3, 3]\nranks = [2, 2, 2]\n")
    assert "Layers and rank per group" in said.out
    told = json.loads(command(*words, "--json").out)
    assert [(group["memory_bytes"], group["layers"], group["rank"]) for group in told["groups"]] == [
        (1_000_000_000, 3, 2),
        (2_000_000_000, 3, 2),
        (4_000_000_000, 3, 2),
    ]
    assert all(one["budget"] == 3 for one in told["plans"])
    said = command("plan", "tiny.toml", "--memory", "1e-6", "--memory", "2", "--memory", "4")
    assert said.code == 1
    assert said.err.startswith("error: --memory 1e-06: one layer at rank 1 needs 0.001 GB; give the group as much")


def test_mixtures_are_fitted_by_layers_and_never_by_rank(config):
    """Their branches have one rank, which clients that afford less cannot cut."""
    mixture = ("adapter={kind='mixture',rank=8,alpha=8}", "method={name='heterotune'}")
    wanted = config(*DEEP, *mixture)
    change = (*DEEP, *mixture, "clients.shares='1'", "clients.budgets=[3]")
    three = max(one.peak_bytes for one in plan(config(*change)))
    groups = afforded(wanted, [three / 1e9, three / 1e9, 5.0])
    assert [(group.layers, group.rank) for group in groups] == [(3, 8), (3, 8), (4, 8)]
    plans = plan(budgeted(wanted, groups))
    assert [len(one.layers) for one in plans] == [3, 3, 3, 3, 4, 4]
    with pytest.raises(ConfigError, match=r"one layer at rank 8 needs .* GB; give the group as much"):
        afforded(wanted, [1e-6, 1.0, 2.0])


def test_where_the_weights_are_trained_there_is_no_rank_to_lower_and_none_to_write(config):
    full = config(*DEEP[::2], "adapter={kind='full'}", "method={name='fedit'}")

    def few(layers):
        return [Afforded(0, layers, None, 0)] * 3

    one, all_of_them = (max(client.peak_bytes for client in plan(budgeted(full, made))) for made in (few(1), few(4)))
    some = afforded(full, [one / 1e9, (one + all_of_them) / 2e9, 1.0])
    assert [group.rank for group in some] == [None] * 3
    assert some[0].layers == 1
    assert 1 < some[1].layers < some[2].layers == 4
    assert "ranks" not in budget_lines(some)
    assert budget_lines(some).startswith("[clients]\nbudgets = [")
    assert all(one.peak_bytes <= some[one.client // 2].memory_bytes for one in plan(budgeted(full, some)))
    with pytest.raises(ConfigError, match=r"--memory 1e-05: one layer needs 0.\d+ GB; give the group as much, or take"):
        afforded(full, [0.00001, 0.002, 1.0])


LLAMA = """
seed = 1
rounds = 2

[model]
name = "shape:llama-3.1-8b"
task = "causal-lm"
max_length = 512
dtype = "bfloat16"
{quantization}
[data]
source = "nowhere.tsv"

[partition]
num_clients = 2

[clients]
shares = "1"
budgets = [1]

[adapter]
rank = 16

[training]
batch_size = 2
gradient_checkpointing = true

[method]
name = "fedit"
"""


@pytest.mark.parametrize(("gigabytes", "quantization"), [(12, 'quantization = "nf4"\n'), (24, "")])
def test_llama_3_1_8b_fits_into_12_gb_in_4_bits_and_into_24_gb_in_16(tmp_path, gigabytes, quantization):
    file = tmp_path / "llama.toml"
    file.write_text(LLAMA.format(quantization=quantization))
    (group,) = afforded(load(file)[0], [gigabytes])
    assert (group.layers, group.rank) == (32, 16)
    found = budget_lines([group]).removeprefix("[clients]\n")
    file.write_text(file.read_text().replace("budgets = [1]", found))
    plans = plan(load(file)[0])
    assert len(plans) == 2
    assert all(one.layers == tuple(range(32)) and one.peak_bytes <= gigabytes * 1e9 for one in plans)


def test_where_nothing_fits_the_settings_that_would_are_named(config):
    deep = ("model.name='tiny:llama?layers=4&width=256'", "model.task=causal-lm", "model.max_length=256", DEEP[-1])
    wanted = config(*deep, "clients.shares='1'", "clients.budgets=[1]", "method={name='fedit'}")
    with pytest.raises(
        ConfigError, match=r"one layer at rank 1 needs 0.0\d+ GB; give the group as much, or set "
    ) as said:
        afforded(wanted, [0.02])
    text = str(said.value)
    assert "set training.batch_size = 1 or model.max_length = 64" in text
    smaller = config(
        *deep, "clients.shares='1'", "clients.budgets=[1]", "method={name='fedit'}", "training.batch_size=1"
    )
    assert afforded(smaller, [0.02])[0].peak_bytes <= 20_000_000
    with pytest.raises(ConfigError, match=r"or take a smaller model: training.gradient_checkpointing = true, model"):
        afforded(wanted, [0.0001])


GROUPS = """
[[groups]]
label = "small"
share = 2
budget = 1
rank = 4
model = {name = "tiny:vit?layers=4&width=32&image=8&patch=4", task = "image-classification"}

[[groups]]
label = "large"
budget = 1
"""


def test_groups_are_fitted_by_their_own_models_and_ranks(tiny):
    lines = [line for line in tiny.read_text().splitlines() if not line.startswith("budgets")]
    tiny.write_text("\n".join(lines) + GROUPS)
    wanted, _ = load(tiny, ["adapter.rank=8", DEEP[-1], "method={name='flexlora'}"])
    fitted = afforded(wanted, [1.0, 0.5])  # in the order of the file, not by size
    assert [(one.group, one.layers, one.rank) for one in fitted] == [("small", 4, 4), ("large", 3, 8)]
    assert budget_lines(fitted).endswith('[[groups]]\nlabel = "large"\nbudget = 3\nrank = 8')
    by_group = {one.group: one.peak_bytes for one in plan(budgeted(wanted, fitted))}
    assert by_group == {one.group: one.peak_bytes for one in fitted}
    tight = (fitted[0].peak_bytes - 1) / 1e9
    assert [one.layers for one in afforded(wanted, [tight, 0.5])] == [3, 3]
    with pytest.raises(
        ConfigError, match=r"1 number \(1\) for the 2 \[\[groups\]\]; give one for each group, in their"
    ):
        afforded(wanted, [1.0])


def test_the_command_fits_each_group_and_names_it(command, tiny):
    lines = [line for line in tiny.read_text().splitlines() if not line.startswith("budgets")]
    tiny.write_text("\n".join(lines) + GROUPS)
    words = ("plan", "tiny.toml", "adapter.rank=8", "method={name='flexlora'}", DEEP[-1])
    said = command(*words, "--memory", "1", "--memory", "0.5")
    assert said.code == 0, said.err
    assert said.out.endswith('[[groups]]\nlabel = "large"\nbudget = 3\nrank = 8\n')
    told = json.loads(command(*words, "--memory", "1", "--memory", "0.5", "--json").out)
    fitted = [(group["group"], group["memory_bytes"], group["layers"], group["rank"]) for group in told["groups"]]
    assert fitted == [("small", 1_000_000_000, 4, 4), ("large", 500_000_000, 3, 8)]
    said = command(*words, "--memory", "1")
    assert said.code == 1
    assert "1 number (1) for the 2 [[groups]]" in said.err
