"""Answers that a model writes: held to a loop that knows no cache, no padding and no shortcut."""

import pytest
import torch
from small_federation import GPT2, LLAMA, rows, start_of, workbench

from fedquilt.client.generation import Answering, Asked, Sampling, asked, right, stops_at, written
from fedquilt.client.score import evaluation
from fedquilt.core.rng import Rng

PAD = 0
ENDS = [3 * number for number in range(1, 86)]  # a third of all tokens, so that a random model comes to an end


def causal(model):
    bench = workbench(model, "causal-lm")
    bench.load(start_of(bench))
    bench.model.generation_config.eos_token_id = ENDS
    return bench


def naive(bench, prompt, new_tokens):
    """The likeliest token again and again, each time from all that is there."""
    ids = prompt.long().tolist()
    for _ in range(new_tokens):
        with torch.no_grad():
            logits = bench.model(input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] in ENDS:
            break
    return ids[len(prompt) :]


def decode(ids):
    return " ".join(str(id) for id in ids if id not in ENDS and id != PAD)


def prompts_of(count=9):
    columns = rows("causal-lm", count)
    return [row[: 1 + place % 4] for place, row in enumerate(columns["input_ids"])]


def batch_of(prompts, completions, width):
    ids = torch.zeros(len(prompts), width, dtype=torch.int32)
    mask, labels = torch.zeros_like(ids), torch.full((len(prompts), width), -100, dtype=torch.long)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        stop = len(prompt) + len(completion)
        ids[row, :stop] = torch.cat([prompt, torch.tensor(completion, dtype=torch.int32)])
        mask[row, :stop] = 1
        labels[row, len(prompt) : stop] = torch.tensor(completion)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_layer_reads_half_precision_in_one_piece_on_the_cpu(monkeypatch, dtype):
    bench, seen = causal(LLAMA), []
    layer = bench.model.to(dtype).get_output_embeddings()
    plain = layer.forward
    monkeypatch.setattr(layer, "forward", lambda states: (seen.append(states), plain(states))[1])
    prompts = [prompt for prompt in prompts_of(12) if len(prompt) > 1]
    ids = written(bench, prompts, 6)
    assert all(states.is_contiguous() for states in seen) is (dtype == torch.bfloat16)
    assert not layer._forward_pre_hooks
    assert ids == written(bench, prompts, 6, batch_size=1)


@pytest.mark.parametrize("model", [LLAMA, GPT2])
@pytest.mark.parametrize("new_tokens", [1, 6])
def test_what_is_written_is_what_a_plain_loop_writes_in_whatever_company(model, new_tokens):
    bench = causal(model)
    prompts = prompts_of()
    expected = [naive(bench, prompt, new_tokens) for prompt in prompts]
    assert written(bench, prompts, new_tokens) == expected
    assert [written(bench, [prompt], new_tokens)[0] for prompt in prompts] == expected
    assert written(bench, prompts[4:7], new_tokens) == expected[4:7]
    assert written(bench, prompts, new_tokens, batch_size=2) == expected
    assert not any(parameter.requires_grad for parameter in bench.model.parameters())


def test_a_prompt_gives_way_where_the_model_has_a_longest_context():
    bench = causal(GPT2)
    bench.model.config.max_position_embeddings = 8
    long = torch.arange(10, 20)
    assert written(bench, [long], 5) == [naive(bench, long[-3:], 5)]
    assert written(bench, [long], 20) == [naive(bench, long[-1:], 7)]


def cases(bench, new_tokens):
    """Rows whose completion is what the model writes, or all but that, or cut, or that and more."""
    prompts, completions, right = [], [], []
    for place, prompt in enumerate(prompts_of(16)):
        own = naive(bench, prompt, new_tokens)
        kind = place % 4
        other = [token + 1 if token + 1 not in ENDS else token + 2 for token in own[:1]] + own[1:]
        prompts.append(prompt)
        completions.append([own, other, own[:-1] or own, [*own, 11]][kind])
        right.append(decode(completions[-1]) == decode(own))
    return batch_of(prompts, completions, 24), right


@pytest.mark.parametrize("model", [LLAMA, GPT2])
def test_what_is_written_is_what_transformers_generates_one_prompt_at_a_time_without_a_cache(model):
    bench = causal(model)
    prompts = [row.long() for row in prompts_of()]
    expected = []
    for prompt in prompts:
        with torch.no_grad():
            whole = bench.model.generate(
                input_ids=prompt[None], attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, use_cache=False
            )
        expected.append(whole[0, len(prompt) :].tolist())
    assert len({len(ids) for ids in expected}) > 2
    assert written(bench, prompts, 12, batch_size=4) == expected


def test_keys_and_values_are_cached_and_a_batch_holds_prompts_of_similar_lengths():
    bench = causal(LLAMA)
    bench.model.generation_config.eos_token_id = None  # every answer has all its tokens
    shapes = []

    def seen(_module, _words, keys):
        shapes.append(tuple(keys["input_ids"].shape))

    with bench.model.register_forward_pre_hook(seen, with_kwargs=True):
        written(bench, prompts_of(8), 3, batch_size=2)
    # the prompts, two of each length and so without padding, then one token at a time
    assert shapes == [shape for width in (1, 2, 3, 4) for shape in ((2, width), (2, 1), (2, 1))]


