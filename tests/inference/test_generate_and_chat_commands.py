"""`mmrec generate` and `mmrec chat`, as a person meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner

from mm_rec import cpu
from mm_rec.cli import chat, evaluate, generate
from mm_rec.cli.chat_loop import chat_turn
from mm_rec.errors import CheckpointError, ConfigError, TokenizerError
from mm_rec.inference.chat_session import ChatSession
from mm_rec.inference.engine import Engine
from mm_rec.inference.sampler import SamplingParams
from mm_rec.models.loading import save_model, save_portable
from mm_rec.native import library

app = typer.Typer()
app.command()(generate.generate)
app.command()(chat.chat)


@pytest.fixture
def folder(
    build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Path:
    save_model(build_model("mmrec").float(), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def run(*arguments: object, typed: str = "") -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def run_both(*arguments: object) -> str:
    """As `run`, with what is said beside the text."""
    return str(CliRunner().invoke(app, [str(argument) for argument in arguments]).output)


@pytest.mark.usefixtures("compiler")  # there is no other note
def test_a_special_token_in_a_prompt_is_text_and_said(folder: Path) -> None:
    output = run_both("generate", folder, "--prompt", "<|user|> Ayşe", "--max-new-tokens", 2)
    assert (
        "note: special tokens that are written out in the text are read as plain text: <|user|> 1 times"
        in (output.replace("\n", " "))
    )
    assert "note:" not in run_both("generate", folder, "--prompt", "Ayşe", "--max-new-tokens", 2)


def test_generate_continues_each_prompt(folder: Path) -> None:
    options = ("--count", 2, "--max-new-tokens", 8, "--seed", 5)
    output = run("generate", folder, "--prompt", "Ayşe", "--prompt", "She [sees]", *options)
    first, second, *others = output.rstrip("\n").split("\n\n")
    assert first.startswith("Ayşe") and second.startswith("Ayşe") and first != second
    assert "She [sees]" in "".join(others)
    assert run("generate", folder, "--prompt", "Ayşe", "--prompt", "She [sees]", *options) == output


def test_what_is_written_is_exactly_the_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = "def f():\n\treturn [red] :smile: " + "uzun " * 60
    monkeypatch.setattr("mm_rec.inference.generate.generate_text", lambda *_: iter(["\t", written]))
    assert run("generate", folder, "--prompt", "a\tb :smile:") == f"a\tb :smile:\t{written}\n\n"
    monkeypatch.setattr(
        "mm_rec.inference.chat_session.ChatSession.send", lambda *_: (piece for piece in ["\t", written])
    )
    assert f"\t{written}\n" in run("chat", folder, typed="Hi\n")


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_weights_in_fewer_bits_write_too(folder: Path, precision: str) -> None:
    options = ("--max-new-tokens", 6, "--temperature", 0, "--precision", precision)
    output = run("generate", folder, "--prompt", "Ayşe", *options)
    assert output.startswith("Ayşe") and len(output.strip()) > len("Ayşe")
    assert run("generate", folder, "--prompt", "Ayşe", *options) == output
    assert "The conversation is forgotten." in run("chat", folder, *options, typed="Ayşe\n/reset\n")


def test_without_the_kernels_float32_writes_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("generate", folder, "--prompt", "Ayşe", "--max-new-tokens", 2, "--temperature", 0)
    monkeypatch.setenv("CXX", "false")
    library._find.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(cpu, "has_native_bfloat16", lambda: False)
    try:
        assert "several times slower" in run_both(*options)
        expected = run(*options)
        for precision in ("int8", "bfloat16"):
            said = run_both(*options, "--precision", precision).replace("\n", " ")
            assert (
                "false refused" in said
                and f"{precision} would not be faster here, so float32 is used" in said
            )
            assert run(*options, "--precision", precision) == expected
    finally:
        library._find.cache_clear()


def test_generate_reads_the_single_file(
    build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = tmp_path / "final_checkpoint.pt"
    save_portable(build_model("llama").float(), tokenizer, path)
    assert run("generate", path, "--prompt", "Ayşe", "--max-new-tokens", 4).startswith("Ayşe")


def test_chat_takes_commands_and_messages(folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    typed = f"Ayşe kim?\n\n/what\n/save {saved}\n/reset\nNe?\n/save {tmp_path}/absent\0/x\n/exit\nnot read\n"
    output = run("chat", folder, "--max-new-tokens", 5, "--system", "Kısa.", typed=typed.replace("\0", ""))
    assert output.count("/reset forgets") == 2
    assert "Saved:" in output and "is forgotten" in output
    messages = json.loads(saved.read_text("utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[0] == {"role": "system", "content": "Kısa."} and messages[1]["content"] == "Ayşe kim?"


def test_what_cannot_be_written_down_leaves_everything_as_it_was(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "letter").write_text("x")
    typed = f"/save {tmp_path}/kept\n/save {tmp_path}/kept/letter/talk.json\nSelam\n"
    output = run("chat", folder, "--max-new-tokens", 5, typed=typed)
    assert "this is a folder; name a file in it" in output and "it cannot be written" in output
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["letter"]


def test_chat_ends_with_the_input(folder: Path) -> None:
    run("chat", folder, "--max-new-tokens", 5, typed="Selam\n")


def test_chat_says_when_the_context_is_full(
    build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(build_model("llama", context_limit=40).float(), tokenizer, tmp_path)
    output = run("chat", tmp_path, "--max-new-tokens", 5, typed=f"{'uzun ' * 40}\nNe?\n")
    assert "at most 40 tokens" in output
    assert "/reset" in output


def test_ctrl_c_ends_the_reply_between_tokens_and_not_the_conversation(
    build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = build_model("mmrec")
    conversation = ChatSession(Engine(model), tokenizer, SamplingParams(temperature=0, max_new_tokens=40))
    handler, passes = signal.getsignal(signal.SIGINT), []

    def press(*_: object) -> None:
        passes.append(1)
        if len(passes) == 6:
            os.kill(os.getpid(), signal.SIGINT)

    hook = model.model.layers[0].register_forward_hook(press)
    chat_turn("Ayşe kim?", conversation, Console(quiet=True))
    hook.remove()
    assert 6 <= len(passes) < 40
    assert [message.role for message in conversation.messages] == ["user", "assistant"]
    assert signal.getsignal(signal.SIGINT) is handler
    length = conversation.session.length
    "".join(conversation.send("Ne?"))
    assert conversation.session.length > length


def test_mistakes_are_user_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model here"):
        run("generate", tmp_path / "absent", "--prompt", "x")
    (tmp_path / "all" / "sft" / "final").mkdir(parents=True)
    (tmp_path / "all" / "sft" / "final" / "config.json").touch()
    with pytest.raises(CheckpointError, match=r"Did you mean .*all/sft\?"):
        run("generate", tmp_path / "all", "--prompt", "x")
    for own in ("runs/absent", "quickstart/absent"):  # no names of the hub
        with pytest.raises(CheckpointError, match="no such file or folder"):
            run("generate", own, "--prompt", "x")
    assert "Invalid value for '--temperature'" in run_both(
        "generate", folder, "--prompt", "x", "--temperature", -1
    )
    assert "Invalid value for '--top-p'" in run_both("chat", folder, "--top-p", 2)
    with pytest.raises(ConfigError, match="mmrec chat: top_p"):
        run("chat", folder, "--top-p", 0)
    with pytest.raises(ConfigError, match="device"):
        run("generate", folder, "--prompt", "x", "--device", "abacus")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(TokenizerError, match="no chat template"):
        run("chat", folder)


@pytest.mark.parametrize("module", [generate, chat, evaluate])
def test_help_does_not_import_heavy_packages(module: object) -> None:
    name = re.findall(r"mm_rec\.cli\.\w+", str(module))[0]
    code = f"import sys, {name}; print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
