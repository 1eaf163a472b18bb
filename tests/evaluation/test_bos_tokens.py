"""How texts begin: the same ids in transformers, in lm-eval, in prompts, in documents and in what is fine-tuned on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from small_models import BuildModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mm_rec.cli.generate import generate
from mm_rec.data.chunking import chunk_text
from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.data.conversations.rendering import chat_prompt_ids
from mm_rec.data.corpus import write_corpus
from mm_rec.data.prompt_formats import load_prompt_format, render_rows
from mm_rec.data.sections import Chunking
from mm_rec.errors import ConfigError
from mm_rec.evaluation.lm_eval_adapter import MMRecLM
from mm_rec.evaluation.loglikelihood import encode_request
from mm_rec.inference.generate import encode_prompt
from mm_rec.models.loading import load_portable, save_model, save_portable
from mm_rec.tokenizers.chat_template import TEMPLATES, prepare_for_chat
from mm_rec.tokenizers.loading import (
    bos_ids,
    encode_document,
    encode_documents,
    fingerprint,
    load_tokenizer,
)

TEXT = "Once there was a metin. İhtiyar balıkçı"
MESSAGES = [ChatMessage("user", "Ne görüyor?")]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the tokenizer.json of a folder."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def nothing_added(content: dict[str, Any]) -> None:
    """The post-processor as our folders had it before our tokenizers put bos before a text."""
    pieces: list[dict[str, Any]] = [
        {"Sequence": {"id": name, "type_id": index}} for index, name in enumerate("AB")
    ]
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": pieces[:1], "pair": pieces, "special_tokens": {}
    }  # fmt: skip


@pytest.fixture(params=["new", "old", "old, without one", "old, saved again", "in a model folder"])
def own(request: pytest.FixtureRequest, tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A folder of a tokenizer of ours, of now or of before."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folder, folder)
    if request.param == "old, without one":
        rewrite(folder, lambda content: content.update(post_processor=None))
    elif request.param != "new":
        rewrite(folder, nothing_added)
    if request.param == "old, saved again":
        load_tokenizer(folder).save_pretrained(tmp_path / "again")
        return tmp_path / "again"
    if request.param == "in a model folder":
        load_tokenizer(folder).save_pretrained(folder)
        (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def as_in_transformers(folder: Path) -> PreTrainedTokenizerBase:
    """What transformers makes of a folder that we saved from what is in this one."""
    load_tokenizer(folder).save_pretrained(folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def check_beginnings(tokenizer: PreTrainedTokenizerBase, ids: list[int], place: Path) -> None:
    """Check that all ways to read TEXT give the ids, and eos where it ends there."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    assert encode_prompt(tokenizer, TEXT) == ids
    assert encode_document(tokenizer, TEXT) == [*ids, *end]
    corpus = write_corpus([TEXT], tokenizer, place / "corpus")
    assert corpus.read(0, corpus.tokens).tolist() == [*ids, *end]
    (block,) = chunk_text(TEXT, tokenizer, Chunking()).blocks
    assert block.ids.tolist() == [*ids, *end]
    (place / "rows.jsonl").write_text(json.dumps({"instruction": "a", "output": "b"}))
    (row,) = render_rows(place / "rows.jsonl", load_prompt_format("instruction"), tokenizer)
    assert row.ids.tolist() == [*encode_prompt(tokenizer, row.text), *end]
    head, tail = encode_request(tokenizer, TEXT[:14], TEXT[14:])
    assert [*head, *tail] == ids


