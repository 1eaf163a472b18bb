"""The fixtures of these tests: a small tokenizer and small random models."""

from small_models import build_model, model, tokenizer, tokenizer_folder  # noqa: F401
