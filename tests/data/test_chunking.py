"""Slicing: every rule on texts small enough to count by hand, and nothing lost or crossed on real text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mm_rec.data import sentence_tokens
from mm_rec.data.chunking import ChunkedText, chunk_documents, chunk_text, read_text_files
from mm_rec.data.conversations.rendering import TokenizedExample
from mm_rec.data.sections import Chunking
from mm_rec.errors import ConfigError, DataError
from mm_rec.text.sentences import split_sentences

BOS, EOS = "<s>", "</s>"


def word_tokenizer(*texts: str, **specials: str) -> PreTrainedTokenizerFast:
    """A token for each word of the texts, with the white space before it; white space beyond that is a token too."""
    words = {word for text in texts for word in text.replace(BOS, " ").replace(EOS, " ").split()}
    pieces = [*sorted({space + word for word in words for space in ("", *" \n\t")}), *" \n\t", "<unk>"]
    backend = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s?\S+|\s"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", add_bos_token="bos_token" in specials, **specials
    )


def sliced(text: str, **settings: object) -> ChunkedText:
    tokenizer = word_tokenizer(text, bos_token=BOS, eos_token=EOS)
    return chunk_text(text, tokenizer, Chunking.read(settings))


def texts(chunks: ChunkedText) -> list[str]:
    return [block.text for block in chunks.blocks]


def ids_as_text(text: str, **settings: object) -> list[str]:
    """The blocks' ids, decoded: with BOS and EOS."""
    tokenizer = word_tokenizer(text, bos_token=BOS, eos_token=EOS)
    return [
        tokenizer.decode(block.ids) for block in chunk_text(text, tokenizer, Chunking.read(settings)).blocks
    ]


# Two tokens a sentence; 8 tokens a chunk hold three of them beside BOS and EOS.
SEVEN = "A b. C d. E f. G h. I j. K l. M n."


def test_a_block_takes_whole_sentences_until_its_chunk_is_full() -> None:
    chunks = sliced(SEVEN, chunk_length=8, overlap=False)
    assert texts(chunks) == ["A b. C d. E f.", " G h. I j. K l.", " M n."]
    assert chunks.lengths == [8, 8, 4] and chunks.tokens == 20 and chunks.parts == 1 and chunks.notes() == []
    assert texts(sliced(SEVEN, chunk_length=9, overlap=False)) == texts(chunks)
    assert texts(sliced(SEVEN, chunk_length=8, overlap=False, add_bos=False, add_eos=False)) == [
        "A b. C d. E f. G h.",
        " I j. K l. M n.",
    ]


def test_an_overlapping_block_joins_neighbours_and_starts_in_the_middle_of_the_first() -> None:
    chunks = sliced(SEVEN, chunk_length=8)
    assert texts(chunks) == [
        "A b. C d. E f.",
        " C d. E f. G h.",
        " G h. I j. K l.",
        " I j. K l. M n.",
        " M n.",
    ]
    assert chunks.overlapping == 2


def test_an_overlapping_block_starts_at_the_sentence_that_holds_the_middle_token() -> None:
    text = "A a a a. B b. C c c c c."
    assert texts(sliced(text, chunk_length=8)) == [
        "A a a a. B b.",
        " C c c c c.",
    ]  # B and C do not fit together
    assert texts(sliced(text, chunk_length=9)) == ["A a a a. B b.", " B b. C c c c c.", " C c c c c."]


def test_a_part_that_fits_has_no_copy_of_its_half() -> None:
    assert texts(sliced("A b. C d. E f.", chunk_length=8)) == ["A b. C d. E f."]


def test_no_block_crosses_a_hard_cut() -> None:
    text = "A b. C d.\n\n\nE f.\n\n\n\n  G h. I j.\r\n\r\n\r\nK l."
    assert texts(sliced(text, chunk_length=64)) == ["A b. C d.", "E f.", "G h. I j.", "K l."]
    assert texts(sliced("A b.|C d.", chunk_length=64, hard_cut="|")) == ["A b.", "C d."]
    assert texts(sliced("A b.\n\n\nC d.", chunk_length=64, hard_cut="")) == ["A b.\n\n\nC d."]


