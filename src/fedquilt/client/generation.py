"""Texts that a language model generates, greedily or by sampling, and its evaluation by the answers in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import IGNORED
from fedquilt.metrics.answers import is_right
from fedquilt.metrics.programs import right_programs


@dataclass(frozen=True)
class Answering:
    """How a model's answers are generated and compared.

    ``kind`` is one of ``metrics.answers.KINDS``, ``decode`` converts tokens to text, ``new_tokens`` is the largest
    number of tokens of an answer, and ``classes`` are the possible labels.
    """

    kind: str
    decode: Callable[[Sequence[int]], str]
    new_tokens: int = 64
    classes: tuple[str, ...] = ()


class Asked(NamedTuple):
    """A prompt that an answer is to be generated for, and the reference completion, both as tokens."""

    prompt: Tensor
    gold: list[int]


def asked(bench: Workbench, batch: Batch, logits: Tensor, answering: Answering) -> list[Asked | None]:
    """What must be generated to know whether each row's answer is right; None for a row whose answer surely is.

    ``logits`` are those of the whole rows. If every token of the reference completion has the largest logit, the model
    would generate exactly this completion with greedy decoding: the answer is right, and nothing is generated.
    """
    golds = [row[row != IGNORED].tolist() for row in batch["labels"]]
    sure = _surely_right(bench, batch, logits, golds, answering)
    prompts = [ids[: _start(labels)] for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)]
    rows = zip(prompts, golds, sure, strict=True)
    return [None if known else Asked(prompt, gold) for prompt, gold, known in rows]


def right(bench: Workbench, rows: Sequence[Asked], answering: Answering, batch_size: int = 256) -> list[bool]:
    """Whether the model's answer to each prompt, by greedy decoding, is right."""
    ids = written(bench, [row.prompt for row in rows], answering.new_tokens, batch_size)
    said = [answering.decode(own) for own in ids]
    wanted = [answering.decode(row.gold) for row in rows]
    if answering.kind == "program":
        return right_programs(said, wanted)
    pairs = zip(said, wanted, strict=True)
    return [is_right(answering.kind, mine, gold, answering.classes) for mine, gold in pairs]


Stop = Callable[[Sequence[int]], bool]
"""Whether the tokens generated so far are a whole text, behind which nothing is generated."""


class Sampling(NamedTuple):
    """Sampling instead of greedy decoding: from the softmax of the logits divided by ``temperature``, above 0.

    Prompt number i draws from ``rng.child("prompt", i)``.
    """

    temperature: float
    rng: Rng


def written(
    bench: Workbench,
    prompts: Sequence[Tensor],
    new_tokens: int,
    batch_size: int = 256,
    *,
    sampling: Sampling | None = None,
    stop: Stop | None = None,
) -> list[list[int]]:
    """The tokens that the model generates after each prompt, at most ``new_tokens``, up to and including the end token.

    If the model has a maximum length, fewer tokens are generated after a long prompt; a prompt that leaves no room at
    all is truncated at its start. The result does not depend on the other prompts: prompts of different lengths share a
    batch only if the model handles left padding correctly (``bench.pads_left``). Batches are of similar lengths.

    Parameters
    ----------
    bench, prompts
        The model, and the tokens of each prompt.
    new_tokens, batch_size
        The largest number of tokens to generate, and of prompts in a batch.
    sampling
        How to sample; None for greedy decoding.
    stop
        A rule by which a text ends besides the end token, see ``stops_at``; the token that completes it is kept.
    """
    longest = _longest(bench)
    groups: dict[tuple[int, int], list[int]] = {}
    own = list(prompts)
    for index, prompt in enumerate(prompts):
        room = _room(len(prompt), new_tokens, longest)
        if longest is not None and len(prompt) >= longest:
            own[index] = prompt[-(longest - room) :]
        together = bench.pads_left and room == new_tokens
        groups.setdefault((room, 0 if together else len(own[index])), []).append(index)
    found: list[list[int]] = [[] for _ in own]
    for (room, _), indices in groups.items():
        indices.sort(key=lambda index: len(own[index]))
        for first in range(0, len(indices), batch_size):
            batch = indices[first : first + batch_size]
            chosen = None if sampling is None else _sampler(sampling, batch)
            for index, ids in zip(batch, _written(bench, [own[i] for i in batch], room, chosen, stop), strict=True):
                found[index] = ids
    return found


def stops_at(decode: Callable[[Sequence[int]], str], texts: Sequence[str]) -> Stop:
    """A rule by which a text ends as soon as it contains one of these texts; empty ones do not count."""
    wanted = [text for text in texts if text]
    # a token stands for at least one byte; one more, as some tokenizers drop a blank at the start of what they decode
    tail = 1 + max((len(text.encode()) for text in wanted), default=0)

    def stop(ids: Sequence[int]) -> bool:
        end = decode(ids[-tail:])
        return any(text in end for text in wanted)

    return stop


