"""The small tokenizer."""

from small_models import tokenizer_folder  # noqa: F401