def test_a_text_of_ours_begins_with_bos_everywhere(own: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(own)
    theirs = as_in_transformers(own)
    ids = theirs(TEXT)["input_ids"]
    assert ids == [theirs.bos_token_id, *theirs(TEXT, add_special_tokens=False)["input_ids"]]
    assert theirs("a", "b")["input_ids"] == theirs("a")["input_ids"] + theirs("b")["input_ids"]
    check_beginnings(tokenizer, ids, tmp_path)


def test_lm_eval_reads_the_same(own: Path, build_model: BuildModel) -> None:
    tokenizer = load_tokenizer(own)
    model = build_model("llama").float()
    copy = LlamaForCausalLM(type(model.config)(**model.config.to_dict()))
    lm = HFLM(pretrained=copy, tokenizer=as_in_transformers(own))
    ours = MMRecLM(model, tokenizer)
    assert lm.tok_encode(TEXT) == ours.tok_encode(TEXT) == encode_prompt(tokenizer, TEXT)
    assert lm._encode_pair(TEXT, " metin") == tuple(ours._encode_request(TEXT, " metin"))


def test_the_mark_of_a_tokenizer_is_that_of_before(own: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    """Shards, runs and checkpoints are bound to it; here it is computed as it was then."""
    shutil.copytree(tokenizer_folder, tmp_path / "before")
    rewrite(tmp_path / "before", nothing_added)
    content = json.loads(Tokenizer.from_file(str(tmp_path / "before" / "tokenizer.json")).to_str())
    for key in ("version", "padding", "truncation"):
        del content[key]
    content["special_ids"] = {"bos": 1, "eos": 1, "pad": 2, "unk": None}
    written = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert fingerprint(load_tokenizer(own)) == hashlib.sha256(written.encode()).hexdigest()


@pytest.mark.parametrize("layout", list(TEMPLATES))
def test_a_chat_of_ours_begins_as_its_template_says(own: Path, layout: str, build_model: BuildModel) -> None:
    tokenizer = load_tokenizer(own)
    prepare_for_chat(tokenizer, layout)
    messages: Any = [message.to_template() for message in MESSAGES]
    read: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    ids = read["input_ids"]
    assert chat_prompt_ids(tokenizer, MESSAGES) == ids
    lm = MMRecLM(build_model("llama", vocabulary=len(tokenizer)), tokenizer)
    assert lm.tok_encode(lm.apply_chat_template(messages)) == ids
    begun = tokenizer.bos_token != tokenizer.eos_token  # the layouts' own rule
    assert (ids[0] == tokenizer.bos_token_id) == begun and ids[1] != tokenizer.bos_token_id


def test_an_old_single_file_begins_with_bos_too(own: Path, build_model: BuildModel, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(own)
    tokenizer.add_bos_token = False
    assert bos_ids(tokenizer) == []
    save_portable(build_model("mmrec").float(), tokenizer, tmp_path / "model.pt")
    assert bos_ids(load_portable(tmp_path / "model.pt")[1]) == [1]


# --- tokenizers of others ---

KINDS: dict[str, dict[str, str]] = {
    "smollm": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    "qwen": {"eos_token": "<|im_end|>"},
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>"},
}
ADDING = ("llama3", "gemma")  # these put bos before a text themselves


def build_foreign(kind: str) -> PreTrainedTokenizerFast:
    """A small byte-level tokenizer with the special tokens and the post-processor of a published kind."""
    names = KINDS[kind]
    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer, backend.decoder = byte_level, decoders.ByteLevel()
    alphabet, specials = pre_tokenizers.ByteLevel.alphabet(), sorted(set(names.values()))
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, special_tokens=specials)
    backend.train_from_iterator([TEXT], trainer)
    if kind in ADDING:
        bos = names["bos_token"]
        template = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, backend.token_to_id(bos))],
        )
        steps = [processors.ByteLevel(trim_offsets=False), template] if kind == "llama3" else [template]
        backend.post_processor = processors.Sequence(steps) if kind == "llama3" else template
    elif kind == "gpt2":
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.fixture(params=list(KINDS))
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerBase:
    """A tokenizer of others, loaded from its folder."""
    build_foreign(request.param).save_pretrained(tmp_path / request.param)
    return load_tokenizer(tmp_path / request.param)


def test_a_text_of_others_begins_as_their_tokenizer_begins_it(
    foreign: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    ids = foreign(TEXT)["input_ids"]
    adds = Path(foreign.name_or_path).name in ADDING
    assert bos_ids(foreign) == ([foreign.bos_token_id] if adds else [])
    check_beginnings(foreign, ids, tmp_path)
    theirs = AutoTokenizer.from_pretrained(foreign.name_or_path)
    assert theirs(TEXT)["input_ids"] == ids and fingerprint(theirs) == fingerprint(foreign)


def test_lm_eval_reads_texts_of_others_the_same(
    foreign: PreTrainedTokenizerBase, build_model: BuildModel
) -> None:
    model = build_model("llama", vocabulary=len(foreign)).float()
    copy = LlamaForCausalLM(type(model.config)(**model.config.to_dict()))
    lm, ours = HFLM(pretrained=copy, tokenizer=foreign), MMRecLM(model, foreign)
    assert lm.tok_encode(TEXT) == ours.tok_encode(TEXT) == foreign(TEXT)["input_ids"]
    assert lm.prefix_token_id == ours.prefix_token_id
    assert lm._encode_pair(TEXT, " metin") == tuple(ours._encode_request(TEXT, " metin"))


def test_a_rendered_text_that_has_its_bos_gets_no_second_one() -> None:
    tokenizer = build_foreign("llama3")
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    ids = chat_prompt_ids(tokenizer, MESSAGES)
    messages: Any = [message.to_template() for message in MESSAGES]
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
    assert ids == tokenizer.encode(rendered, add_special_tokens=False)
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    (document,) = encode_documents(tokenizer, [rendered], parse_specials=True)
    assert document.tolist() == [*ids, tokenizer.eos_token_id]


def test_nothing_to_go_on_with_is_said(build_model: BuildModel, tmp_path: Path) -> None:
    tokenizer = build_foreign("smollm")
    save_model(build_model("llama", vocabulary=len(tokenizer)).float(), tokenizer, tmp_path / "model")
    with pytest.raises(ConfigError, match="nothing to go on with: the prompt is empty"):
        generate(str(tmp_path / "model"), [""])
