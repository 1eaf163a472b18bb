"""What the benchmarks of the server share: `mmrec serve` as a process, the models that it serves, and its clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

FAMILIES = ("mmrec", "llama")
VOCABULARY, CONTEXT = 4_000, 4_096
SHAPES = {"25m": (512, 8, 1408), "small": (64, 2, 96)}  # width, layers, intermediate size of the LLaMA
_COMMAND = "from mm_rec.cli.main import main; main()"


def make_model(folder: Path, family: str, shape: str) -> None:
    """Write a model with random weights and a tokenizer that needs no text.

    The row of its end token is zero: it is never the likeliest, so that every greedy answer has the length asked for.
    """
    import torch
    from transformers import LlamaConfig

    from mm_rec.models.loading import save_model
    from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig
    from mm_rec.models.presets import build
    from mm_rec.tokenizers.openai_tokenizer import simple_tokenizer

    width, layers, intermediate = SHAPES[shape]
    tokenizer = simple_tokenizer(VOCABULARY)
    values: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_size": width, "num_hidden_layers": layers}
    # Not tied: a random tied model only says its last token again.
    values |= {"tie_word_embeddings": False, "initializer_range": 0.05}
    if family == "mmrec":
        config: Any = MMRecConfig(**values)
    else:
        config = LlamaConfig(
            **values, num_attention_heads=width // 64, intermediate_size=intermediate,
            bos_token_id=None, eos_token_id=None, max_position_embeddings=CONTEXT,
        )  # fmt: skip
    model = build(config, seed=0)
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.eos_token_id] = 0
    save_model(model, tokenizer, folder)


class Server:
    """`mmrec serve` in a process of its own at a free port; what it says goes to a file."""

    def __init__(self, models: Sequence[Path], scratch: Path, *options: str) -> None:
        scratch.mkdir(parents=True)
        self.log = scratch / "log"
        places = [
            "--port",
            "0",
            "--store",
            f"sqlite:///{scratch}/store.db",
            "--sessions",
            f"{scratch}/sessions",
        ]
        command = [sys.executable, "-c", _COMMAND, "serve", *map(str, models), *places, *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.url = self._address()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def rss_mb(self) -> float:
        """Resident memory now, MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def figure(self, name: str) -> float:
        """The sum of one of the figures of /metrics over all models."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))

    def _address(self) -> str:
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            said = self.log.read_text()
            if "Ctrl-C" in said:
                return said.partition("API")[2].split()[0].removesuffix("/v1")
            time.sleep(0.1)
        self.__exit__()
        raise SystemExit(f"the server did not start:\n{self.log.read_text()[-3000:]}")


@dataclass
class Streamed:
    """A streamed answer: when it was asked for, when parts of it came (seconds), and what they were."""

    asked: float
    came: list[float] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)

    @property
    def first(self) -> float:
        """Seconds to the first part."""
        return self.came[0] - self.asked

    @property
    def end(self) -> float:
        """When the last part came."""
        return self.came[-1]

    def events(self) -> Iterator[dict[str, Any]]:
        """The events, without the last, which is no JSON."""
        return events_of(b"".join(self.parts))


def events_of(body: bytes) -> Iterator[dict[str, Any]]:
    """The events of a stream, of which the last may have been cut off."""
    for block in body.split(b"\n\n")[:-1]:
        data = block[block.index(b"data: ") + 6 :]
        if data != b"[DONE]":
            yield json.loads(data)


async def stream(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], mark: bytes = b"data:"
) -> Streamed:
    """Ask for a streamed answer; parts before the first that holds `mark` are not counted as such."""
    answer = Streamed(time.perf_counter())
    async with client.stream("POST", path, json={**body, "stream": True}) as response:
        if response.status_code != 200:
            raise SystemExit(f"{path}: {response.status_code} {(await response.aread()).decode()[:500]}")
        async for part in response.aiter_raw():
            if answer.came or mark in part:
                answer.came.append(time.perf_counter())
            answer.parts.append(part)
    return answer


def client(server: Server, **options: Any) -> httpx.AsyncClient:
    """A client of the server, without limits of its own."""
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits, trust_env=False, **options)


def facts() -> dict[str, Any]:
    """What every row of results says."""
    return {"bench": "serve", "threads": os.cpu_count()}