@pytest.mark.parametrize("model", [LLAMA, GPT2])
@pytest.mark.parametrize("new_tokens", [3, 8])
def test_the_rows_that_need_no_writing_are_those_that_writing_finds_right(model, new_tokens):
    bench = causal(model)
    batch, expected = cases(bench, 8)
    answering = Answering("exact", decode, new_tokens)
    with torch.no_grad():
        logits, _ = bench.forward(batch)
    every = [
        Asked(ids[: int((labels != -100).int().argmax())], labels[labels != -100].tolist())
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    found = right(bench, every, answering)
    unsure = [row for row in asked(bench, batch, logits, answering) if row is not None]
    assert 16 - len(unsure) + sum(right(bench, unsure, answering)) == sum(found)
    if new_tokens == 8:
        assert found == expected
        assert 4 <= sum(expected) < 16
        assert len(unsure) < 16


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_accuracy_is_the_share_of_right_rows_and_the_loss_stays(batch_size):
    bench = causal(LLAMA)
    params = start_of(bench)
    batch, expected = cases(bench, 8)
    plain = evaluation(bench, batch, params)
    scores = evaluation(bench, batch, params, batch_size=batch_size, answering=Answering("exact", decode, 8))
    assert scores["accuracy"] == sum(expected) / 16
    assert scores["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert scores["examples"] == 16.0
    assert plain["accuracy"] != scores["accuracy"]


def test_no_row_has_no_accuracy_but_zero():
    bench = causal(LLAMA)
    empty = {name: column[:0] for name, column in rows("causal-lm", 2).items()}
    scores = evaluation(bench, empty, start_of(bench), answering=Answering("exact", decode))
    assert scores == {"loss": 0.0, "accuracy": 0.0, "examples": 0.0}


@pytest.mark.parametrize(
    ("kind", "said", "gold", "classes", "is_right"),
    [
        ("number", "that is 7", "7.0", (), True),
        ("letter", "The answer is B", "B", (), True),
        ("letter", "A bee", "A", (), False),
        ("label", "no idea", "no", ("no", "no idea"), False),
        ("label", "No.", "no", ("no", "yes"), True),
        ("program", "answer = 3 + 4", "print(7)", (), True),
        ("program", "import os", "print(7)", (), False),
    ],
)
def test_every_kind_of_answer_is_compared_in_its_own_way(kind, said, gold, classes, is_right):
    bench = causal(LLAMA)
    texts = iter([said, gold])
    answering = Answering(kind, lambda ids: next(texts), 2, classes)
    assert right(bench, [Asked(torch.tensor([4, 5]), [6])], answering) == [is_right]


@pytest.mark.parametrize("model", [LLAMA, GPT2])
def test_a_sample_depends_on_its_prompt_and_its_stream_alone(model):
    bench = causal(model)
    prompts = [row.long() for row in prompts_of()]
    sampling = Sampling(0.7, Rng(3))
    found = written(bench, prompts, 8, sampling=sampling)
    assert found == written(bench, prompts, 8, batch_size=2, sampling=sampling)
    assert found[:4] == written(bench, prompts[:4], 8, sampling=sampling)
    assert found != written(bench, prompts, 8, sampling=Sampling(0.7, Rng(4)))
    assert found != written(bench, prompts, 8)
    assert written(bench, prompts, 8, sampling=Sampling(1e-6, Rng(3))) == written(bench, prompts, 8)


def test_samples_have_the_frequencies_of_the_softmax():
    bench = causal(LLAMA)
    prompt, temperature = prompts_of()[3].long(), 0.05  # of a random model, whose logits are all alike
    with torch.no_grad():
        odds = (bench.model(input_ids=prompt[None]).logits[0, -1] / temperature).softmax(0)
    found = written(bench, [prompt] * 2000, 1, batch_size=1000, sampling=Sampling(temperature, Rng(0)))
    counts = torch.bincount(torch.tensor(found).flatten(), minlength=len(odds)) / 2000
    assert 0.02 < odds.max() < 0.9
    assert (counts - odds).abs().max() < 4 * (odds.max() * (1 - odds.max()) / 2000).sqrt()


def test_a_text_ends_where_it_is_whole_and_others_go_on():
    bench = causal(LLAMA)
    bench.model.generation_config.eos_token_id = None
    prompts = [row.long() for row in prompts_of()]
    whole = written(bench, prompts, 12)
    wanted = whole[0][1]

    def first(ids):
        return next((ids[: index + 1] for index, token in enumerate(ids) if token == wanted), ids)

    found = written(bench, prompts, 12, stop=lambda ids: wanted in ids)
    assert found == [first(ids) for ids in whole]
    assert found[0] == whole[0][:2]
    assert any(len(ids) > 2 for ids in found)


def test_a_text_stops_at_a_text_of_several_tokens():
    stop = stops_at(lambda ids: "".join(map(chr, ids)), ("\n\n", "", "END"))
    said = [ord(sign) for sign in "one\ntwo EN\n\nEND"]
    assert next(n for n in range(len(said) + 1) if stop(said[:n])) == len("one\ntwo EN\n\n")
    assert stop([*said, *b"..."]) is False  # it has been said before, and is not said again
    assert not stops_at(str, ())([1, 2])
