"""No key stands twice in a file that a person writes: recipes, rows, columns, settings; both lines are named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mm_rec.cleaning.contamination import evaluation_items
from mm_rec.config import apply_overrides, load_yaml
from mm_rec.data.prompt_formats import load_prompt_format
from mm_rec.errors import ConfigError, DataError
from mm_rec.runs.files import read_json
from mm_rec.sources.documents import read_documents
from mm_rec.strict_parsing import DuplicateKey, parse_json, parse_yaml


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", (1, 3)),
        ("pretrain:\n  steps: 1\n\n  # later\n  steps: 2\n", "steps", (2, 5)),
        ("- {x: 1, x: 2}", "x", (1, 1)),
        ("data:\n  'k': 1\n  k: 1\n", "k", (2, 3)),
    ],
)
def test_yaml(tmp_path: Path, text: str, key: str, lines: tuple[int, int]) -> None:
    with pytest.raises(DuplicateKey) as error:
        parse_yaml(text)
    assert (error.value.key, error.value.lines) == (key, lines)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(
        ConfigError, match=rf"recipe.yaml: the key '{key}' .*in lines {lines[0]} and {lines[1]}"
    ):
        load_yaml(path)


def test_yaml_that_merges_or_only_looks_doubled_is_read() -> None:
    text = "one: &one {a: 1, b: 2}\ntwo:\n  <<: *one\n  a: 3\nthree: {<<: *one, 1: x, '1': y}\n"
    read = parse_yaml(text)
    assert read["two"] == {"a": 3, "b": 2} and read["three"] == {"a": 1, "b": 2, 1: "x", "1": "y"}
    with pytest.raises(ConfigError, match=r"--set .*the key 'a' stands twice"):
        apply_overrides({}, ["model.changes={a: 1, a: 2}"])
    with pytest.raises(ConfigError, match=r"--set .*not YAML"):
        apply_overrides({}, ["model.changes={a: 1"])


def test_json(tmp_path: Path) -> None:
    assert parse_json('{"a": {"b": 1}, "b": [{"a": 1}, {"a": 2}]}') == json.loads(
        '{"a": {"b": 1}, "b": [{"a": 1}, {"a": 2}]}'
    )
    path = tmp_path / "values.json"
    path.write_text('{\n\t"r": 8,\n\t"alpha": 16,\n\t"in": {\n\t\t"r": 1, "é\\n": 2\n\t},\n\t"r": 9\n}\n')
    with pytest.raises(DataError, match=r"values.json: the key 'r' stands twice, in lines 2 and 7"):
        read_json(path)
    path.write_text('{"instruction": "%instruction%",\n "instruction": "other"}')
    with pytest.raises(ConfigError, match="the key 'instruction' stands twice, in lines 1 and 2"):
        load_prompt_format(path)
    path.write_text('{"a": "some text",\n "a": "other text"}')
    with pytest.raises(DataError, match="the key 'a' stands twice, in lines 1 and 2"):
        list(evaluation_items([path]))


def test_rows_and_columns(tmp_path: Path) -> None:
    def refused(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError) as error:
            list(read_documents([tmp_path / name]))
        return str(error.value).removeprefix(f"{tmp_path / name}:")

    assert refused("a.jsonl", '{"text": "one"}\n{"text": "two", "text": "three"}\n').startswith(
        "2: the key 'text' stands twice"
    )
    assert refused("a.csv", "id,text,text\n1,a,b\n").startswith(
        "1: the columns 2 and 3 are both called 'text'"
    )
    (tmp_path / "b.csv").write_text("text,,\none,,\n")  # a spreadsheet's empty columns are nobody's
    assert [item.text for item in read_documents([tmp_path / "b.csv"])] == ["one"]
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="columns 1 and 2 are both called 'text'"):
        list(read_documents([tmp_path / "a.parquet"]))
