"""Rows written by a format file: the text to the letter, the mask to the token, and every bad row named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mm_rec.data.conversations.issues import Issue
from mm_rec.data.conversations.rendering import TokenizedExample
from mm_rec.data.prompt_formats import PromptFormat, load_prompt_format, render_prompt, render_rows
from mm_rec.errors import ConfigError, DataError

ROW = {"instruction": "Say it.", "input": "", "output": "Yes."}
WITH_INPUT = {"instruction": "Say it.", "input": "Two.", "output": "Yes."}
BOS, EOS = "<s>", "</s>"


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def format_of(folder: Path, templates: Any) -> PromptFormat:
    path = folder / "format.json"
    path.write_text(json.dumps(templates), encoding="utf-8")
    return load_prompt_format(path)


def loss_text(rendered: TokenizedExample, tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode(rendered.ids[rendered.loss_mask]))


def test_the_built_in_formats_to_the_letter(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = written(tmp_path, ROW, WITH_INPUT)
    alpaca = [one.text for one in render_rows(rows, load_prompt_format("alpaca"), byte_tokenizer)]
    assert alpaca == [
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSay it.\n\n### Response:\nYes.",
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nSay it.\n\n### Input:\nTwo.\n\n"
        "### Response:\nYes.",
    ]
    plain = [one.text for one in render_rows(rows, load_prompt_format("instruction"), byte_tokenizer)]
    assert plain == [
        "### Instruction:\nSay it.\n\n### Response:\nYes.",
        "### Instruction:\nSay it.\n\n### Input:\nTwo.\n\n### Response:\nYes.",
    ]


def test_only_the_response_and_the_end_are_learnt(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt = "### Instruction:\nSay it.\n\n### Response:\n"
    (one,) = render_rows(written(tmp_path, ROW), load_prompt_format("instruction"), byte_tokenizer)
    assert byte_tokenizer.decode(one.ids) == f"{BOS}{prompt}Yes.{EOS}"
    assert one.ids.dtype == np.int32
    assert one.loss_mask.tolist() == [False] * (1 + len(prompt)) + [True] * 5
    (whole,) = render_rows(
        written(tmp_path, ROW), load_prompt_format("instruction"), byte_tokenizer, train_on="all"
    )
    assert whole.loss_mask.tolist() == [False] + [True] * (len(prompt) + 5)
    (bare,) = render_rows(
        written(tmp_path, ROW),
        load_prompt_format("instruction"),
        byte_tokenizer,
        add_bos=False,
        add_eos=False,
    )
    assert byte_tokenizer.decode(bare.ids) == bare.text and loss_text(bare, byte_tokenizer) == "Yes."


def test_white_space_before_a_response_is_cut(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    row = {**ROW, "output": "\n Yes.\n"}
    (one,) = render_rows(written(tmp_path, row), load_prompt_format("instruction"), byte_tokenizer)
    assert loss_text(one, byte_tokenizer) == f"Yes.\n{EOS}"


def word_tokenizer(pattern: str, pieces: list[str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, pieces[0]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS, add_bos_token=True)


def test_the_space_that_ends_a_prompt_is_learnt_with_the_word_after_it(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(r"\s?\S+", ["USER:", " Say", " it.", " BOT:", " Yes."])
    chat = format_of(tmp_path, {"instruction,output": "USER: %instruction% BOT: %output%"})
    (one,) = render_rows(written(tmp_path, ROW), chat, tokenizer)
    assert one.ids.tolist() == [tokenizer.bos_token_id, 0, 1, 2, 3, 4, tokenizer.eos_token_id]
    assert one.loss_mask.tolist() == [False] * 5 + [True] * 2
    prompt = render_prompt(chat, ROW)
    assert prompt == "USER: Say it. BOT:"
    assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == one.ids[1:5].tolist()


def test_a_token_of_both_prompt_and_response_is_refused(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(r"\s*\S+", ["Say", " it.", "\nYes."])
    lines = format_of(tmp_path, {"instruction,output": "%instruction%\n%output%"})
    with pytest.raises(DataError, match=r"joins the end of the prompt with the response.*rows\.jsonl:1"):
        render_rows(written(tmp_path, ROW), lines, tokenizer)
    assert len(render_rows(written(tmp_path, ROW), lines, tokenizer, train_on="all")) == 1


def test_bos_and_eos_of_a_template_are_not_doubled(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    own = format_of(tmp_path, {"instruction,output": f"{BOS}%instruction%\n%output%{EOS}"})
    (one,) = render_rows(written(tmp_path, ROW), own, byte_tokenizer)
    assert byte_tokenizer.decode(one.ids) == f"{BOS}Say it.\nYes.{EOS}"
    assert loss_text(one, byte_tokenizer) == f"Yes.{EOS}"
    (whole,) = render_rows(written(tmp_path, ROW), own, byte_tokenizer, train_on="all")
    assert not whole.loss_mask[0] and whole.loss_mask[1:].all()


def test_a_value_that_looks_like_a_place_stays_as_it_is(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    row = {"instruction": "What is %output%?", "output": "100% of %instruction%"}
    (one,) = render_rows(written(tmp_path, row), load_prompt_format("instruction"), byte_tokenizer)
    assert one.text == "### Instruction:\nWhat is %output%?\n\n### Response:\n100% of %instruction%"


def test_the_prompt_is_where_training_has_it(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    alpaca = load_prompt_format("alpaca")
    for row in (ROW, WITH_INPUT):
        (one,) = render_rows(written(tmp_path, row), alpaca, byte_tokenizer)
        asked = {name: value for name, value in row.items() if name != "output"}
        prompt = render_prompt(alpaca, asked)
        assert prompt == render_prompt(alpaca, row)
        assert one.text == prompt + "Yes."
        ids = byte_tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert one.ids[1 : 1 + len(ids)].tolist() == ids and one.loss_mask.tolist().index(True) == 1 + len(
            ids
        )
    with pytest.raises(DataError, match=r"the fields of this row \(question\) are those of no template"):
        render_prompt(alpaca, {"question": "?"})


def test_every_bad_row_is_named_at_once(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    path = written(
        tmp_path,
        ROW,
        {"instruction": "Say it.", "level": "A1", "output": "Yes."},
        {"instruction": "Say it.", "output": "  "},
        {"instruction": "Say it.", "output": 4},
        {"instruction": f"Say {EOS} it.", "output": "Yes."},
        {"instruction": "Say \ud83d it.", "output": "Yes."},
        {"instruction": "Say it." * 40, "output": "Yes."},
    )
    with path.open("a") as file:
        file.write("{not json\n")
    with pytest.raises(DataError) as error:
        render_rows(path, load_prompt_format("instruction"), byte_tokenizer, max_length=128)
    message = str(error.value)
    assert message.startswith(f"{path}: there are 7 problems in these rows.")
    for said in (
        "the fields of this row (instruction, level, output) are those of no template of the format instruction "
        f"(instruction, output; input, instruction, output). Mend the row, or write a template for it ({path}:2)",
        f"(instruction) are those of no template of the format instruction (instruction, output; input, instruction, "
        f"output). Mend the row, or write a template for it ({path}:3)",
        f"the field 'output' is not text but 4. Write text ({path}:4)",
        f"the field 'instruction' holds {EOS}, a special token of the tokenizer. Write it otherwise ({path}:5)",
        f"holds half of a surrogate pair ('\\ud83d'), which is no character ({path}:6)",
        f"it has 319 tokens, and 128 are the most. Shorten it, or raise the limit ({path}:7)",
        "this row is not JSON",
    ):
        assert said in message
    left_out: list[Issue] = []
    kept = render_rows(
        path, load_prompt_format("instruction"), byte_tokenizer, max_length=128, left_out=left_out
    )
    assert (
        len(kept) == 1
        and [issue.location for issue in left_out].count(f"{path}:7") == 1
        and len(left_out) == 7
    )


def test_metadata_is_passed_over_unless_a_template_asks_for_it(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    row = {**ROW, "id": "7", "source": "me", "history": []}
    assert len(render_rows(written(tmp_path, row), load_prompt_format("instruction"), byte_tokenizer)) == 1
    own = format_of(tmp_path, {"source,output": "%source%:\n%output%"})
    (one,) = render_rows(
        written(tmp_path, {"id": "7", "source": "me", "output": "Yes."}), own, byte_tokenizer
    )
    assert one.text == "me:\nYes."


def test_no_row_is_an_error(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    path = written(tmp_path, {"instruction": "x"})
    with pytest.raises(DataError, match="there is no row to train on"):
        render_rows(path, load_prompt_format("alpaca"), byte_tokenizer, left_out=[])


@pytest.mark.parametrize(
    ("templates", "problem"),
    [
        (
            {"a,b": "%a%"},
            r"the template of 'a,b' must hold a place for each of its fields and for no other: %b%",
        ),
        ({"a": "%a% %c%"}, r"for no other: %c%"),
        ({"a,b": "%a% %b%", "b, a": "%b% %a%"}, r"two templates are for the fields 'b, a'"),
        ({"a": 3}, "a prompt format is a JSON object such as"),
        ([], "a prompt format is a JSON object such as"),
        ({}, "a prompt format is a JSON object such as"),
    ],
)
def test_a_format_file_that_is_not_sound_is_refused(tmp_path: Path, templates: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"format\.json: .*{problem}"):
        format_of(tmp_path, templates)


def test_a_format_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no prompt format 'alpaka', nor a file of this name; did you mean 'alpaca'"
    ):
        load_prompt_format("alpaka")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json: this is no prompt format: .*It is a JSON object"):
        load_prompt_format(tmp_path / "broken.json")


def test_real_alpaca_rows_learn_their_responses(
    real_data: Callable[[str], Path], byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = real_data("instruct/llamafactory_alpaca_en_demo.json")
    rows = json.loads(path.read_text(encoding="utf-8"))
    left_out: list[Issue] = []
    rendered = render_rows(path, load_prompt_format("alpaca"), byte_tokenizer, left_out=left_out)
    assert len(rendered) + len(left_out) == len(rows) and len(rendered) > 990
    bad = {int(issue.location.rpartition(":")[2]) for issue in left_out}
    assert len(bad) == len(left_out)
    kept = [row for row in rows if row["output"].strip()]
    for row, one in zip(kept, rendered, strict=True):
        assert loss_text(one, byte_tokenizer) == row["output"].lstrip() + EOS
