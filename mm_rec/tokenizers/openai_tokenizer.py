"""OpenAI's tokenizers by model name, exactly, and one of our own that needs no download.

`get_tokenizer("gpt-4")` gives tiktoken's ids as a transformers tokenizer, which can be saved with a model. Our chat
tokens have the ids above OpenAI's; where OpenAI left ids unused, "<|unused_…|>" fills them, so that
`len(tokenizer)` is the number of rows that an embedding needs.

Special tokens in a text are special tokens here, as in every transformers tokenizer, while tiktoken refuses such a
text. `tokenizer(text, split_special_tokens=True)` reads them as ordinary text, like tiktoken's `encode_ordinary`; it
leaves the backend in that state until the tokenizer is called without it. Nothing is put before a text, as in tiktoken.
"""

from __future__ import annotations

import difflib
import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mm_rec.errors import TokenizerError, needs_extra
from mm_rec.tokenizers.chat_template import prepare_for_chat
from mm_rec.tokenizers.special_tokens import ENDOFTEXT, SPECIAL_TOKENS

SIMPLE_NAMES = ("simple", "fallback")
SIMPLE_SIZE = 32_000

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZÇĞİÖŞÜabcdefghijklmnopqrstuvwxyzçğıöşü"
# Alphabets, Arabic, the scripts of India, symbols, kana; emoji; and Chinese characters as far as there is room.
_BLOCKS = (range(0x80, 0x3400), range(0x1F300, 0x1FB00), range(0x4E00, 0xA000))


def get_tokenizer(model_name: str = "gpt-4", fallback: bool = True) -> PreTrainedTokenizerFast:
    """Return the tokenizer of an OpenAI model, or `simple_tokenizer()` for "simple", ready for chat.

    tiktoken downloads the ranks once. Where they cannot be had, the result is `simple_tokenizer()` and a warning, or,
    with `fallback=False`, a TokenizerError; `name_or_path` says which it is: "cl100k_base", …, or "simple". Raises
    TokenizerError for an unknown name and MissingExtraError where tiktoken is not installed.
    """
    if model_name in SIMPLE_NAMES:
        return simple_tokenizer()
    name = _encoding_name(model_name)
    try:
        encoding = _load_encoding(name)
    except (OSError, ValueError) as error:  # no network or no room; a file that is not the one published
        problem = _download_error(model_name, name, error)
        if not fallback:
            raise TokenizerError(problem) from error
        warnings.warn(
            f"{problem}. Until then this is MM-Rec's simple tokenizer of {SIMPLE_SIZE:,} entries, "
            f"whose ids are not those of {model_name}",
            stacklevel=2,
        )
        return simple_tokenizer()
    return _to_transformers(
        convert_encoding(encoding["pat_str"], encoding["mergeable_ranks"], encoding["special_tokens"]), name
    )


def simple_tokenizer(vocab_size: int = SIMPLE_SIZE) -> PreTrainedTokenizerFast:
    """A tokenizer fixed by this code: nothing is downloaded or trained, and every string comes back from its ids.

    For first steps and for tests; one trained on your text makes a better model. Words of Turkish and English are
    cut into pairs of letters, other text into characters, and a character that is not among the `vocab_size`
    entries into its UTF-8 bytes, whose ids are 0 to 255. The special tokens are the last of the entries.
    """
    room = vocab_size - len(SPECIAL_TOKENS)
    everything = [bytes([byte]) for byte in range(256)] + [piece.encode() for piece in _simple_pieces()]
    if not 256 <= room <= len(everything):
        raise TokenizerError(
            f"the simple tokenizer has from {256 + len(SPECIAL_TOKENS)} to "
            f"{len(everything) + len(SPECIAL_TOKENS):,} entries, not {vocab_size:,}"
        )
    entries = [*map(_byte_level_string, everything[:room]), *SPECIAL_TOKENS]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    return _to_transformers(_byte_level(vocabulary, [], rf" ?[{_LETTERS}]{{1,2}}|[\s\S]"), "simple")


