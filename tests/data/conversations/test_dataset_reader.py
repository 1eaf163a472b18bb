from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import typer

from mm_rec.cli.data_convert import convert
from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.data.conversations.dataset_reader import read_conversations
from mm_rec.data.conversations.validation import check_conversation
from mm_rec.errors import ConfigError, DataError
from mm_rec.sources.documents import find_files
from mm_rec.terminal import run_app
from mm_rec.tokenizers.special_tokens import SPECIAL_TOKENS


def run(*arguments: object) -> int:
    app = typer.Typer()
    app.command()(convert)
    return run_app(app, "mmrec data convert", [str(argument) for argument in arguments])


def pair(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": question, "completion": answer}


def said(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation.messages]


def write_lines(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_files_of_every_kind_in_a_folder(tmp_path: Path):
    write_lines(tmp_path / "a.jsonl", pair("a?", "a!"), "", pair("b?", "b!"))
    (tmp_path / "b.json").write_text(json.dumps([pair("c?", "c!")]))
    (tmp_path / "c.csv").write_text(
        "soru;cevap\nd?;d!\n".replace("soru", "question").replace("cevap", "answer")
    )
    with gzip.open(tmp_path / "d.json.gz", "wt") as file:
        file.write(json.dumps([pair("e?", "e!")]))
    messages = [
        {"role": "user", "content": "f?", "weight": None},
        {"role": "assistant", "content": "f!", "weight": 1},
    ]
    pyarrow.parquet.write_table(
        pyarrow.table({"messages": [messages], "tools": [None]}), tmp_path / "e.parquet"
    )
    found = read_conversations([tmp_path])
    assert found.issues == []
    assert [said(one) for one in found.conversations] == [[f"{letter}?", f"{letter}!"] for letter in "abcdef"]
    assert [Path(one.location).name for one in found.conversations] == [
        "a.jsonl:1", "a.jsonl:3", "b.json:1", "c.csv:1", "d.json.gz:1", "e.parquet:1",
    ]  # fmt: skip
    assert found.conversations[-1].messages[-1] == ChatMessage("assistant", "f!", weight=1)
    assert [(file.rows, file.conversations, dict(file.formats)) for file in found.files][-1] == (
        1,
        1,
        {"openai": 1},
    )


def test_json_is_read_as_conversations_and_never_taken_for_a_corpus_of_text(tmp_path: Path):
    (tmp_path / "a.txt").write_text("metin")
    (tmp_path / "settings.json").write_text("{}")
    assert [file.name for file in find_files([tmp_path])] == ["a.txt"]
    with pytest.raises(DataError, match=r"supported: \.jsonl, \.json, \.csv"):
        read_conversations([tmp_path / "a.txt"])


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_the_rows_of_an_array_have_the_lines_where_they_start(indent: int | None, tmp_path: Path):
    rows = [pair("a\nb?", "c!"), pair("d?", "e!"), pair("f?", "g!")]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=indent))
    found = read_conversations([path])
    assert [said(one)[1] for one in found.conversations] == ["c!", "e!", "g!"]
    assert [one.location for one in found.conversations] == [
        f"{path}:{n}" for n in ((1, 1, 1) if indent is None else (2, 6, 10))
    ]


def test_json_that_holds_one_object_after_another(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(
        "\ufeff" + "\n".join([json.dumps(pair("a?", "b!")), json.dumps(pair("c?", "d!"), indent=2)])
    )
    assert [one.location for one in read_conversations([path]).conversations] == [f"{path}:1", f"{path}:2"]


def test_a_broken_row_of_an_array_is_a_problem_and_the_next_row_is_read(tmp_path: Path):
    text = json.dumps([pair("a?", "b!"), 5, pair("c?", "d!"), pair("e?", "f!")], indent=2)
    path = tmp_path / "a.json"
    path.write_text(text.replace('"c?"', '"c?'))
    found = read_conversations([path])
    assert [said(one)[1] for one in found.conversations] == ["b!", "f!"]
    assert [(problem.kind, problem.location) for problem in found.issues] == [
        ("not-json", f"{path}:6"),
        ("not-json", f"{path}:7"),
    ]
    fixed = read_conversations([path], fix=True)
    assert (len(fixed.conversations), fixed.issues) == (2, [])
    assert [fix.message for fix in fixed.fixes] == ["left out: not-json"] * 2


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ('[{"prompt": "a", "answer": "b"}', "truncated", "cut short"),
        ('[{"prompt": "a", "answer": "b"}, {"pro', "not-json", "what follows is not read"),
        ('[{"prompt": "a", "answer": "b"}]\n[]', "not-json", "more follows"),
        ("[]", "empty", "no rows"),
        ("", "empty", "empty"),
    ],
)
def test_a_file_that_breaks_off_remains_a_problem_even_with_fix(
    text: str, kind: str, words: str, tmp_path: Path
):
    path = tmp_path / "a.json"
    path.write_text(text)
    for fix in (False, True):
        (problem,) = read_conversations([path], fix=fix).issues
        assert problem.kind == kind and words in problem.message.lower()


