"""What a text answers, and whether that is what the right answer says.

A language model writes prose around its answers. What is taken out of it is a whole word, number or letter, never a
part of one: "no" is not in "not", and the article in "a dog" is not option A.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

KINDS = ("exact", "number", "letter", "program", "label")
"""Ways to compare two texts: as they are, by their number, option letter, their program's value, or class name."""

_NUMBER = re.compile(
    r"(?<![\w.])"  # not the tail of a word or of another number
    r"(?P<sign>(?<![\w)\]])[-+\u2212])?\s?[$\u20ac\u00a3]?"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+(?![\d]|,\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?P<power>[eE][-+]?\d{1,3}(?!\w))?"
)
_TRIGGER = re.compile(r"\banswers?\b\s*(?:is|are|=|:)\s*:?\s*", re.IGNORECASE)
_OPTION_TRIGGER = re.compile(r"\b(?:answers?|options?|choices?)\b\s*(?:is|are|=|:)?\s*:?\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)")
_ONLY_LETTER = re.compile(r"[\s(\[\"'*]*([A-Ea-e])[\s)\]\"'*.:,]*")
_MARKED_LETTER = re.compile(r"(?<![\w(\[])[(\[]?([A-Ea-e])[)\]](?!\w)")
_BARE_LETTER = re.compile(r"(?<![\w'\u2019])([A-E])(?![\w'\u2019])")
_AFTER_OPTION_A = re.compile(
    r"\s*$|[^\w\s]|\s+[-\u2013\u2014]\s|\s+(?:is|was|because|since|as|and|or)\b", re.IGNORECASE
)
_FENCED = re.compile(r"```[ \t]*\w*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_MOST_DIGITS = 300
_CLOSE = Fraction(1, 10**9)


def folded(text: str) -> str:
    """The text without white space around it, and with one blank for any white space inside."""
    return " ".join(text.split())


def number(text: str) -> Fraction | None:
    """The number that the text ends on, or None: of the sentence behind the last "answer is", if there is one.

    ``1,234`` is 1234 and ``7.0`` is 7; a currency before and a unit behind do not matter. A sign that stands between
    two numbers is an operation.
    """
    behind = _behind(_TRIGGER, text)
    if behind is not None:
        sentence = _SENTENCE_END.split(behind.strip(), maxsplit=1)[0]
        found = _last_number(sentence)
        if found is not None:
            return found
    return _last_number(text if behind is None else behind)


def answer_start(kind: str | None, text: str) -> int:
    """The place in a text at which its answer begins: its last number for that kind, else its last line that has text.

    Without a number it is the text's end: there is no answer.
    """
    if kind == "number":
        found = [match.start("digits") for match in _NUMBER.finditer(text)]
        return found[-1] if found else len(text)
    return text.rstrip().rfind("\n") + 1


def letter(text: str) -> str | None:
    """The option from A to E that the text chooses, in upper case, or None.

    The first one that stands alone, behind the last "answer is" or "option" if there is one. A lower-case letter counts
    where it is the whole text or has a bracket; an A not where it may be the article: "A dog barks".
    """
    if whole := _ONLY_LETTER.fullmatch(text):
        return whole[1].upper()
    behind = _behind(_OPTION_TRIGGER, text)
    if behind is not None:
        direct = re.match(r"[\s(\[\"'*]*([A-E])(?![\w'\u2019])", behind) or _ONLY_LETTER.fullmatch(behind)
        if direct:
            return direct[1].upper()
    for part in (behind, text):
        if part is not None and (found := _first_letter(part)):
            return found
    return None


def label(text: str, classes: Sequence[str]) -> str | None:
    """The class whose name the text begins with, as a whole word, or None; the longest where several fit.

    Upper and lower case are one, and quotes or brackets before the name do not matter.
    """
    said = folded(text).casefold().lstrip("\"'`*([{ ")
    fitting = [name for name in classes if folded(name) and _begins_with(said, folded(name).casefold())]
    return max(fitting, key=lambda name: len(folded(name)), default=None)


def program(text: str) -> str:
    """The program in a text: what stands in its first fence of three backticks, or all of it."""
    fenced = _FENCED.search(text)
    return fenced[1] if fenced else text


def same_number(left: Fraction | None, right: Fraction | None) -> bool:
    """Whether both are there and equal; of two that are not both whole, up to the rounding of floats (1e-9)."""
    if left is None or right is None:
        return False
    if left.denominator == right.denominator == 1:
        return left == right
    return abs(left - right) <= _CLOSE * max(abs(left), abs(right))


def says_something(kind: str, text: str) -> bool:
    """Whether a right answer can be compared by this kind: it has text, a number, a letter. Programs are not run."""
    readers: dict[str, Callable[[str], object]] = {"number": number, "letter": letter}
    return readers.get(kind, folded)(text) not in (None, "")


def is_right(kind: str, said: str, gold: str, classes: Sequence[str] = ()) -> bool:
    """Whether ``said`` answers what ``gold`` does, by any kind but ``program``, which has to run.

    ``classes`` are the names that a label can have; that of ``gold`` is always one of them.
    """
    if folded(said) == folded(gold):
        return True
    match kind:
        case "exact":
            return False
        case "number":
            return same_number(number(said), number(gold))
        case "letter":
            wanted = letter(gold)
            return wanted is not None and letter(said) == wanted
        case "label":
            found = label(said, [gold, *classes])
            return found is not None and folded(found).casefold() == folded(gold).casefold()
    raise ValueError(f"answers of kind '{kind}' cannot be compared as text")


def _behind(trigger: re.Pattern[str], text: str) -> str | None:
    """What stands behind the last trigger that has anything behind it."""
    behind = [text[match.end() :] for match in trigger.finditer(text)]
    return next((rest for rest in reversed(behind) if rest.strip()), None)


def _last_number(text: str) -> Fraction | None:
    found = None
    for found in _NUMBER.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    if found is None or len(found["digits"]) > _MOST_DIGITS:
        return None
    sign = -1 if found["sign"] in ("-", "\u2212") else 1
    return sign * Fraction(found["digits"].replace(",", "") + (found["power"] or ""))


def _first_letter(text: str) -> str | None:
    marked, bare = _MARKED_LETTER.search(text), None
    for bare in _BARE_LETTER.finditer(text):
        if bare[1] != "A" or _AFTER_OPTION_A.match(text[bare.end() :]):
            break
    else:
        bare = None
    found = [match for match in (marked, bare) if match is not None]
    return min(found, key=lambda match: match.start(1))[1].upper() if found else None


def _begins_with(said: str, name: str) -> bool:
    return re.match(re.escape(name) + r"(?!\w|[-'\u2019]\w)", said) is not None