def _longest(bench: Workbench) -> int | None:
    """The model's maximum length: as found by trying, else that of its config, in which -1 may mean no limit."""
    model: Any = bench.model
    stated = getattr(model.config, "max_position_embeddings", None) if bench.longest is None else bench.longest
    return stated if stated is None or stated > 1 else None


def _room(prompt: int, new_tokens: int, longest: int | None) -> int:
    """The number of tokens to generate after a prompt of this length."""
    if longest is None:
        return new_tokens
    return min(new_tokens, longest - 1 if prompt >= longest else longest - prompt)


Choose = Callable[[Tensor, Tensor], Tensor]
"""Gives the scores, whose largest is the next token of each row, from the tokens so far and the logits."""


def _sampler(sampling: Sampling, numbers: Sequence[int]) -> Choose:
    """Scores whose largest is a draw from the softmax of the logits (Gumbel noise), a stream for each prompt number."""
    generators = [sampling.rng.child("prompt", number).torch() for number in numbers]

    def choose(ids: Tensor, logits: Tensor) -> Tensor:
        drawn = [torch.rand(logits.shape[1], generator=generator, dtype=torch.float64) for generator in generators]
        noise = -(-torch.stack(drawn).log()).log()
        return logits.float() / sampling.temperature + noise.to(logits.device, torch.float32)

    return choose


def _written(
    bench: Workbench,
    prompts: Sequence[Tensor],
    new_tokens: int,
    choose: Choose | None = None,
    stop: Stop | None = None,
) -> list[list[int]]:
    """The tokens generated after the prompts of one batch, padded on the left."""
    model: Any = bench.model
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), model.generation_config.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    lengths: dict[int, int] = {}
    rules: dict[str, Any] = {} if choose is None else {"logits_processor": [choose]}
    if stop is not None:
        rules["stopping_criteria"] = [_stopping(stop, width, lengths)]
    with torch.no_grad(), bench.autocast(), _last_states_in_one_piece(model):
        whole = model.generate(
            input_ids=ids.to(bench.device), attention_mask=mask.to(bench.device), max_new_tokens=new_tokens, **rules
        )
    ends = _ends(model)
    return [_up_to(row[: lengths.get(index)], ends) for index, row in enumerate(whole[:, width:].tolist())]


@contextmanager
def _last_states_in_one_piece(model: Any) -> Iterator[None]:
    """Copy what the output layer reads in half precision on the CPU, where it is a part of a larger tensor.

    The states of each prompt's last token are such a part, with gaps between rows, for which torch multiplies row by
    row in a loop of its own: 17 seconds for 8 rows and a vocabulary of 152 thousand, in place of 0.03. In single
    precision it costs little, and the copy would be rounded in another way.
    """

    def copied(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(one.contiguous() if one.element_size() < 4 and one.device.type == "cpu" else one for one in inputs)

    layer = model.get_output_embeddings()
    hook = None if layer is None else layer.register_forward_pre_hook(copied)
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def _stopping(stop: Stop, width: int, lengths: dict[int, int]) -> Callable[..., Tensor]:
    """Whether each row is whole, from its tokens behind the first ``width``; notes in ``lengths`` when it became so."""

    def stopped(ids: Tensor, scores: Any, **more: Any) -> Tensor:
        for index, row in enumerate(ids[:, width:].tolist()):
            if index not in lengths and stop(row):
                lengths[index] = len(row)
        return torch.tensor([index in lengths for index in range(len(ids))], device=ids.device)

    return stopped


def _surely_right(
    bench: Workbench, batch: Batch, logits: Tensor, golds: Sequence[list[int]], answering: Answering
) -> list[bool]:
    """Whether greedy decoding surely gives each row's completion, token by token."""
    labels = batch["labels"][:, : logits.shape[1]].to(logits.device)
    same = (logits[:, :-1].argmax(-1) == labels[:, 1:]) | (labels[:, 1:] == IGNORED)
    likeliest = same.all(1) & (labels[:, 0] == IGNORED)
    ends, longest = _ends(bench.model), _longest(bench)
    # a completion that was truncated has no end token, and a generated one is limited in length
    whole = [
        bool(gold) and gold[-1] in ends and len(gold) <= _room(_start(row), answering.new_tokens, longest)
        for gold, row in zip(golds, batch["labels"], strict=True)
    ]
    return [sure and fits for sure, fits in zip(likeliest.tolist(), whole, strict=True)]


def _start(labels: Tensor) -> int:
    """The index of the first label."""
    return int((labels != IGNORED).int().argmax())


def _ends(model: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def _up_to(ids: list[int], ends: frozenset[int]) -> list[int]:
    end = next((index for index, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: end + 1]