BAD_ROWS: list[tuple[object, list[str]]] = [
    ({"messages": [{"content": "?"}, {"role": "assistant", "content": "!"}]}, ["missing-role", "role-order"]),
    (pair("?", "  "), ["empty-answer"]),
    ({"messages": [{"role": "system", "content": "s"}] * 2 + [{"role": "user", "content": "?"},
      {"role": "assistant", "content": "!"}]}, ["two-systems"]),
    ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [{"name": "hava"}]}]},
     ["call-without-definition"]),
    ({"messages": [{"role": "user", "content": "?"},
      {"role": "assistant", "function_call": {"name": "f", "arguments": "{a"}}]}, ["bad-arguments"]),
    ({**pair("?", "!"), "puan": 5}, ["unknown-field"]),
    ({**pair("?", ""), "puan": 5}, ["unknown-field", "empty-answer"]),
    ("{", ["not-json"]),
    ({"mesages": []}, ["unknown-field", "missing-field", "missing-field"]),  # by the format of the rows before
    (pair("<|user|>?", "!"), ["special-token"]),
]  # fmt: skip


def test_every_problem_of_a_file_is_told_once_with_its_line(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", pair("?", "!"), *(row for row, _ in BAD_ROWS), pair("?", "!"))
    found = read_conversations([path], special_tokens=SPECIAL_TOKENS)
    assert [one.location for one in found.conversations] == [f"{path}:1", f"{path}:{len(BAD_ROWS) + 2}"]
    expected = [
        (f"{path}:{line}", kind) for line, (_, kinds) in enumerate(BAD_ROWS, start=2) for kind in kinds
    ]
    assert sorted((problem.location, problem.kind) for problem in found.issues) == sorted(expected)


def test_with_fix_what_cannot_be_mended_is_left_out_and_said(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", pair("?", "!"), *(row for row, _ in BAD_ROWS))
    found = read_conversations([path], fix=True, special_tokens=SPECIAL_TOKENS)
    assert found.issues == []
    assert [one.location for one in found.conversations] == [f"{path}:{line}" for line in (1, 4, 7, 11)]
    assert {fix.location for fix in found.fixes} == {f"{path}:{line}" for line in range(2, len(BAD_ROWS) + 2)}


JUNK = [
    None,
    "",
    "x",
    "[",
    '{"name": "f"}',
    0,
    1,
    -1.5,
    True,
    [],
    {},
    [[]],
    [None],
    {"role": "tool"},
    {"type": []},
    "<|user|>",
]
SEED_ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "?"}], "weight": 0},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
                ],
            },
            {"role": "tool", "tool_call_id": "a", "content": "1"},
            {"role": "assistant", "content": "!", "weight": 1},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "parameters": {"type": "object", "properties": {"x": {}}, "required": ["x"]},
                },
            }
        ],
        "metadata": {"id": 1},
    },
    {
        "conversations": [
            {"from": "human", "value": "?"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "!"},
        ],
        "tools": '[{"name": "f"}]',
        "system": "s",
    },
    {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]], "system": "s"},
    {"instruction": "a", "instances": [{"input": "b", "output": "c"}], "id": "x"},
    {"prompt": [{"role": "user", "content": "?"}], "completion": [{"role": "assistant", "content": "!"}]},
]


