from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mm_rec.errors import TokenizerError
from mm_rec.tokenizers import loading
from mm_rec.tokenizers.conversion import to_tokenizer_json
from mm_rec.tokenizers.loading import (
    byte_fallback_ids,
    count_special_tokens,
    describe_special_tokens,
    encode_document,
    encode_documents,
    encoder,
    fingerprint,
    load_tokenizer,
    require_vocab_fits,
    token_byte_lengths,
    vocabulary_size,
)
from mm_rec.tokenizers.training import TokenizerConfig, train_tokenizer

Corpus = Callable[[], list[str]]


TEXTS = ["The old captain", "", "İhtiyar balıkçı\n\tşarkı 👍", "   a  \r\n", "▁ old ☂"]


def test_a_document_has_bos_and_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    for text in TEXTS:
        ids = encode_document(tokenizer, text)
        assert ids == [*tokenizer(text)["input_ids"], 1] and ids[0] == 1
        assert tokenizer.decode(ids[1:-1]) == text
    assert encode_document(tokenizer, "") == [1, 1]


def test_a_batch_is_its_documents(tokenizer: PreTrainedTokenizerBase) -> None:
    arrays = encode_documents(tokenizer, TEXTS)
    assert all(array.dtype == np.int32 for array in arrays)
    assert [array.tolist() for array in arrays] == [encode_document(tokenizer, text) for text in TEXTS]
    assert encode_documents(tokenizer, []) == []


def test_groups_keep_order_and_stay_small(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [array.tolist() for array in encode_documents(tokenizer, TEXTS * 9)]
    monkeypatch.setattr(loading, "_GROUP_CHARACTERS", 20)
    assert [array.tolist() for array in encode_documents(tokenizer, TEXTS * 9)] == whole


def test_missing_bos_and_eos_are_left_out(folder: Path) -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=to_tokenizer_json(folder / "tokenizer.model"))
    assert encode_document(plain, "old") == plain("old")["input_ids"]