def test_line_ends_may_be_typed_as_backslash_n() -> None:
    assert Chunking(hard_cut=r"\n\n\n", train_only_after=r"Answer:\n") == Chunking(
        train_only_after="Answer:\n"
    )


def test_white_space_within_a_block_is_kept_and_around_it_is_not() -> None:
    text = "\n A  b.\n\n C d.\n\n\t E f. G h. \n"
    chunks = sliced(text, chunk_length=10, overlap=False)
    assert texts(chunks) == ["A  b.\n\n C d.", " E f. G h."]
    assert all(block in text for block in texts(chunks))
    assert ids_as_text(text, chunk_length=10, overlap=False)[0] == f"{BOS}A  b.\n\n C d.{EOS}"


def test_with_a_sliding_window_a_block_starts_at_every_sentence() -> None:
    chunks = sliced(SEVEN, chunk_length=8, sliding_window=True)
    # What would start at the last two is only the end of " I j. K l. M n.".
    assert texts(chunks) == [
        "A b. C d. E f.",
        " C d. E f. G h.",
        " E f. G h. I j.",
        " G h. I j. K l.",
        " I j. K l. M n.",
    ]
    assert chunks.overlapping == 0


LONG = "A b. C d e f g h i j k l. M n."


def test_a_long_sentence_is_split_so_that_nothing_is_lost() -> None:
    chunks = sliced(LONG, chunk_length=8, overlap=False)
    assert texts(chunks) == ["A b.", " C d e f g h", " i j k l. M n."]
    assert chunks.notes() == ["sentences longer than 8 tokens, split: 1"]


def test_a_long_sentence_is_trimmed_or_dropped_where_that_is_asked_for() -> None:
    trimmed = sliced(LONG, chunk_length=8, too_long="trim")
    assert texts(trimmed) == ["A b.", " C d e f g h", " M n."]
    assert trimmed.notes() == ["sentences longer than 8 tokens, trimmed: 1 (4 tokens lost)"]
    dropped = sliced(LONG, chunk_length=8, too_long="drop")
    assert texts(dropped) == ["A b.", " M n."]
    assert dropped.notes() == ["sentences longer than 8 tokens, left out: 1 (10 tokens lost)"]
    assert texts(sliced(LONG, chunk_length=8, too_long="drop", sliding_window=True)) == ["A b.", " M n."]


def test_a_long_sentence_is_cut_between_words_and_never_in_a_character(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    settings = Chunking(chunk_length=10, overlap=False, language="tr")
    chunks = chunk_text("Ilık ışıl ışı ğğğğğğğğğ.", byte_tokenizer, settings)
    assert texts(chunks) == ["Ilık", " ışıl", " ışı", " ğğğ", "ğğğğ", "ğğ."]
    for block in chunks.blocks:
        assert byte_tokenizer.decode(block.ids[1:-1]) == block.text


def test_small_blocks_are_left_out_and_counted() -> None:
    chunks = sliced(SEVEN, chunk_length=8, overlap=False, min_chars=6)
    assert texts(chunks) == ["A b. C d. E f.", " G h. I j. K l."]
    assert chunks.small_blocks == 1 and chunks.notes() == ["blocks under 6 characters, left out: 1"]


def test_bos_begins_and_eos_ends_every_block() -> None:
    assert ids_as_text(SEVEN, chunk_length=8, overlap=False) == [
        f"{BOS}A b. C d. E f.{EOS}",
        f"{BOS} G h. I j. K l.{EOS}",
        f"{BOS} M n.{EOS}",
    ]
    assert ids_as_text(SEVEN, chunk_length=16, add_bos=False, add_eos=False) == [SEVEN]


def test_eos_at_hard_cuts_ends_only_blocks_that_end_a_part() -> None:
    text = SEVEN + "\n\n\nO p."
    settings = {"chunk_length": 8, "eos_placement": "hard_cut"}
    assert ids_as_text(text, **settings) == [
        f"{BOS}A b. C d. E f.",
        f"{BOS} C d. E f. G h.",
        f"{BOS} G h. I j. K l.",
        f"{BOS} I j. K l. M n.{EOS}",
        f"{BOS} M n.{EOS}",
        f"{BOS}O p.{EOS}",
    ]
    trimmed = "A b. C d e f g h i j k l."
    assert [EOS in block for block in ids_as_text(trimmed, too_long="trim", **settings)] == [False, False]


def test_bos_and_eos_of_the_text_are_not_doubled() -> None:
    text = f"{BOS}A b.{EOS}\n\n\n{BOS} C d. {EOS}"
    assert ids_as_text(text, chunk_length=8) == [f"{BOS}A b.{EOS}", f"{BOS}C d.{EOS}"]


def test_a_tokenizer_without_bos_gives_a_note() -> None:
    chunks = chunk_text("A b.", word_tokenizer("A b.", eos_token=EOS), Chunking())
    assert chunks.notes() == ["the tokenizer puts no BOS before a text, so none is added"]
    assert len(chunks.blocks[0].ids) == 3 and chunks.blocks[0].loss_mask.all()


def test_a_special_token_within_the_text_is_text_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"A b.\n\n\nC d.\nE {EOS} f {BOS}{EOS}.\n")
    tokenizer = word_tokenizer("A b. C d. E f.", bos_token=BOS, eos_token=EOS)
    chunks = chunk_documents(read_text_files([tmp_path]), tokenizer, Chunking(add_bos=False, add_eos=False))
    specials = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert not specials & {token for block in chunks.blocks for token in block.ids.tolist()}
    assert f"E {EOS} f" in "".join(texts(chunks))
    assert chunks.notes()[0].endswith(f"are read as plain text: {EOS} 2 times, {BOS} 1 times")
    assert texts(chunk_text("A <unk> b.", tokenizer, Chunking())) == ["A <unk> b."]  # as in WikiText