def _spoil(value: Any, generator: random.Random) -> Any:
    """The value with something in it replaced, renamed or removed."""
    if isinstance(value, dict) and value and generator.random() < 0.8:
        key = generator.choice(sorted(value))
        rest = {name: held for name, held in value.items() if name != key}
        chance = generator.random()
        if chance < 0.1:
            return rest
        return rest | ({key + "x": value[key]} if chance < 0.2 else {key: _spoil(value[key], generator)})
    if isinstance(value, list) and value and generator.random() < 0.8:
        place = generator.randrange(len(value))
        chance = generator.random()
        middle = (
            [] if chance < 0.1 else [value[place]] * 2 if chance < 0.2 else [_spoil(value[place], generator)]
        )
        return [*value[:place], *middle, *value[place + 1 :]]
    return generator.choice(JUNK)


def test_no_row_of_any_shape_ends_the_reading_and_what_is_mended_is_sound(tmp_path: Path):
    generator = random.Random(3)
    rows = []
    for number in range(3000):
        row = SEED_ROWS[number % len(SEED_ROWS)]
        for _ in range(generator.randint(1, 3)):
            row = _spoil(row, generator)
        rows.append(json.dumps(row))
    nested = '{"prompt": "?", "completion": "!", "id": ' + "[" * 985 + "]" * 985 + "}"
    path = write_lines(tmp_path / "a.jsonl", *rows, nested)
    found = read_conversations([path], special_tokens=SPECIAL_TOKENS)
    assert found.conversations and len({problem.kind for problem in found.issues}) > 15
    places = {one.location for one in found.conversations} | {problem.location for problem in found.issues}
    assert places == {f"{path}:{line}" for line in range(1, 3002)}
    assert not {one.location for one in found.conversations} & {problem.location for problem in found.issues}
    fixed = read_conversations([path], special_tokens=SPECIAL_TOKENS, fix=True)
    assert fixed.issues == [] and len(fixed.conversations) > len(found.conversations)
    assert all(check_conversation(one, SPECIAL_TOKENS) == [] for one in fixed.conversations)
    assert {one.location for one in fixed.conversations} | {fix.location for fix in fixed.fixes} == places


