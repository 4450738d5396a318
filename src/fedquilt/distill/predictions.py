"""What a model predicts along known answers: its likeliest tokens at every position, and the loss of each answer.

They travel as three tensors: ``<name>.tokens``, ``<name>.log_probs`` and ``<name>.losses``. A model can only use what
another one predicts in its own tokens and at its own positions: ``in_tokens_of`` translates, where both tokenizers are
at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from fedquilt.client.texts import Lent
from fedquilt.core.server import ServerModel
from fedquilt.core.tasks import IGNORED
from fedquilt.core.types import Memory, Order, Params, Range
from fedquilt.core.worker import Worker
from fedquilt.distill.logits import UNKNOWN, TopK, common_positions, top_k, vocabulary_map
from fedquilt.distill.paths import likelihood
from fedquilt.distill.public import Drawn

LOWEST, HIGHEST_LOSS = -1e4, 1e4
"""The lowest log-probability of a token, and the highest loss of an answer, that a message holds."""


class Predictions(TypedDict):
    """What a model predicts along some answers.

    Attributes
    ----------
    tokens, log_probs
        The k likeliest tokens at each position of an answer and their log-probabilities, (answers, positions, k), int32
        and float32. A token is ``UNKNOWN``, with log-probability 0, where there is none: behind an answer's end, or in
        place of one that the reader lacks.
    losses
        Each answer's cross-entropy per token, (answers,).
    """

    tokens: Tensor
    log_probs: Tensor
    losses: Tensor


def no_predictions(answers: int, positions: int, k: int) -> Predictions:
    """Predictions of nothing, in this form."""
    tokens = torch.full((answers, positions, k), UNKNOWN, dtype=torch.int32)
    return Predictions(tokens=tokens, log_probs=torch.zeros(tokens.shape), losses=torch.zeros(answers))


def predicted(
    lent: Lent, prompts: Sequence[str], answers: Sequence[str], *, k: int, positions: int, temperature: float = 1.0
) -> Predictions:
    """What the model predicts along these answers, without gradients.

    Parameters
    ----------
    lent
        The model.
    prompts, answers
        The questions, and the answer to each.
    k
        Number of tokens at each position, no more than the model has.
    positions
        The most tokens of an answer whose predictions are kept; its loss is that of all.
    temperature
        Logits are divided by it, except for the loss.
    """
    found = no_predictions(len(answers), positions, k)
    if lent.planned or not answers:
        return found
    columns = lent.columns(prompts, answers)
    for rows in torch.arange(len(answers)).split(lent.batch_size):
        with torch.no_grad():
            logits, labels = lent.bench.forward({name: column[rows] for name, column in columns.items()})
        found["losses"][rows] = -likelihood(logits, labels).mean.cpu()
        row, column, place = answer_places(labels, positions)
        top = top_k(logits[row, column] / temperature, k)
        found["tokens"][rows[row], place] = top.tokens.cpu().int()
        found["log_probs"][rows[row], place] = top.log_probs.cpu().clamp(min=LOWEST)
    found["losses"].clamp_(0, HIGHEST_LOSS)
    return found


def answer_places(labels: Tensor, positions: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows and columns of logits that predict the first tokens of answers, and these tokens' places in them.

    ``labels`` is (rows, tokens), -100 where the answer is not; all three results are (found,), on the CPU.
    """
    wanted = (labels[:, 1:] != IGNORED).cpu()
    place = wanted.cumsum(1) - 1
    row, column = (wanted & (place < positions)).nonzero(as_tuple=True)
    return row, column, place[row, column]


class Tokenized(NamedTuple):
    """How a model cuts answers into tokens.

    Attributes
    ----------
    vocabulary
        Every token, see ``client.texts.Language``.
    texts
        Each answer as the model reads it.
    places
        The place in it, in characters, at which each token begins; that of the end token is its length.
    """

    vocabulary: tuple[str, ...]
    texts: list[str]
    places: list[list[int]]


def tokenized(lent: Lent, prompts: Sequence[str], answers: Sequence[str]) -> Tokenized:
    """How the model cuts these answers."""
    if lent.language is None or not answers:
        return Tokenized((), [""] * len(answers), [[]] * len(answers))
    columns, decode = lent.columns(prompts, answers), lent.language.decode
    texts, places = [], []
    for ids, labels in zip(columns["input_ids"].tolist(), columns["labels"].tolist(), strict=True):
        own = [index for index, label in enumerate(labels) if label != IGNORED]
        start = own[0] if own else 0
        # with the prompt before it, since some tokenizers drop a blank at the start of what they decode
        ahead = len(decode(ids[:start]))
        texts.append(decode(ids[: start + len(own)])[ahead:])
        places.append([len(decode(ids[:index])) - ahead for index in own])
    return Tokenized(lent.language.vocabulary(), texts, places)


def cuts(server: ServerModel, architecture: str, public: Drawn) -> Tokenized:
    """How the clients' model of an architecture cuts the drawn answers, as the server knows."""
    texts = public.questions, public.answers
    return server.students[architecture].lending(Order({}), None, lambda lent: tokenized(lent, *texts))