def loss_text(block: TokenizedExample, tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode(block.ids[block.loss_mask]))


def test_everything_but_bos_is_learnt() -> None:
    tokenizer = word_tokenizer("A b.", bos_token=BOS, eos_token=EOS)
    (block,) = chunk_text("A b.", tokenizer, Chunking()).blocks
    assert block.ids.dtype == np.int32 and block.loss_mask.tolist() == [False, True, True, True]


def test_only_what_follows_the_marker_is_learnt(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Which one?\n\nAnswer:\nBlue. Answer:\nRed."
    for marker, learnt in (("Answer:\\n", "Blue. Answer:\nRed."), ("Answer:", "\nBlue. Answer:\nRed.")):
        (block,) = chunk_text(text, byte_tokenizer, Chunking(train_only_after=marker)).blocks
        assert block.text == text and loss_text(block, byte_tokenizer) == learnt + EOS


def test_the_space_that_ends_a_marker_is_learnt_with_the_word_after_it() -> None:
    text = "Q: Which one? A: Blue it is."
    tokenizer = word_tokenizer(text, bos_token=BOS, eos_token=EOS)
    (block,) = chunk_text(text, tokenizer, Chunking(train_only_after="A: ")).blocks
    assert loss_text(block, tokenizer) == f" Blue it is.{EOS}"


def test_blocks_without_the_marker_are_left_out_and_counted() -> None:
    text = "Q A: yes.\n\n\nQ no.\n\n\nQ A:"
    chunks = sliced(text, chunk_length=16, train_only_after="A:")
    assert texts(chunks) == ["Q A: yes."] and chunks.unmarked_blocks == 2
    assert chunks.notes() == ["blocks with nothing after 'A:', left out: 2"]


@pytest.mark.parametrize(
    ("text", "settings", "remedy"),
    [
        (" \n\n\n ", {}, "there is no text in it. Give other files"),
        (
            "A b.",
            {"train_only_after": "C:"},
            "nothing follows 'C:' in any block. Correct or clear train_only_after",
        ),
        ("A b.", {"min_chars": 5}, "every block has under 5 characters. Lower min_chars"),
        (
            LONG[5:26],
            {"chunk_length": 8, "too_long": "drop"},
            "Raise chunk_length, or choose too_long: split",
        ),
    ],
)
def test_a_slice_without_blocks_says_what_to_change(
    text: str, settings: dict[str, object], remedy: str
) -> None:
    with pytest.raises(DataError, match="the text gives no block to train on") as error:
        sliced(text, **settings)
    assert remedy in str(error.value)


def test_a_wrong_setting_names_the_right_ones() -> None:
    with pytest.raises(ConfigError, match="'xx' is not known; known are: tr, en"):
        Chunking.read({"language": "xx"})
    with pytest.raises(ConfigError, match="did you mean 'hard_cut'"):
        Chunking.read({"hardcut": "|"})


def test_abbreviations_and_ordinals_end_no_block() -> None:
    text = "Prof. Dr. Ayşe 19. yüzyılı anlattı. Elma, armut vb. meyveler var. T.C. Cumhurbaşkanı geldi."
    chunks = sliced(text, chunk_length=9, overlap=False, language="tr")
    assert [block.strip() for block in texts(chunks)] == split_sentences(text, "tr")


def test_the_suggested_chunk_holds_the_longest_example() -> None:
    example = " ".join(["word"] * 70)
    assert sliced(f"A b.\n\n\n{example}", chunk_length=32).suggested_chunk_length == 96
    assert sliced(f"A b.\n\n\n{example}", chunk_length=512).suggested_chunk_length == 96
    assert (
        sliced(" ".join(["Yes it is."] * 100), chunk_length=64).suggested_chunk_length == 64
    )  # a text, no example


def test_text_files_come_in_natural_order(tmp_path: Path) -> None:
    for name in ("part10.txt", "part2.txt", "part1.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "notes.json").write_text("{}")
    assert [document.text for document in read_text_files([tmp_path])] == [
        "part1.txt",
        "part2.txt",
        "part10.txt",
    ]
    (tmp_path / "part3.txt").write_bytes(b"\xfe\xfd bad")
    with pytest.raises(DataError, match=r"part3\.txt:1: .*not UTF-8"):
        list(read_text_files([tmp_path]))


def training_pro(text: str, sizes: Callable[[str], int], cutoff: int) -> list[str]:
    """The blocks of Training PRO's slicer without overlap, from the account of its rules."""
    blocks: list[str] = []
    for part in text.split("\n\n\n"):
        held, total = "", 0
        for sentence in split_sentences(part, "en"):
            if held and total + sizes(sentence) >= cutoff - 1:
                blocks.append(held)
                held, total = "", 0
            held, total = f"{held} {sentence}".strip(), total + sizes(sentence)
        blocks.append(held)
    return blocks


def training_pro_windows(sentences: list[str], sizes: Callable[[str], int], cutoff: int) -> list[str]:
    """The blocks of its sliding window over one part: those that end like the block before are left out."""
    blocks: list[str] = []
    last = ""
    for first in range(len(sentences)):
        held: list[str] = []
        for sentence in sentences[first:]:
            if sum(map(sizes, held)) + sizes(sentence) > cutoff - 1:
                break
            held.append(sentence)
        if held[-1] != last:
            blocks.append(" ".join(held))
        last = held[-1]
    return blocks


def made_text(seed: int, parts: int) -> str:
    chance = np.random.default_rng(seed)

    def sentence(number: int) -> str:
        return " ".join(["Word", *("word" for _ in range(chance.integers(0, 9))), f"n{number}."])

    counts = chance.integers(1, 30, size=parts)
    return "\n\n\n".join(" ".join(sentence(number) for number in range(count)) for count in counts)


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_those_of_training_pro(seed: int) -> None:
    text = made_text(seed, parts=20)
    tokenizer = word_tokenizer(text, bos_token=BOS, eos_token=EOS)

    def sizes(sentence: str) -> int:
        return len(sentence.split())

    plain = chunk_text(text, tokenizer, Chunking(chunk_length=24, overlap=False))
    assert [block.strip() for block in texts(plain)] == training_pro(text, sizes, 24)
    one = text.split("\n\n\n")[0]
    windows = chunk_text(one, tokenizer, Chunking(chunk_length=25, sliding_window=True))
    theirs = training_pro_windows(split_sentences(one, "en"), sizes, 24)  # theirs has no room for EOS
    assert [block.strip() for block in texts(windows)] == theirs


def test_the_last_overlapping_block_is_kept_though_it_is_not_full() -> None:
    """Training PRO drops it."""
    assert texts(sliced("A b. C d. E f. G h.", chunk_length=8))[1] == " C d. E f. G h."


@pytest.fixture(scope="module")
def prose(real_data: Callable[[str], Path]) -> dict[str, str]:
    turkish = real_data("tr/nutuk_vol1.txt").read_text(encoding="utf-8-sig")[:200_000]
    english = real_data("en/tinyshakespeare.txt").read_text(encoding="utf-8")[:200_000]
    return {"tr": turkish.replace(" \n", "\n"), "en": english.replace("\n\nFirst", "\n\n\nFirst")}


@pytest.fixture(scope="module")
def prose_tokenizer(prose: dict[str, str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        prose.values(), trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS, add_bos_token=True)


@pytest.mark.parametrize("language", ["tr", "en"])
@pytest.mark.parametrize("way", [{"overlap": False}, {"overlap": True}, {"sliding_window": True}], ids=str)
def test_blocks_of_real_text_are_its_letters_and_their_own_tokens(
    prose: dict[str, str], prose_tokenizer: PreTrainedTokenizerFast, language: str, way: dict[str, bool]
) -> None:
    settings = Chunking(chunk_length=128, language=language, **way)
    chunks = chunk_text(prose[language], prose_tokenizer, settings)
    encoded = prose_tokenizer([block.text for block in chunks.blocks], add_special_tokens=False)["input_ids"]
    place = 0
    for block, alone in zip(chunks.blocks, encoded, strict=True):
        assert len(block.ids) <= 128 and "\n\n\n" not in block.text
        inner = block.ids[1:-1].tolist()
        assert inner == alone and prose_tokenizer.decode(inner) == block.text
        place = prose[language].index(block.text, place)  # in the order of the text


@pytest.mark.parametrize("language", ["tr", "en"])
def test_every_letter_of_real_text_is_in_one_block_and_with_overlap_in_more(
    prose: dict[str, str], prose_tokenizer: PreTrainedTokenizerFast, language: str
) -> None:
    plain, more, windows = (
        texts(
            chunk_text(prose[language], prose_tokenizer, Chunking(chunk_length=128, language=language, **way))
        )
        for way in ({"overlap": False}, {"overlap": True}, {"sliding_window": True})
    )
    assert "".join("".join(plain).split()) == "".join(prose[language].split())
    following = iter(more)
    assert all(
        block in following for block in plain
    )  # the same blocks in the same order, with others between
    assert len(plain) * 1.3 < len(more) < len(plain) * 2 < len(windows) * 2
    assert windows[0] == plain[0] and prose[language].rstrip().endswith(windows[-1])


@pytest.mark.parametrize("language", ["tr", "en"])
def test_encoding_in_runs_gives_the_tokens_of_the_whole_text(
    prose: dict[str, str],
    prose_tokenizer: PreTrainedTokenizerFast,
    language: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = prose[language][:40_000]
    settings = Chunking(chunk_length=64, language=language)
    whole = chunk_text(text, prose_tokenizer, settings)
    monkeypatch.setattr(sentence_tokens, "_WINDOW_CHARACTERS", 300)
    monkeypatch.setattr(sentence_tokens, "_BATCH_CHARACTERS", 2000)
    in_runs = chunk_text(text, prose_tokenizer, settings)
    assert len(whole.blocks) > 150
    assert texts(in_runs) == texts(whole)
    for one, other in zip(in_runs.blocks, whole.blocks, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
    assert in_runs.notes() == whole.notes() and in_runs.longest_part == whole.longest_part


def test_a_token_that_stands_before_every_text_is_kept() -> None:
    """As in Llama 2's tokenizer."""
    backend = Tokenizer(models.WordLevel({"▁": 0, "A": 1, "▁b": 2}, "A"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("▁b|A|▁"), "isolated")
    (block,) = chunk_text("A b", PreTrainedTokenizerFast(tokenizer_object=backend), Chunking()).blocks
    assert block.ids.tolist() == [0, 1, 2] and block.text == "A b"


def test_sentences_that_share_a_token_are_not_cut_apart() -> None:
    """A tokenizer that joins a full stop with what follows."""
    pieces = ["A", " b", ". C", " d.", " E f."]
    backend = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, "A"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"A| b|\. C| d\.| E f\."), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    text = "A b. C d. E f."
    part = sentence_tokens.SegmentedText(text, sentence_tokens.sentence_spans(text, "en"))
    assert len(part.sentences) == 3
    (tokens,) = sentence_tokens.tokenize_texts([part], tokenizer)
    assert tokens.sentence_starts.tolist() == [0, 4] and tokens.sentence_stops.tolist() == [4, 5]
