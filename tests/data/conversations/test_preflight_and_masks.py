"""Before training: what teaches nothing is refused; and what is learnt can be looked at."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conversations_made import made
from playwright.sync_api import Browser
from published_templates import PUBLISHED, TALK, wear
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mm_rec.cli.main import run
from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.data.conversations.mask_report import REASONS, TRAINED_REASONS, explain_mask, render_mask_page
from mm_rec.data.conversations.preflight import preflight
from mm_rec.data.conversations.rendering import chat_prompt_ids, render
from mm_rec.errors import TokenizerError
from mm_rec.tokenizers.chat_template import TEMPLATES, prepare_for_chat


def talk(*contents: str, location: str = "a.jsonl:1", **last: object) -> Conversation:
    roles = ("user", "assistant") * len(contents)
    messages = [ChatMessage(role, text) for role, text in zip(roles, contents, strict=False)]
    messages[-1] = replace(messages[-1], **last)
    return Conversation(tuple(messages), location=location)


def kinds(tokenizer: PreTrainedTokenizerBase, *conversations: Conversation, **options: object) -> list[str]:
    return [
        f"{issue.kind} {issue.location}" for issue in preflight(tokenizer, conversations, **options).issues
    ]


def test_a_conversation_that_teaches_nothing_is_found(tokenizer: PreTrainedTokenizerBase) -> None:
    good, mute = talk("Old?", "No."), talk("Old?", "No.", location="a.jsonl:2", weight=0)
    assert kinds(tokenizer, good, mute) == ["nothing-learnt a.jsonl:2"]
    both = Conversation((*mute.messages, *talk("a", "b").messages), location="a.jsonl:3")
    assert kinds(tokenizer, both) == [] and kinds(tokenizer, both, train_on="last") == []
    turned = Conversation((*talk("a", "b").messages, *mute.messages), location="a.jsonl:4")
    assert kinds(tokenizer, turned, train_on="last") == ["nothing-learnt a.jsonl:4"]


def test_an_end_of_turn_that_is_never_learnt_is_found(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{{ eos_token }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    assert kinds(tokenizer, talk("Old?", "No.")) == ["end-not-learnt a.jsonl:1"]


def test_one_that_the_template_refuses_does_not_hide_the_others(tokenizer: PreTrainedTokenizerBase) -> None:
    odd = Conversation((ChatMessage("narrator", "x"), *talk("a", "b").messages), location="a.jsonl:7")
    checked = preflight(tokenizer, [talk("Old?", "No."), odd, talk("Ne?", "O.")])
    assert [str(issue) for issue in checked.issues] == [
        "a.jsonl:7: the chat template refuses this conversation: unknown role narrator: use system, developer, user, "
        "assistant or tool"
    ]
    assert len(checked.rendered) == 2


def test_long_conversations_are_refused_or_lose_their_oldest_turns(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    system = ChatMessage("system", "Be kind.")
    turns = [
        message for number in range(9) for message in talk(f"Soru {number}?", f"Yanıt {number}.").messages
    ]
    long = Conversation((system, *turns), location="a.jsonl:5")
    limit = len(render(tokenizer, long.with_messages([system, *turns[-6:]])).ids)
    assert kinds(tokenizer, long, max_length=limit) == ["too-long a.jsonl:5"]
    checked = preflight(tokenizer, [long], max_length=limit, too_long="turns")
    assert checked.conversations[0].messages == (system, *turns[-6:])
    assert len(checked.rendered[0].ids) == limit
    assert [fix.message for fix in checked.fixes] == ["the 12 oldest messages were cut"]
    # Not even the last exchange fits.
    assert kinds(tokenizer, long, max_length=10, too_long="turns") == ["too-long a.jsonl:5"]


@pytest.mark.parametrize("layout", list(TEMPLATES))
@pytest.mark.parametrize("train_on", ["all", "last"])
def test_the_colours_are_the_mask_of_training(
    tokenizer: PreTrainedTokenizerBase, layout: str, train_on: str
) -> None:
    prepare_for_chat(tokenizer, layout)
    seen = set()
    for conversation in made(80, seed=3):
        rendered, tokens = (
            render(tokenizer, conversation, train_on),
            explain_mask(tokenizer, conversation, train_on),
        )
        assert [token.trained_on for token in tokens] == rendered.loss_mask.tolist()
        assert all((token.reason in TRAINED_REASONS) == token.trained_on for token in tokens)
        seen |= {token.reason for token in tokens}
        said = "".join(
            token.text for token in tokens if token.reason == "user" and not token.text.startswith("<0x")
        )
        assert said.count("Ayşe") == sum(
            message.content.count("Ayşe") for message in conversation.messages if message.role == "user"
        )
    expected = set(REASONS) - {"rewritten"} - ({"earlier answer"} if train_on == "all" else set())
    # ChatML and LLaMA 3 write the tools into the system's message.
    assert seen >= expected - {"tools", "first token"}
    assert not seen - set(REASONS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_colours_of_a_published_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    published = wear(tokenizer, name)
    conversation = Conversation(tuple(ChatMessage(role, text) for role, text in TALK))
    tokens = explain_mask(tokenizer, conversation)
    assert [token.trained_on for token in tokens] == render(tokenizer, conversation).loss_mask.tolist()
    assert not preflight(tokenizer, [conversation]).issues
    said = {reason: "".join(one.text for one in tokens if one.reason == reason) for reason in REASONS}
    assert said["user"].split() == ["Hava?Old?"] and "No." in said["answer"]
    ends = sum(token.reason == "end of turn" for token in tokens)
    assert ends == published.text.count("⟧")
    assert ("Soğuk." in said["rewritten"]) == ("Soğuk." not in said["answer"]) == (ends == 1)


def test_the_page_in_a_browser(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, browser: Browser) -> None:
    conversations = [*made(5, seed=4), talk("<script>alert(1)</script>", "No & <b>bold</b>.")]
    pairs = [(one.location, explain_mask(tokenizer, one)) for one in conversations]
    (tmp_path / "masks.html").write_text(render_mask_page(pairs, "made", "default"), encoding="utf-8")
    page = browser.new_page()
    issues: list[str] = []
    page.on("pageerror", lambda error: issues.append(str(error)))
    page.on("dialog", lambda dialog: issues.append(dialog.message))
    page.goto((tmp_path / "masks.html").as_uri())
    background = "e => getComputedStyle(e).backgroundColor"
    answer, user = page.locator("pre .answer").first, page.locator("pre .user").first
    assert answer.evaluate(background) != user.evaluate(background)
    assert "learnt: what the assistant says" in (answer.get_attribute("title") or "")
    assert page.get_by_text("alert(1)").is_visible()
    assert page.locator("pre .answer").count() == sum(
        token.reason == "answer" for _, tokens in pairs for token in tokens
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and issues == []
    page.close()


def test_the_command_shows_a_file_and_lists_what_is_wrong(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "Old?"}, {"role": "assistant", "content": "No."}]},
        {
            "messages": [
                {"role": "user", "content": "Old?"},
                {"role": "assistant", "content": "No.", "weight": 0},
            ]
        },
    ]
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps(rows[0]) + "\n")
    command = [
        "data",
        "masks",
        str(file),
        "--tokenizer",
        str(tokenizer_folder),
        "--out",
        str(tmp_path / "m.html"),
    ]
    assert run(command) == 0
    printed = capsys.readouterr().out
    assert "1 conversations," in printed and "answer" in printed and (tmp_path / "m.html").is_file()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(command) == 2
    assert f"is learnt ({file}:2)" in capsys.readouterr().err
    assert run([*command, "--train-on", "some"]) == 2
    assert "choose all or last" in capsys.readouterr().err


def test_a_layout_that_the_tokenizer_cannot_keep_apart_is_refused_and_white_space_is_cut() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    line = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("\n\n")[0][
        0
    ]  # two of them, as one piece
    vocabulary = {piece: index for index, piece in enumerate([*alphabet, line])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(line[0], line[1])]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    prepare_for_chat(tokenizer, "llama3")
    with pytest.raises(TokenizerError, match=r"joins the end of a prompt.*--template default"):
        preflight(tokenizer, [talk("Old?", "No.")])
    prepare_for_chat(tokenizer, "default")
    checked = preflight(tokenizer, [talk("Old?", "\n\nNo.")])
    assert [fix.message for fix in checked.fixes] == ["white space before an answer was cut"]
    prompt = chat_prompt_ids(tokenizer, checked.conversations[0].messages[:1])
    assert checked.rendered[0].ids[: len(prompt)].tolist() == prompt