def convert_encoding(pattern: str, ranks: Mapping[bytes, int], special: Mapping[str, int]) -> Tokenizer:
    """Convert a tiktoken encoding to a tokenizer of the `tokenizers` library that gives the same ids for every text."""
    used = {*ranks.values(), *special.values()}
    unused = {f"<|unused_{index}|>": index for index in range(max(used)) if index not in used}
    added = {**special, **unused}
    vocabulary = {_byte_level_string(token): rank for token, rank in ranks.items()} | added
    # To Oniguruma "{1,3}+" means to repeat. Nothing follows it, so not to give back, as in tiktoken, changes nothing.
    pattern = pattern.replace("{1,3}+", "{1,3}")
    tokenizer = _byte_level(vocabulary, _merges(ranks), pattern)
    tokenizer.add_special_tokens(sorted(added, key=added.__getitem__))
    return tokenizer


def _encoding_name(model_name: str) -> str:
    """The name of a model's encoding; gpt2's ranks are those of r50k_base, which are one file instead of two."""
    with needs_extra("tiktoken", f"the tokenizer of {model_name}"):
        from tiktoken.model import MODEL_PREFIX_TO_ENCODING, MODEL_TO_ENCODING, encoding_name_for_model
    try:
        name = encoding_name_for_model(model_name)
    except KeyError:
        known = [*SIMPLE_NAMES, *MODEL_TO_ENCODING]
        near = difflib.get_close_matches(model_name, known, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else "."
        raise TokenizerError(
            f"no tokenizer is known for a model {model_name!r}{meant} Known are {', '.join(known)}, and names that "
            f"begin with {', '.join(MODEL_PREFIX_TO_ENCODING)}"
        ) from None
    return "r50k_base" if name == "gpt2" else name


def _load_encoding(name: str) -> dict[str, Any]:
    """Load an encoding's pattern, ranks and special tokens, from tiktoken's cache or by download."""
    with needs_extra("tiktoken", f"the encoding {name}"):
        from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

    encoding: dict[str, Any] = ENCODING_CONSTRUCTORS[name]()
    return encoding


def _download_error(model_name: str, encoding: str, error: Exception) -> str:
    return (
        f"the tokenizer of {model_name} needs the ranks of {encoding}, which could not be downloaded "
        f"({type(error).__name__}: {str(error)[:200]}). Try again with a network; for a machine without one, run this "
        "where there is one with the environment variable TIKTOKEN_CACHE_DIR set to a folder, copy that folder, "
        "and set the variable to it"
    )


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """Return the pair of pieces that each token is merged from, best rank first.

    tiktoken joins any two neighbours whose bytes are a token, lowest rank first. By the time that it makes a token,
    every better pair inside it has been joined, whatever stands around it; so it is always made of the same two.
    """
    found = [
        (rank, pair) for token, rank in ranks.items() if len(pair := _parts_before_merge(token, ranks)) == 2
    ]
    return [(_byte_level_string(left), _byte_level_string(right)) for _, (left, right) in sorted(found)]


def _parts_before_merge(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Return the parts of a token after every merge of a rank better than its own."""
    own = ranks[token]
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 1:
        joined = [ranks.get(left + right, own) for left, right in itertools.pairwise(parts)]
        best = min(joined)
        if best >= own:
            break
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _simple_pieces() -> Iterator[str]:
    """Yield letters alone and in pairs, with and without a space before, then characters by their code points."""
    for space, first, second in itertools.product(("", " "), _LETTERS, ("", *_LETTERS)):
        piece = space + first + second
        if len(piece.encode()) > 1:  # one byte: an entry already
            yield piece
    for code in itertools.chain(*_BLOCKS):
        if chr(code) not in _LETTERS:
            yield chr(code)


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]], pattern: str) -> Tokenizer:
    """Build byte-level BPE over the pieces that the pattern finds; a piece that is an entry itself is taken whole."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _to_transformers(tokenizer: Tokenizer, name: str) -> PreTrainedTokenizerFast:
    """Wrap the tokenizer for transformers, with a chat template and its special tokens."""
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=ENDOFTEXT,
        eos_token=ENDOFTEXT,
        clean_up_tokenization_spaces=False,
        name_or_path=name,
    )
    prepare_for_chat(result)
    return result


def _bytes_to_unicode() -> dict[int, str]:
    """Return GPT-2's letter for each byte (Radford et al. 2019): itself where visible, else one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return {byte: chr(byte if byte in visible else next(others)) for byte in range(256)}


_BYTE_TO_UNICODE = _bytes_to_unicode()


def _byte_level_string(token: bytes) -> str:
    """Return a token's bytes as byte-level tokenizers write them."""
    return token.decode("latin-1").translate(_BYTE_TO_UNICODE)
