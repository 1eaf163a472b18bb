"""`mmrec generate`: continue prompts."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

from mm_rec.cli.sampling_options import (
    Adapter,
    Device,
    MaxNewTokens,
    MinP,
    ModelPath,
    Precision,
    PrecisionChoice,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    read_sampling,
    show_notice,
    warn_prompt_format,
)
from mm_rec.terminal import write_raw


def generate(
    model: ModelPath,
    prompt: Annotated[list[str], typer.Option(help="Text to continue (may be given several times).")],
    count: Annotated[int, typer.Option(min=1, help="Continuations of each prompt.")] = 1,
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = None,
    adapter: Adapter = None,
    device: Device = "auto",
    precision: Precision = PrecisionChoice.AUTO,
) -> None:
    """Continue prompts with a model, as they come; a prompt is read once, however many continuations it gets."""
    sampling = read_sampling(
        "mmrec generate",
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        seed=seed,
    )
    from mm_rec.errors import ConfigError
    from mm_rec.inference.generate import encode_prompt, generate_text
    from mm_rec.inference.manager import open_model
    from mm_rec.tokenizers.loading import count_special_tokens, describe_special_tokens

    console, notes = Console(soft_wrap=True, highlight=False, markup=False), Console(stderr=True)
    loaded = open_model(model, adapter or [], device, precision.value)
    show_notice(loaded.notice, notes)
    tokenizer = loaded.tokenizer
    tokens, started = 0, time.perf_counter()
    for text in prompt:
        warn_prompt_format(adapter or [], text, notes)
        for line in describe_special_tokens(count_special_tokens(tokenizer, [text])):
            notes.print(f"note: {line}", style="dim", markup=False, soft_wrap=True)
        ids = encode_prompt(tokenizer, text)
        if not ids:
            raise ConfigError(
                "there is nothing to go on with: the prompt is empty, and this model's tokenizer puts no token "
                "before a text. Write a prompt"
            )
        session = loaded.engine.session()
        session.prefill(ids)
        for number in range(count):
            branch = session.fork()
            write_raw(console, text, "bold")
            own_seed = None if seed is None else seed + number
            for piece in generate_text(branch, tokenizer, sampling.replace(seed=own_seed)):
                write_raw(console, piece)
            console.print("\n")
            tokens += branch.length - session.length
    seconds = time.perf_counter() - started
    notes.print(f"{tokens:,} tokens in {seconds:.1f} s ({tokens / seconds:,.0f} a second)", style="dim")
