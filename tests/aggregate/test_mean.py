import math
import weakref

import pytest
import torch

from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.types import Reply


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


def test_each_tensor_is_averaged_over_the_clients_that_sent_it():
    base = {name: torch.zeros(2) for name in ("a", "b", "c", "d")}
    replies = [
        Reply(0, {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0, 1.0])}, weight=1),
        Reply(1, {"b": torch.tensor([5.0, 9.0]), "c": torch.tensor([4.0, 4.0])}, weight=3),
    ]
    result = layerwise_mean(base, replies)
    assert result["a"].tolist() == [1.0, 2.0]  # one contributor: its own value, whatever its weight
    assert result["b"].tolist() == [4.0, 7.0]
    assert result["c"].tolist() == [4.0, 4.0]
    assert result["d"] is base["d"]
    assert list(result) == list(base)


def test_weights_are_examples_and_sum_to_one_for_each_tensor():
    base = {"a": torch.full((3,), 10.0, dtype=torch.float64)}
    values, examples = (1.0, 2.0, 7.0), (100, 300, 600)
    replies = [
        Reply(i, {"a": torch.full((3,), v).double()}, weight=n)
        for i, (v, n) in enumerate(zip(values, examples, strict=True))
    ]
    assert layerwise_mean(base, replies)["a"].tolist() == pytest.approx([0.1 * 1 + 0.3 * 2 + 0.6 * 7] * 3)
    assert layerwise_mean(base, replies, "uniform")["a"].tolist() == pytest.approx([10 / 3] * 3)
    # the base has no share of its own
    moved = layerwise_mean({"a": torch.full((3,), -50.0, dtype=torch.float64)}, replies)["a"]
    assert moved.tolist() == pytest.approx([4.9] * 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_comes_back_as_it_was_sent_leaves_every_bit(dtype):
    values = torch.tensor([0.1, -0.0, 0.0, 1e-7, -3.3, 60000.0]).to(dtype)
    base = {"a": values, "b": torch.tensor(0.3, dtype=dtype), "c": torch.zeros(0, 4, dtype=dtype)}
    replies = [Reply(i, {name: t.clone() for name, t in base.items()}, weight=w) for i, w in enumerate((3, 7, 0.1))]
    result = layerwise_mean(base, replies)
    for name, tensor in base.items():
        assert result[name].dtype == dtype
        assert result[name].shape == tensor.shape
        assert torch.equal(bits(result[name]), bits(tensor))


def test_half_precision_is_summed_in_more():
    base = {"a": torch.zeros(1, dtype=torch.bfloat16)}
    # in bfloat16 a sum of ones sticks at 256
    replies = [Reply(i, {"a": torch.ones(1, dtype=torch.bfloat16)}, weight=1) for i in range(1000)]
    assert layerwise_mean(base, replies)["a"].item() == 1.0


def test_a_reply_in_another_precision_ends_in_the_servers():
    result = layerwise_mean({"a": torch.zeros(2)}, [Reply(0, {"a": torch.ones(2, dtype=torch.bfloat16)}, 1)])
    assert result["a"].dtype == torch.float32
    assert result["a"].tolist() == [1.0, 1.0]


def test_replies_are_read_once_and_one_at_a_time():
    alive = []

    def stream():
        for client in range(5):
            assert sum(reference() is not None for reference in alive) <= 1
            tensor = torch.full((4,), float(client))
            alive.append(weakref.ref(tensor))
            yield Reply(client, {"a": tensor}, 1)
            del tensor

    assert layerwise_mean({"a": torch.zeros(4)}, stream())["a"].tolist() == [2.0] * 4


def test_the_result_carries_no_graph():
    base = {"a": torch.zeros(2, requires_grad=True)}
    result = layerwise_mean(base, [Reply(0, {"a": torch.ones(2, requires_grad=True)}, 1)])
    assert not result["a"].requires_grad


def test_a_reply_without_tensors_moves_nothing():
    base = {"a": torch.ones(2)}
    assert layerwise_mean(base, [Reply(0, {}, 5)])["a"] is base["a"]


def test_no_replies():
    with pytest.raises(RoundError, match="no replies to average"):
        layerwise_mean({"a": torch.zeros(2)}, iter(()))


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Reply(4, {"layers.1.b": torch.zeros(2)}, 1), r"client 4 sent tensor 'layers.1.b'.*did you mean 'layers.1.a'"),
        (Reply(4, {"layers.1.a": torch.zeros(3)}, 1), r"client 4 .* 'layers.1.a' with shape \(3,\).* shape \(2,\)"),
        (Reply(4, {"layers.1.a": torch.zeros(1, 2)}, 1), r"shape \(1, 2\)"),
        (Reply(4, {"layers.1.a": torch.zeros(2).long()}, 1), r"as torch.int64 for the server's torch.float32"),
        (Reply(4, {}, 0), "client 4 sent weight 0"),
        (Reply(4, {}, -1.0), "client 4 sent weight -1.0"),
        (Reply(4, {}, math.nan), "client 4 sent weight nan"),
        (Reply(4, {}, math.inf), "client 4 sent weight inf"),
    ],
)
def test_a_reply_that_does_not_fit_names_client_and_tensor(reply, text):
    with pytest.raises(RoundError, match=text):
        layerwise_mean({"layers.1.a": torch.zeros(2)}, [Reply(0, {"layers.1.a": torch.ones(2)}, 1), reply])


def test_weighting_is_checked():
    with pytest.raises(ConfigError, match=r"method\.weighting is 'example'.*did you mean 'examples'"):
        layerwise_mean({}, [], "example")