class Probe(NamedTuple):
    """What is asked of a model along answers.

    Attributes
    ----------
    k
        Number of its likeliest tokens at each position; all of a smaller vocabulary.
    positions
        The most tokens of an answer whose predictions are kept.
    temperature
        Logits are divided by it.
    """

    k: int
    positions: int
    temperature: float = 1.0

    def of(self, worker: Worker, order: Order, memory: Memory, public: Drawn) -> tuple[Predictions, Tokenized]:
        """What a worker's model predicts along the drawn answers, and how it cuts them into tokens."""
        here, texts = self.within(worker.num_tokens), (public.questions, public.answers)

        def look(lent: Lent) -> tuple[Predictions, Tokenized]:
            found = predicted(lent, *texts, k=here.k, positions=here.positions, temperature=here.temperature)
            return found, tokenized(lent, *texts)

        return worker.lending(order, memory, look)

    def within(self, num_tokens: int) -> Probe:
        """The same for a model with so many tokens."""
        return self._replace(k=min(self.k, num_tokens))


def in_tokens_of(student: Tokenized, teacher: Tokenized, found: Predictions) -> Predictions:
    """The teacher's predictions in the student's tokens, at the positions at which both cut the same text.

    Other positions, and tokens that the student lacks, are ``UNKNOWN``. Between equal tokenizers nothing changes.
    """
    count, positions, k = found["tokens"].shape
    made = no_predictions(count, positions, k)
    vocabulary = vocabulary_map(teacher.vocabulary, student.vocabulary)
    for answer in range(count):
        pairs = _pairs(teacher, student, answer)
        pairs = pairs[(pairs < positions).all(1)]
        theirs = TopK(found["tokens"][answer, pairs[:, 0]].long(), found["log_probs"][answer, pairs[:, 0]])
        known = (theirs.tokens >= 0) & (theirs.tokens < len(vocabulary))
        tokens = torch.full_like(theirs.tokens, UNKNOWN)
        tokens[known] = vocabulary[theirs.tokens[known]]
        made["tokens"][answer, pairs[:, 1]] = tokens.int()
        made["log_probs"][answer, pairs[:, 1]] = theirs.log_probs.masked_fill(tokens == UNKNOWN, 0)
    return Predictions(**{**made, "losses": found["losses"].clone()})


def _pairs(teacher: Tokenized, student: Tokenized, answer: int) -> Tensor:
    """The positions of both at which they have read the same text of an answer, (pairs, 2)."""
    theirs, own = teacher.texts[answer], student.texts[answer]
    same = next((n for n, (a, b) in enumerate(zip(theirs, own, strict=False)) if a != b), min(len(theirs), len(own)))
    pairs = common_positions(teacher.places[answer], student.places[answer])
    return pairs[[student.places[answer][pair[1]] <= same for pair in pairs.tolist()]]


def better(teacher: Tensor, student: Tensor) -> Tensor:
    """Whether ``exp(-CE)`` of an answer is greater under the teacher than under the student, (answers,).

    Both are cross-entropies per token.

    Paper: fedmkt, selection
    """
    return teacher < student


def merged(best: Predictions, other: Predictions, where: Tensor) -> Predictions:
    """The predictions of ``other`` for the answers at which ``where`` holds, (answers,), and else those of ``best``."""
    each = where.view(-1, 1, 1)
    return Predictions(
        tokens=torch.where(each, other["tokens"], best["tokens"]),
        log_probs=torch.where(each, other["log_probs"], best["log_probs"]),
        losses=torch.where(where, other["losses"], best["losses"]),
    )


def prediction_params(found: Predictions, name: str) -> Params:
    """The predictions as tensors of a message."""
    return {
        f"{name}.tokens": found["tokens"],
        f"{name}.log_probs": found["log_probs"],
        f"{name}.losses": found["losses"],
    }


def predictions_of(params: Mapping[str, Tensor], name: str) -> Predictions:
    """The predictions in a message; probabilities of a position that sum to more than 1 are scaled down to it."""
    tokens, log_probs = params[f"{name}.tokens"], params[f"{name}.log_probs"]
    known = tokens != UNKNOWN
    total = log_probs.masked_fill(~known, -torch.inf).logsumexp(-1, keepdim=True).clamp(min=0)
    return Predictions(
        tokens=tokens.clone(), log_probs=(log_probs - total) * known, losses=params[f"{name}.losses"].clone()
    )


def prediction_ranges(num_tokens: int, name: str) -> dict[str, Range]:
    """The ranges of the predictions of a model with so many tokens: for ``Exchange.ranges``."""
    return {
        f"{name}.tokens": Range(UNKNOWN, num_tokens - 1, whole=True),
        f"{name}.log_probs": Range(LOWEST, 1e-3),
        f"{name}.losses": Range(0, HIGHEST_LOSS),
    }