def test_a_named_format_and_a_wrong_one(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", pair("?", "!"))
    kinds = [problem.kind for problem in read_conversations([path], format_name="openai").issues]
    assert kinds == ["unknown-field", "no-messages"]
    with pytest.raises(ConfigError, match="there is no format 'sharegtp'; did you mean 'sharegpt'"):
        read_conversations([path], format_name="sharegtp")


@pytest.mark.parametrize(
    ("name", "formats", "rows", "sound", "problems", "mended"),
    [
        ("fastchat_dummy_conversation.json", {"sharegpt": 500}, 500, 500, {}, 500),
        ("gsm8k_train.jsonl", {"prompt": 7473}, 7473, 7473, {}, 7473),
        ("llamafactory_alpaca_en_demo.json", {"alpaca": 999}, 999, 999, {}, 999),
        ("llamafactory_dpo_en_demo.json", {"sharegpt": 300}, 300, 0, {"preference-data": 300}, 0),
        ("llamafactory_glaive_toolcall_en_demo.json", {"sharegpt": 300}, 300, 300, {}, 300),
        ("llamafactory_identity.json", {"alpaca": 91}, 91, 91, {}, 91),
        # Each row has a boolean label: whether the answer is a wanted one.
        ("llamafactory_kto_en_demo.json", {"openai": 300}, 300, 0, {"preference-data": 300}, 0),
        # Parameters of the type "dict", and one call whose arguments do not fit, are mended and left out.
        ("llamafactory_reason_tool_use_demo_50.jsonl", {"openai": 50}, 50, 0,
         {"reasoning": 112, "bad-tool-definition": 63}, 49),
        ("llamafactory_v1_dpo_demo.jsonl", {}, 10, 0, {"preference-data": 10}, 0),
        ("llamafactory_v1_sft_demo.jsonl", {"openai": 500}, 500, 500, {}, 500),
        ("self_instruct_seed_tasks.jsonl", {"self-instruct": 175}, 175, 175, {}, 175),
        ("self_instruct_user_oriented.jsonl", {"self-instruct": 252}, 252, 252, {}, 252),
        ("tr_nutuk_qa_600.json", {"prompt": 600}, 600, 0, {"unknown-field": 600}, 600),
        # Questions and their answers are in different files.
        ("bfcl/BFCL_v4_parallel.json", {}, 200, 0, {"unknown-format": 200}, 0),
        ("bfcl/possible_answer_BFCL_v4_parallel.json", {}, 200, 0, {"unknown-format": 200}, 0),
    ],
)  # fmt: skip
def test_real_files(
    name: str, formats: dict[str, int], rows: int, sound: int, problems: dict[str, int], mended: int,
    real_data: Callable[[str], Path],
):  # fmt: skip
    path = real_data(f"instruct/{name}")
    found = read_conversations([path], special_tokens=SPECIAL_TOKENS)
    (file,) = found.files
    assert (dict(file.formats), file.rows, len(found.conversations)) == (formats, rows, sound)
    assert Counter(problem.kind for problem in found.issues) == problems
    fixed = read_conversations([path], fix=True, special_tokens=SPECIAL_TOKENS)
    assert (len(fixed.conversations), fixed.issues) == (mended, [])


def test_real_calls_of_tools(real_data: Callable[[str], Path]):
    found = read_conversations([real_data("instruct/llamafactory_glaive_toolcall_en_demo.json")])
    messages = [message for one in found.conversations for message in one.messages]
    assert Counter(message.role for message in messages) == {"user": 746, "assistant": 957, "tool": 211}
    assert sum(len(message.tool_calls) for message in messages) == 211
    assert sum(bool(one.tools) for one in found.conversations) == 191
    first = found.conversations[0].messages[3].tool_calls[0]
    assert (first.name, first.arguments) == (
        "search_recipes",
        {"ingredients": ["chicken", "bell peppers", "rice"]},
    )


def test_convert_writes_another_format_and_says_what_it_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "a.csv"
    path.write_text("soru,cevap\nbaşkent?,Ankara\nnüfus?,çok\n")
    out = tmp_path / "b.jsonl"
    assert run(path, "--map", "prompt=soru", "--map", "response=cevap", "--to", "sharegpt", "--out", out) == 0
    assert json.loads(out.read_text().splitlines()[0]) == {
        "conversations": [{"from": "human", "value": "başkent?"}, {"from": "gpt", "value": "Ankara"}]
    }
    said = capsys.readouterr().out
    assert "2 conversations, 4 messages (user 2, assistant 2)" in said and "prompt" in said
    assert "2 conversations written" in said
    assert run(out, "--to", "prompt", "--out", tmp_path / "c.csv") == 0
    assert (tmp_path / "c.csv").read_text() == "prompt,completion\nbaşkent?,Ankara\nnüfus?,çok\n"


def test_convert_writes_nothing_where_there_are_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_lines(tmp_path / "a.jsonl", pair("?", "!"), pair("?", ""), pair("?", ""), "{")
    out = tmp_path / "b.json"
    assert run(path, "--to", "openai", "--out", out) == 2
    said = capsys.readouterr()
    assert "empty-answer: 2 times\n" in said.out and f"({path}:2, 3)" in said.out
    assert "not-json: once" in said.out
    assert "3 problems; nothing was written. Mend them, or let --fix" in said.err
    assert not out.exists()
    assert run(path, "--to", "openai", "--out", out, "--fix") == 0
    assert "left out: empty-answer: 2 times" in capsys.readouterr().out
    assert [one["messages"][0]["content"] for one in json.loads(out.read_text())] == ["?"]


def test_convert_tells_what_the_other_format_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "weight": 0}]
    path = write_lines(tmp_path / "a.jsonl", {"messages": messages}, pair("?", "!"))
    assert run(path, "--to", "alpaca", "--out", tmp_path / "b.jsonl") == 2
    assert "cannot-hold: once" in capsys.readouterr().out
    assert run(path, "--to", "prompt", "--out", tmp_path / "b.csv") == 2
    assert "no list of messages" in capsys.readouterr().out
    assert run(path, "--to", "alpaca", "--out", tmp_path / "b.jsonl", "--fix") == 0
    assert json.loads((tmp_path / "b.jsonl").read_text())["instruction"] == "?"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "openai", "--out", "b.xlsx"), "conversations are written as .jsonl"),
        (("--to", "openai", "--out", "b.jsonl", "--map", "prompt"), "OURS=THEIRS"),
        (("--to", "openai", "--out", "b.jsonl", "--map", "promt=a"), "did you mean 'prompt'"),
    ],
)
def test_convert_refuses_wrong_options(
    arguments: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write_lines(tmp_path / "a.jsonl", pair("?", "!"))
    assert run(path, *arguments) == 2
    assert words in capsys.readouterr().err


def test_convert_with_nothing_left_writes_nothing(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", pair("?", ""))
    assert run(path, "--to", "openai", "--out", tmp_path / "b.jsonl", "--fix") == 2
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_convert_of_text_stored_as_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    inside = pyarrow.array(
        [[{"role": b"user", "content": "çay?".encode()}, {"role": b"assistant", "content": b"Evet."}]]
    )
    pyarrow.parquet.write_table(pyarrow.table({"messages": inside}), tmp_path / "a.parquet")
    pairs = {"prompt": [b"a?", b"b?"], "completion": [b"a!", b"\xff!"]}
    pyarrow.parquet.write_table(pyarrow.table(pairs), tmp_path / "b.parquet")
    assert run(tmp_path / "a.parquet", "--to", "prompt", "--out", tmp_path / "a.jsonl") == 0
    assert json.loads((tmp_path / "a.jsonl").read_text()) == pair("çay?", "Evet.")
    assert run(tmp_path / "b.parquet", "--to", "prompt", "--out", tmp_path / "b.jsonl") == 2
    assert "the column 'completion' of this row is not UTF-8" in capsys.readouterr().out.replace("\n", " ")
    assert not (tmp_path / "b.jsonl").exists()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_convert_writes_no_number_that_json_has_not(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def convert(row: str) -> str:
        (tmp_path / "a.jsonl").write_text(row + "\n")
        assert run(tmp_path / "a.jsonl", "--to", "openai", "--out", tmp_path / "out.jsonl") == 2
        assert not (tmp_path / "out.jsonl").exists()
        return capsys.readouterr().out.replace("\n", " ")

    plain = json.dumps({**pair("a?", "a!"), "score": 0})
    assert ":1" in (said := convert(plain.replace("0}", f"{number}}}"))) and "score is" in said
    arguments = json.dumps(f'{{"city": [{number}]}}')
    call = f'{{"id": "c", "type": "function", "function": {{"name": "w", "arguments": {arguments}}}}}'
    said = convert(
        f'{{"messages": [{{"role": "user", "content": "?"}}, {{"role": "assistant", "tool_calls": [{call}]}}], '
        '"tools": [{"type": "function", "function": {"name": "w", "parameters": {}}}]}'
    )
    assert "the arguments of 'w'" in said and "not JSON" in said


def test_convert_writes_no_number_of_parquet_that_json_has_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    table = {"prompt": ["a?", "b?"], "completion": ["a!", "b!"], "score": [1.0, float("nan")]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    assert run(tmp_path / "a.parquet", "--to", "openai", "--out", tmp_path / "out.jsonl") == 2
    assert "score is nan, and must be a finite number" in capsys.readouterr().out.replace("\n", " ")
    assert run(tmp_path / "a.parquet", "--to", "openai", "--out", tmp_path / "out.jsonl", "--fix") == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("odd", ["\r\n", "\r", "\0", "\ufeff"])
def test_a_text_comes_back_from_csv_or_is_refused(
    odd: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good = write_lines(tmp_path / "good.jsonl", pair('a,"b"\n\n;\tc', " d \n"), pair("çay?", "e\u2028f\x0b"))
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.jsonl"
    assert run(good, "--to", "prompt", "--out", there) == 0
    assert run(there, "--to", "prompt", "--out", back) == 0
    assert back.read_text() == good.read_text()
    bad = write_lines(tmp_path / "bad.jsonl", pair("a?", f"one{odd}two"))
    assert run(bad, "--to", "prompt", "--out", tmp_path / f"bad{suffix}") == 2
    assert "would not come back from a column of CSV" in capsys.readouterr().out.replace("\n", " ")
    assert not (tmp_path / f"bad{suffix}").exists()
