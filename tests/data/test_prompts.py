"""Rows as prompts and completions: the layouts, a prompt of the user's own, words for classes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.core.errors import DataError
from fedquilt.data.bad_rows import Troubles
from fedquilt.data.loaders import load_table
from fedquilt.data.prompts import filled, placeholders, rendered
from fedquilt.data.readers.raw_columns import from_columns
from fedquilt.data.table import concatenated

MATH = [
    {"instruction": "What is 2 + 3?", "output": "The answer is 5", "source": "data/CoT/gsm_rft.json"},
    {"instruction": "What is 4 * 5?", "output": "print(20)", "source": "data/PoT/mathqa.json"},
]
ALPACA = [
    {"instruction": "Translate.", "input": "Haus", "output": "house"},
    {"instruction": "Say hello.", "input": "", "output": "hello"},
    {"instruction": "Say bye.", "input": None, "output": "bye"},
]
CHAT = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "2 + 3?"},
            {"role": "assistant", "content": "5"},
            {"role": "user", "content": "4 * 5?"},
            {"role": "assistant", "content": "20"},
        ]
    },
]


@pytest.fixture
def written(tmp_path):
    """``written(name, rows)``: the path of a file with these rows, one a line or as one list."""

    def write(name, rows):
        text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_instruction_and_output_make_a_prompt_and_a_completion(written, name):
    table = load_table(written(name, MATH))
    assert table.kind == "text"
    assert table.targets == ["The answer is 5", "print(20)"]
    assert table.turns == [(("user", "What is 2 + 3?"),), (("user", "What is 4 * 5?"),)]
    assert table.inputs[0] == "User:\nWhat is 2 + 3?\n\nAssistant:\n"
    assert "source" in table.columns


def test_an_input_stands_below_its_instruction(written):
    table = load_table(written("a.jsonl", ALPACA))
    assert [turns[0][1] for turns in table.turns] == ["Translate.\n\nHaus", "Say hello.", "Say bye."]
    assert table.targets == ["house", "hello", "bye"]
    by_hand = load_table(written("b.jsonl", ALPACA), prompt="{instruction} {input}:")
    assert by_hand.inputs == ["Translate. Haus:", "Say hello. :", "Say bye. :"]
    assert by_hand.targets == table.targets
    assert by_hand.turns is None  # written by the user, so no template writes it


def test_the_last_message_is_the_completion_and_the_others_come_before(written):
    table = load_table(written("a.jsonl", CHAT))
    assert table.targets == ["Hello", "20"]
    assert [len(turns) for turns in table.turns] == [1, 4]
    assert table.inputs[1] == ("System:\nBe short.\n\nUser:\n2 + 3?\n\nAssistant:\n5\n\nUser:\n4 * 5?\n\nAssistant:\n")
    assert table.rows([1]).turns == [table.turns[1]]
    assert concatenated([table, table.rows([0])]).turns == [*table.turns, table.turns[0]]


def test_parquet_and_csv_files_are_laid_out_alike(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(CHAT).to_parquet(tmp_path / "a.parquet")
    assert load_table(str(tmp_path / "a.parquet")).targets == ["Hello", "20"]
    (tmp_path / "a.csv").write_text("instruction,output\nGo,gone\n")
    assert load_table(str(tmp_path / "a.csv")).targets == ["gone"]


def test_a_text_column_comes_first_unless_the_format_is_given(written):
    rows = [{**row, "text": "all of it"} for row in MATH]
    plain = load_table(written("a.jsonl", rows))
    assert plain.inputs == ["all of it"] * 2
    assert plain.targets is None
    assert load_table(written("a.jsonl", rows), format="instruction").targets[1] == "print(20)"
    assert load_table(written("a.jsonl", rows), target="output").targets[1] == "print(20)"
    assert load_table(written("a.jsonl", MATH), text="instruction", target="output", format="plain").turns is None


SENTENCES = [
    {"sentence": "fine", "question": "good?", "label": 1, "stars": 4},
    {"sentence": "awful", "question": "good?", "label": 0, "stars": 1},
]


def test_a_class_is_posed_as_text(written):
    file = written("a.jsonl", SENTENCES)
    words = {"0": "negative", "1": "positive"}
    table = load_table(file, text="sentence", prompt="{text}\nSentiment: ", words=words)
    assert table.inputs == ["fine\nSentiment: ", "awful\nSentiment: "]
    assert table.targets == ["positive", "negative"]
    assert table.labels.tolist() == [1, 0]
    pair = load_table(file, text="sentence", pair="question", prompt="{{{text}}} {pair} {stars}", words=None)
    assert pair.inputs == ["{fine} good? 4", "{awful} good? 1"]
    assert pair.targets == ["1", "0"]
    other = load_table(file, prompt="{question} {sentence}", target="sentence")
    assert other.inputs[0] == "good? fine"
    assert other.targets == ["fine", "awful"]


def test_a_prompt_also_names_the_columns_of_a_tsv_file(tmp_path):
    (tmp_path / "a.tsv").write_text("question\tsentence\tentails\nwho\tme\tyes\n")
    table = load_table(str(tmp_path / "a.tsv"), prompt="{question} {sentence}", label="entails")
    assert (table.inputs, table.targets) == (["who me"], ["yes"])


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        (
            SENTENCES,
            {"prompt": "{sentense}"},
            r"has no column 'sentense' for \{sentense\} \(did you mean 'sentence'\?\)",
        ),
        (SENTENCES, {"prompt": "{text}"}, r"has no column 'text' for \{text\}; columns: sentence, question, label"),
        (
            SENTENCES,
            {"prompt": "{sentence"},
            r"data.prompt = '\{sentence': .*write a literal brace twice",
        ),
        (SENTENCES, {"prompt": "{sentence!r}"}, r"braces must hold the name of a column and nothing else"),
        (SENTENCES, {"prompt": "{}"}, r"braces must hold the name of a column"),
        (
            SENTENCES,
            {"prompt": "Sentiment:"},
            r"holds no column, so all rows would be equal; insert a column as in '\{text\}'",
        ),
        (SENTENCES, {"prompt": "{sentence}", "words": {"0": "no"}}, r"data.words: has no word for the class '1'"),
        (SENTENCES, {"format": "messages"}, r"data.format = 'messages': .* has no column 'messages'"),
        (CHAT, {"format": "instruction"}, r"has no column 'instruction', 'output'; columns: messages"),
        (
            CHAT,
            {"prompt": "{messages}"},
            r"\{messages\}: neither text nor number \(\[.*\]\): 2 rows: .*, lines 1 and 2$",
        ),
        (MATH, {"text": "instructions"}, r"neither a column 'instructions' \(data\.text\).*did you mean 'instruction'"),
        ([{"messages": "Hi"}], {}, r"'messages': must be a list of role and content \('Hi'\): 1 row: .*, line 1$"),
        ([{"messages": [{"role": "user"}]}], {}, r"lacks a role or a content that is text"),
        (
            [CHAT[0], {"messages": CHAT[0]["messages"][:1]}],
            {},
            r"'messages': the roles are user; the last must .*: 1 row: .*, line 2$",
        ),
        ([{"messages": []}], {}, r"the roles are none; the last must be the assistant"),
        ([{"instruction": "Go", "output": 5}], {}, r"column 'output': not text \(5\): 1 row: .*, line 1$"),
        ([{"instruction": None, "output": "5"}], {}, r"column 'instruction': not text \(None\): 1 row: .*, line 1$"),
    ],
)
def test_what_cannot_be_posed_is_told_with_its_place(written, rows, keys, message):
    with pytest.raises(DataError, match=message):
        load_table(written("a.jsonl", rows), **keys)


@given(st.dictionaries(st.sampled_from(["a", "b c", "d_e"]), st.text(), min_size=3), st.text("xyz{}", max_size=5))
def test_a_filled_prompt_is_the_template_with_the_values_in_their_places(values, literal):
    escaped = literal.replace("{", "{{").replace("}", "}}")
    prompt = f"{escaped}{{a}}{escaped}{{b c}}{{d_e}}{{a}}"
    assert placeholders(prompt) == ("a", "b c", "d_e")
    raw = from_columns({name: [value] for name, value in values.items()})
    expected = f"{literal}{values['a']}{literal}{values['b c']}{values['d_e']}{values['a']}"
    assert filled(prompt, raw, {}, "here", Troubles(raw.origin)) == [expected]


def test_a_conversation_ends_where_the_assistant_speaks():
    assert rendered((("user", "  Hi \n"),)) == "User:\nHi\n\nAssistant:\n"


def test_one_list_or_one_object_a_line_and_nothing_else_is_a_json_file(tmp_path, written):
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, MATH)))
    assert load_table(str(tmp_path / "lines.json")).targets == ["The answer is 5", "print(20)"]
    for text, message in (
        ("{", r"line 1: not JSON"),
        ('{"data": []}', r"holds one dict; a \.json file must be a list of objects"),
        ("[1]", r"int found; every row must be a JSON object: 1 row: .*, row 1$"),
        ("[]", r"holds no rows"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=message):
            load_table(str(tmp_path / "bad.json"))


def test_in_a_folder_json_is_data_only_where_nothing_else_is(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(MATH))
    (tmp_path / "test.json").write_text(json.dumps(MATH[:1]))
    assert load_table(str(tmp_path)).is_train.tolist() == [True, True, False]
    (tmp_path / "train.jsonl").write_text(json.dumps(ALPACA[0]))
    assert load_table(str(tmp_path)).targets == ["house"]
