"""The small tokenizer."""

from small_models import tokenizer, tokenizer_folder  # noqa: F401