def test_truncation_and_padding_left_behind_do_not_cut_documents(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = [array.tolist() for array in encode_documents(tokenizer, TEXTS)]
    tokenizer(TEXTS, truncation=True, max_length=2, padding=True)
    assert [array.tolist() for array in encode_documents(tokenizer, TEXTS)] == whole


def test_fingerprint_follows_what_decides_ids(
    tokenizer: PreTrainedTokenizerBase, folder: Path, tmp_path: Path
) -> None:
    mark = fingerprint(tokenizer)
    assert len(mark) == 64
    tokenizer(TEXTS, truncation=True, max_length=2, padding=True)
    tokenizer.chat_template = "other"
    assert fingerprint(tokenizer) == mark
    tokenizer.save_pretrained(tmp_path / "copy")
    assert fingerprint(load_tokenizer(tmp_path / "copy")) == mark
    tokenizer.add_tokens(["yeni"])
    assert fingerprint(tokenizer) != mark
    other = load_tokenizer(folder)
    other.eos_token = "<|pad|>"
    assert fingerprint(other) != mark


def test_fit(tokenizer: PreTrainedTokenizerBase) -> None:
    require_vocab_fits(tokenizer, 480)
    require_vocab_fits(tokenizer, 512)
    with pytest.raises(TokenizerError, match=r"ids up to 479.*vocabulary of 479.*vocab_size=480"):
        require_vocab_fits(tokenizer, 479)
    tokenizer.add_tokens(["yeni"])
    assert vocabulary_size(tokenizer) == 481
    with pytest.raises(TokenizerError):
        require_vocab_fits(tokenizer, 480)


def test_byte_lengths_add_up_to_the_text(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
    lengths = token_byte_lengths(tokenizer)
    assert lengths.dtype == np.int64
    assert lengths.shape == (480,)
    assert lengths[:6].tolist() == [0] * 6
    assert lengths[byte_fallback_ids(tokenizer)].tolist() == [1] * 256
    for text in [*corpus(), *TEXTS[:4], "emoji 👩‍👧 \x00 e\u0301"]:
        assert lengths[tokenizer(text)["input_ids"]].sum() == len(text.encode())
    assert lengths[tokenizer("<|user|>\n<|endoftext|>")["input_ids"]].sum() == 1


def test_special_tokens_in_a_text_are_text(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """They encode as the same characters do that are none, decode to themselves, and change nothing for chats."""
    lengths = token_byte_lengths(tokenizer)
    text = "Ayşe <|user|>\n<|endoftext|><|pad|> <|user|> <unk>"
    plain, other = encode_documents(tokenizer, [text, "Ayşe"])
    specials = {
        token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    assert not set(specials.values()) & set(plain[1:-1].tolist())
    assert tokenizer.decode(plain[1:-1]) == text and lengths[plain].sum() == len(text.encode())
    assert other.tolist() == encode_documents(tokenizer, ["Ayşe"])[0].tolist()
    assert count_special_tokens(tokenizer, [text]) == {"<|user|>": 2, "<|endoftext|>": 1, "<|pad|>": 1}
    assert describe_special_tokens(count_special_tokens(tokenizer, ["Ayşe"])) == []
    ids = encoder(tokenizer).encode(text, add_special_tokens=False).ids
    assert specials["<|user|>"] in ids and specials["<|endoftext|>"] in ids
    assert fingerprint(tokenizer) == fingerprint(load_tokenizer(folder))


def test_a_special_token_that_was_added_later_is_text_too(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "<|user|> <|later|>"
    encode_documents(tokenizer, [text])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|later|>"]})
    (ids,) = encode_documents(tokenizer, [text])
    assert tokenizer.convert_tokens_to_ids("<|later|>") not in ids
    assert count_special_tokens(tokenizer, [text]) == {"<|user|>": 1, "<|later|>": 1}


def test_chats_and_texts_are_encoded_at_the_same_time(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "<|user|> Ayşe <|endoftext|>"
    chat = encoder(tokenizer).encode(text, add_special_tokens=False).ids
    plain = encode_documents(tokenizer, [text])[0].tolist()

    def both(number: int) -> bool:
        if number % 2:
            return encode_documents(tokenizer, [text])[0].tolist() == plain
        return bool(encoder(tokenizer).encode(text, add_special_tokens=False).ids == chat)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(both, range(400)))


def byte_level() -> PreTrainedTokenizerFast:
    vocabulary = {piece: index for index, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab={**vocabulary, "Ġa": 256}, merges=[("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", add_bos_token=True
    )


def test_byte_level_tokenizers_are_supported() -> None:
    tokenizer = byte_level()
    lengths = token_byte_lengths(tokenizer)
    for text in ("ışık a\n 👍", " a a"):
        ids = encode_document(tokenizer, text)
        assert lengths[ids].sum() == len(text.encode())
        assert tokenizer.decode(ids[1:-1]) == text
    assert len(byte_fallback_ids(tokenizer)) == 0


def test_pieces_of_unknown_kind_are_refused() -> None:
    backend = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(TokenizerError, match="WordPiece"):
        token_byte_lengths(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_a_model_folder_with_its_own_code_loads_without_running_it(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    code = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", None]}
    (model / "config.json").write_text(json.dumps({"model_type": "mmrec", "auto_map": code}))
    (model / "evil.py").write_text("raise SystemExit('ran')")
    assert fingerprint(load_tokenizer(model)) == fingerprint(load_tokenizer(folder))


def test_a_missing_folder_and_a_folder_without_tokenizer_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"nowhere: there is no such folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json.*mmrec tokenizer train"):
        load_tokenizer(tmp_path)
    shutil.copy(folder / "tokenizer.model", tmp_path)
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", '{"model":'),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"added_tokens": [], "model": {"type": "Mystery"}}'),
        ("tokenizer_config.json", '{"eos_token":'),
    ],
)
def test_a_damaged_folder_is_refused(folder: Path, tmp_path: Path, name: str, content: str) -> None:
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged" / name).write_text(content)
    with pytest.raises(TokenizerError, match=r"damaged: the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path / "damaged")


def test_a_cut_sentencepiece_model_is_refused(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "tokenizer.model").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 3):
        (tmp_path / "cut.model").write_bytes(whole[:size])
        with pytest.raises(TokenizerError, match=r"cut\.model"):
            to_tokenizer_json(tmp_path / "cut.model")
    with pytest.raises(TokenizerError, match="no such file"):
        to_tokenizer_json(tmp_path / "absent.model")


def test_models_without_an_exact_counterpart_are_refused(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sentencepiece

    learn = sentencepiece.SentencePieceTrainer.train
    changes = {
        "normalises text by 'nmt_nfkc'": {"normalization_rule_name": "nmt_nfkc"},
        "dummy prefix": {"add_dummy_prefix": True},
        "removes extra spaces": {"remove_extra_whitespaces": True},
        "not BPE": {"model_type": "unigram", "vocab_size": 320},
    }
    for problem, change in changes.items():
        monkeypatch.setattr(
            sentencepiece.SentencePieceTrainer,
            "train",
            lambda change=change, **options: learn(**(options | change)),
        )
        with pytest.raises(TokenizerError, match=problem):
            train_tokenizer(corpus, TokenizerConfig(vocab_size=400, threads=1), tmp_path / "out")
