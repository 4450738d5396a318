"""Small tokenizers of three families, trained on text; decoding restores every text exactly.

    llama   byte-pair encoding of characters; unknown characters are written as bytes (``<0xE2>``)
    gemma   a unigram model: the most likely segmentation of a text; bytes for unknown characters
    qwen    byte-pair encoding of bytes, so that no text is unknown

Each takes digits one by one, keeps spaces, and starts a text with its start token.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers


class Marks(NamedTuple):
    """The special tokens of a tokenizer, numbered 0, 1 and 2: padding, start and end of a text."""

    pad: str
    start: str
    end: str


MARKS: dict[str, Marks] = {
    "llama": Marks("<pad>", "<s>", "</s>"),
    "gemma": Marks("<pad>", "<bos>", "<eos>"),
    "qwen": Marks("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
}

_BYTES = tuple(f"<0x{number:02X}>" for number in range(256))
_WORDS = r" ?[A-Za-z]+|[0-9]| ?[^A-Za-z0-9\s]+|\s"


def new_tokenizer(family: str, size: int, texts: Sequence[str]) -> Tokenizer:
    """Train a tokenizer of a family with at most ``size`` tokens on ``texts``; deterministic."""
    tokenizer = _FAMILIES[family](size, texts)
    marks = MARKS[family]
    tokenizer.add_special_tokens(list(marks))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{marks.start} $A",
        pair=f"{marks.start} $A $B:1",
        special_tokens=[(marks.start, tokenizer.token_to_id(marks.start))],
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, family: str, max_length: int, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json in the format of Hugging Face into a folder."""
    marks = MARKS[family]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": marks.pad,
        "bos_token": marks.start,
        "eos_token": marks.end,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _llama(size: int, texts: Sequence[str]) -> Tokenizer:
    """Byte-pair encoding; the byte tokens are added after training, else texts that spell one would be read as it."""
    split = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    merged = Tokenizer(models.BPE())
    merged.pre_tokenizer = split
    merged.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size - len(MARKS["llama"]) - len(_BYTES), show_progress=False)
    )
    found = json.loads(merged.to_str())["model"]
    pieces = sorted(found["vocab"], key=found["vocab"].__getitem__)
    vocabulary = {piece: number for number, piece in enumerate((*MARKS["llama"], *_BYTES, *pieces))}
    merges = [(left, right) for left, right in found["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _qwen(size: int, texts: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(MARKS["qwen"]),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


def _gemma(size: int, texts: Sequence[str]) -> Tokenizer:
    """A unigram model of all characters and the most frequent words with the space before them.

    Scores are log frequencies. They are computed here because the sums of the library's trainer depend on the order of
    a hash map.
    """
    words: Counter[str] = Counter()
    for text in texts:
        words.update(re.findall(_WORDS, text))
    characters: Counter[str] = Counter()
    for word, count in words.items():
        characters.update({letter: count * word.count(letter) for letter in set(word)})
    room = size - len(MARKS["gemma"]) - len(_BYTES) - len(characters)
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))[: max(0, room)]
    counts = {**characters, **{word: words[word] for word in frequent}}
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    total = sum(counts.values())
    pieces = [(token, 0.0) for token in (*MARKS["gemma"], *_BYTES)]
    pieces += [(piece, round(math.log(count / total), 4)) for piece, count in ordered]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[0-9]"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


_FAMILIES: dict[str, Callable[[int, Sequence[str]], Tokenizer]] = {"llama": _llama, "gemma": _gemma, "qwen": _qwen}
