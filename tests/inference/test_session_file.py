"""A conversation kept in a file goes on after a restart as if there had been none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner

from mm_rec.cli import chat
from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.data.conversations.rendering import conversation_text
from mm_rec.errors import CheckpointError, ConfigError, DataError, TokenizerError
from mm_rec.inference.chat_session import ChatSession
from mm_rec.inference.engine import Engine
from mm_rec.inference.fingerprints import adapter_digests
from mm_rec.inference.generate import encode_rendered
from mm_rec.inference.sampler import Sampler, SamplingParams
from mm_rec.inference.session_file import SessionFile
from mm_rec.models.adapters import Adapters
from mm_rec.models.loading import load_with_adapters, save_model
from mm_rec.models.resize import resize_token_embeddings
from mm_rec.models.sections import LoraConfig
from mm_rec.tokenizers.chat_template import TEMPLATES, prepare_for_chat
from mm_rec.tokenizers.loading import load_tokenizer

SAMPLING = SamplingParams(temperature=0, max_new_tokens=12)
SYSTEM = "Kısa yanıt ver."
SAID = ("Ayşe kim?", "What does she see?", "🌟", "Ne görüyor?")

app = typer.Typer()
app.command()(chat.chat)


def begin(
    path: Path | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, system: str | None = None,
    int8: bool = False, digests: dict[str, str] | None = None,
) -> ChatSession:  # fmt: skip
    """Start the program, as it were."""
    engine = Engine(model, int8=int8)
    file = None if path is None else SessionFile(path, engine, tokenizer, digests or {})
    return ChatSession(engine, tokenizer, SAMPLING, system, file)


def drain(conversation: ChatSession, said: str) -> str:
    return "".join(conversation.send(said))


@pytest.mark.parametrize("layout", ["default", "chatml", "llama3"])
def test_a_restart_before_every_turn_changes_no_reply_and_reads_nothing_again(
    model: PreTrainedModel, tokenizer_folder: Path, tmp_path: Path, read: list[int], layout: str
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    prepare_for_chat(tokenizer, layout)
    resize_token_embeddings(model, tokenizer, lambda line: None)
    unbroken = begin(None, model, tokenizer, SYSTEM)
    replies = [drain(unbroken, said) for said in SAID]
    expected, read[:] = list(read), []
    system = [SYSTEM, None, SYSTEM, None]  # it may be told again, and need not be
    for turn, said in enumerate(SAID):
        conversation = begin(tmp_path / "talk", model, tokenizer, system[turn])
        assert drain(conversation, said) == replies[turn]
    assert read == expected
    assert torch.equal(conversation.session.next_logits(), unbroken.session.next_logits())


def test_a_copy_of_the_file_is_a_fork(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    unbroken = begin(None, model, tokenizer)
    kept = begin(tmp_path / "talk", model, tokenizer)
    for conversation in (unbroken, kept):
        drain(conversation, SAID[0])
    shutil.copy(tmp_path / "talk", tmp_path / "fork")
    drain(kept, "Something else.")
    fork = begin(tmp_path / "fork", model, tokenizer)
    for conversation in (unbroken, fork):
        drain(conversation, SAID[1])
    assert torch.equal(fork.session.next_logits(), unbroken.session.next_logits())
    assert not torch.equal(kept.session.next_logits(), unbroken.session.next_logits())


@pytest.mark.parametrize("family", ["mmrec", "llama"])
def test_the_file_of_a_long_conversation_has_the_size_of_a_short_one_but_for_llama(
    build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path,
    family: str,
) -> None:  # fmt: skip
    conversation = begin(tmp_path / "talk", build_model(family).float(), tokenizer)
    drain(conversation, "a")
    short, few = (tmp_path / "talk").stat().st_size, conversation.session.length
    assert few < 30
    while conversation.session.length < 500:
        drain(conversation, "Yıldızları görüyor. " * 5)
    grown, more = (tmp_path / "talk").stat().st_size - short, conversation.session.length - few
    if family == "mmrec":
        assert grown == 0
    else:
        assert grown == pytest.approx(more * conversation.session.state.bytes_per_token, rel=0.05)


def test_a_reply_broken_off_is_kept_and_closed(
    build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path,
    read: list[int], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = encode_rendered(tokenizer, "bir iki üç dört beş altı")
    monkeypatch.setattr(Sampler, "sample", lambda *_: words.pop(0))
    first = begin(tmp_path / "talk", build_model("mmrec"), tokenizer)
    reply = first.send("Say")
    taken = next(reply) + next(reply)
    reply.close()
    second = begin(tmp_path / "talk", build_model("mmrec"), tokenizer)
    words[:] = encode_rendered(tokenizer, "Yedi.<|endoftext|>")
    drain(second, "Devam")
    whole = Conversation((*first.messages, *second.messages))
    assert [message.content for message in whole.messages] == ["Say", taken, "Devam", "Yedi."]
    assert read == encode_rendered(tokenizer, conversation_text(tokenizer, whole))


def test_reset_removes_the_file_and_keeps_the_system_message(
    build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "talk"
    first = drain(begin(path, build_model("mmrec"), tokenizer, "Be kind."), "Selam")
    again = begin(path, build_model("mmrec"), tokenizer)
    assert again.restored_tokens and again.messages == []
    again.reset()
    assert not path.exists() and not again.restored_tokens
    assert again.messages == [ChatMessage("system", "Be kind.")]
    assert drain(again, "Selam") == first and path.exists()


def test_another_system_message_is_refused(
    build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    for name, system, said in (("with", "Be kind.", "another one"), ("without", None, "no system message")):
        drain(begin(tmp_path / name, build_model("mmrec"), tokenizer, system), "Selam")
        with pytest.raises(ConfigError, match=f"began with {said}.*Leave --system out"):
            begin(tmp_path / name, build_model("mmrec"), tokenizer, "Be brief.")


def test_what_reads_on_must_be_what_read_before(
    build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path, model = tmp_path / "talk", build_model("mmrec").float()
    drain(begin(path, model, tokenizer), "Selam")
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"read in float32, and this is int8. Give --precision float32"):
        begin(path, model, tokenizer, int8=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("add_generation_prompt", "true")
    with pytest.raises(TokenizerError, match=r"not one of MM-Rec's layouts.*Leave --session out"):
        begin(path, model, tokenizer)
    tokenizer.chat_template = TEMPLATES["chatml"].template
    with pytest.raises(CheckpointError, match="in another chat template"):
        begin(path, model, tokenizer)
    tokenizer.chat_template = TEMPLATES["default"].template
    with torch.no_grad():
        next(iter(model.parameters())).mul_(1.5)
    with pytest.raises(CheckpointError, match=r"with other weights. Name that model.*another --session FILE"):
        begin(path, model, tokenizer)
    assert path.read_bytes() == before


def save_adapter(model_folder: Path, folder: Path, seed: int) -> Path:
    """An adapter that changes what is said."""
    model, _ = load_with_adapters(model_folder, [])
    adapters = Adapters(model, "base")
    adapters.train(LoraConfig(rank=4, dropout=0.0), seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    adapters.save(folder)
    return folder


@pytest.fixture
def folder(
    build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Path:
    save_model(build_model("mmrec").float(), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_a_conversation_belongs_to_its_adapters(folder: Path, tmp_path: Path) -> None:
    one, two = (save_adapter(folder, tmp_path / name, seed) for seed, name in enumerate(("one", "two")))

    def start(*wanted: str) -> ChatSession:
        model, tokenizer = load_with_adapters(folder, wanted)
        return begin(tmp_path / "talk", model, tokenizer, digests=adapter_digests(model, wanted))

    first = start(f"{one}=0.5", str(two))
    replies = [drain(first, said) for said in SAID[:2]]
    (tmp_path / "talk").unlink()
    drain(start(f"{one}=0.5", str(two)), SAID[0])
    assert drain(start(str(two), f"{one}=0.5"), SAID[1]) == replies[1]
    with pytest.raises(
        CheckpointError, match=r"with the adapters one=0.5, two=1, and this is no adapter.*--adapter"
    ):
        start()
    with pytest.raises(CheckpointError, match=r"and this is the adapters one=1, two=1. Give"):
        start(str(one), str(two))
    save_adapter(folder, two, seed=5)
    with pytest.raises(CheckpointError, match="of other weights: trained on since"):
        start(f"{one}=0.5", str(two))


def test_files_that_are_no_conversations_are_refused_and_left_alone(
    folder: Path, tokenizer: PreTrainedTokenizerBase, build_model: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:  # fmt: skip
    model, path = build_model("mmrec").float(), tmp_path / "talk"
    drain(begin(path, model, tokenizer), "Selam")
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "text").write_text("x")
    for wrong in (path, tmp_path / "text", folder / "model.safetensors"):
        before = wrong.read_bytes()
        with pytest.raises(CheckpointError, match=f"{wrong}: this is no saved conversation"):
            begin(wrong, model, tokenizer)
        assert wrong.read_bytes() == before
    with pytest.raises(DataError, match="this is a folder"):
        begin(folder, model, tokenizer)
    with pytest.raises(DataError, match="no file can be written here"):
        begin(tmp_path / "text" / "talk", model, tokenizer)
    assert (folder / "model.safetensors").exists()


def test_a_file_that_can_no_longer_be_written_is_told_and_the_conversation_goes_on(
    build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    conversation = begin(tmp_path / "new" / "talk", build_model("mmrec"), tokenizer)
    (tmp_path / "new").rmdir()
    (tmp_path / "new").write_text("")
    with pytest.raises(DataError, match="the conversation cannot be kept here"):
        drain(conversation, SAID[0])
    (tmp_path / "new").unlink()
    drain(conversation, SAID[1])
    assert len(conversation.messages) == 4
    assert begin(tmp_path / "new" / "talk", build_model("mmrec"), tokenizer).restored_tokens


def run(*arguments: object, typed: str = "") -> str:
    given = [str(argument) for argument in (*arguments, "--max-new-tokens", 8, "--temperature", 0)]
    result = CliRunner().invoke(app, given, input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


@pytest.mark.parametrize("family", ["mmrec", "llama"])
def test_the_command_goes_on_and_says_what_it_costs(
    family: str, build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:  # fmt: skip
    save_model(build_model(family).float(), tokenizer, tmp_path / "model")
    model, talk = tmp_path / "model", tmp_path / "talk"
    growth = "keeps one size" if family == "mmrec" else r"grows by [\d,]+ bytes with each token"
    unbroken = run(model, typed="Ayşe kim?\nNe?\n")
    first = run(model, "--session", talk, typed="Ayşe kim?\n").splitlines()
    assert any("a new conversation is kept here" in line for line in first)
    second = run(model, "--session", talk, typed=f"Ne?\n/save {tmp_path}/said.json\n/reset\n")
    opening = second.splitlines()[0]
    assert re.search(rf"goes on after \d+ tokens, \d+\.\d\d MB; it {growth}", opening)
    replies = [part.strip() for part in unbroken.split("> ")[1:3]]
    assert replies[0] in "\n".join(first) and replies[1] in second
    said = json.loads((tmp_path / "said.json").read_text("utf-8"))["messages"]
    assert [message["content"] for message in said][:1] == ["Ne?"] and len(said) == 2
    assert not talk.exists()


def test_adapters_are_not_switched_where_the_text_is_not_known(folder: Path, tmp_path: Path) -> None:
    one = save_adapter(folder, tmp_path / "one", seed=1)
    options: tuple[Any, ...] = (folder, "--adapter", one, "--session", tmp_path / "talk")
    assert "(one)" in run(*options, typed="/adapters none\n/adapters one\nSelam\n")
    output = run(*options, typed="/adapters none\n/reset\n/adapters none\n")
    assert "is not kept. /reset forgets it" in output and output.rstrip().endswith("(one)\n>")


def test_a_conversation_is_kept_in_int8_too(folder: Path, tmp_path: Path) -> None:
    options = (folder, "--session", tmp_path / "talk", "--precision", "int8")
    run(*options, typed="Selam\n")
    assert "goes on after" in run(*options)
    with pytest.raises(CheckpointError, match="read in int8, and this is float32"):
        run(*options[:3])
