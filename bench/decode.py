"""Decoding speed, one stream: our engine against transformers.generate and llama.cpp, the same weights in each.

    python bench/decode.py [--quick] [--shape 25m] [--rounds 5] [--peer transformers]

A LLaMA with random weights (25m: width 512, 8 layers; 134m: the preset turkish_134m), or, against transformers and
ours alone, a Mistral (mistral_window: as 25m, with a window of 64 tokens) or a Gemma 3 (gemma: as 25m, but for 4 heads
of 256 in 6 layers, of which five see 64 tokens), reads 128 tokens and then writes 128, greedily, batch 1.
tokens/s is of the 128 new tokens, the prompt's reading left out; each contender runs in a process of its own, once to
warm up and then three times, of which the median counts. Comparisons:

    ours            bfloat16 and int8 of ours against float32 of ours
    transformers    float32 and bfloat16 on both sides; int8 weights of ours against bfloat16, reported apart
    llama.cpp       bfloat16 of ours against F16, int8 against Q8_0 (a scale for every 64 weights here, for 32 there)

Needs `pip install xllamacpp gguf` for llama.cpp; without them only transformers is compared.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import protocol

SHAPES = ("25m", "134m", "mistral_window", "gemma")
NOT_LLAMA = ("mistral_window", "gemma")  # no GGUF is written of them
PROMPT, NEW, RUNS = 128, 128, 3


def model_config(shape: str) -> Any:
    from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig

    from mm_rec.models.presets import preset

    if shape == "134m":
        return preset("turkish_134m").config(32_000)
    sizes: dict[str, Any] = {
        "vocab_size": 4_000, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 8, "intermediate_size": 1408, "tie_word_embeddings": True, "bos_token_id": None,
        "eos_token_id": None, "max_position_embeddings": 1024,
    }  # fmt: skip
    if shape == "gemma":
        heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "num_hidden_layers": 6}
        return Gemma3TextConfig(**{**sizes, **heads}, sliding_window=64)
    return MistralConfig(**sizes, sliding_window=64) if shape == "mistral_window" else LlamaConfig(**sizes)


def prompt_ids(vocabulary: int) -> list[int]:
    return [(7919 * place + 11) % (vocabulary - 10) + 5 for place in range(PROMPT)]


def ours(folder: Path, form: str) -> tuple[float, list[int]]:
    """Tokens a second of our engine in float32, bfloat16 or int8 (bytes beside bfloat16), and what it wrote."""
    import torch

    from mm_rec.inference.engine import Engine
    from mm_rec.inference.sampler import SamplingParams
    from mm_rec.models.loading import load_model

    dtype = torch.float32 if form == "float32" else torch.bfloat16
    engine = Engine(load_model(folder, dtype), int8=form == "int8")
    if engine.fallback_reason:
        raise SystemExit(f"the kernels are not used: {engine.fallback_reason}")
    sampling, rates, written = SamplingParams(temperature=0, max_new_tokens=NEW), [], []
    for _ in range(RUNS + 1):
        session = engine.session()
        session.prefill(prompt_ids(engine.model.config.vocab_size))
        start = time.perf_counter()
        written = list(session.generate(sampling))
        rates.append(NEW / (time.perf_counter() - start))
    return statistics.median(rates[1:]), written


def transformers(folder: Path, form: str) -> tuple[float, list[int]]:
    """Tokens a second of generate, the time of the prompt (and its first token) taken off."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, form)).eval()
    ids = torch.tensor([prompt_ids(model.config.vocab_size)])

    def seconds(count: int) -> tuple[float, list[int]]:
        start = time.perf_counter()
        out = model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        return time.perf_counter() - start, out[0, PROMPT:].tolist()

    rates, written = [], []
    for _ in range(RUNS + 1):
        first, (whole, written) = seconds(1)[0], seconds(NEW)
        rates.append((NEW - 1) / (whole - first))
    return statistics.median(rates[1:]), written


def llama_cpp(folder: Path, form: str) -> tuple[float, list[int]]:
    """Tokens a second of llama.cpp, as it reports them itself."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(folder / f"{form}.gguf")
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 512, 1, True
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 2
    server = xllamacpp.Server(parameters)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    rates, written = [], []
    for _ in range(RUNS + 1):
        answer = server.handle_completions(
            {"prompt": prompt_ids(vocabulary), "n_predict": NEW, "temperature": 0.0, "ignore_eos": True,
             "cache_prompt": False, "return_tokens": True}
        )  # fmt: skip
        rates.append(answer["timings"]["predicted_per_second"])
        written = answer.get("tokens", [])
    return statistics.median(rates[1:]), written


def write_gguf(folder: Path, form: str) -> None:
    """The model of a folder as GGUF, F16 or Q8_0, with a vocabulary of numbered pieces."""
    import gguf
    import numpy as np
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    writer = gguf.GGUFWriter(folder / f"{form}.gguf", "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list(
        ["<unk>", "<s>", "</s>"] + [f"<{number}>" for number in range(config["vocab_size"] - 3)]
    )
    writer.add_token_scores([0.0] * config["vocab_size"])
    writer.add_token_types(
        [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
        + [gguf.TokenType.NORMAL] * (config["vocab_size"] - 3)
    )
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if form == "F16" else gguf.LlamaFileType.MOSTLY_Q8_0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.float().numpy()
        for kind, count in (("q_proj", heads), ("k_proj", config["num_key_value_heads"])):
            if kind in name:  # llama.cpp turns neighbours where transformers turns halves
                size = values.shape[1]
                values = values.reshape(count, 2, -1, size).swapaxes(1, 2).reshape(-1, size)
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target is not None, name
        if values.ndim == 1:
            writer.add_tensor(target, values)
        elif form == "F16":
            writer.add_tensor(target, values.astype(np.float16))
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(folder: Path, shape: str) -> None:
    """Write the model that all contenders read, with random weights."""
    import torch

    from mm_rec.models.presets import build

    build(model_config(shape), seed=0).to(torch.bfloat16).save_pretrained(folder)
    for form in ("F16", "Q8_0") if importlib.util.find_spec("gguf") and shape not in NOT_LLAMA else ():
        write_gguf(folder, form)


def child(contender: str, folder: Path, form: str) -> None:
    """Run one contender in this process and hand over its figures, or make the model."""
    if contender == "make":
        make(folder, form)
        protocol.child_result({})
        return
    run = {"mm-rec": ours, "ours": ours, "transformers": transformers, "llama.cpp": llama_cpp}[contender]
    rate, written = run(folder, form)
    protocol.child_result(
        {"tokens_per_second": round(rate, 1), "peak_mb": round(protocol.peak_mb()), "written": written[:16]}
    )


def main() -> None:
    """Compare, or be a contender (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("--shape", choices=SHAPES, action="append")
    options.add_argument("--peer", choices=("ours", "transformers", "llama.cpp"), action="append")
    options.add_argument("--child", nargs=3, metavar=("CONTENDER", "FOLDER", "FORM"))
    chosen = options.parse_args()
    if chosen.child:
        contender, folder, form = chosen.child
        child(contender, Path(folder), form)
        return
    peers = chosen.peer or ["ours", "transformers", "llama.cpp"]
    if "llama.cpp" in peers and not all(importlib.util.find_spec(name) for name in ("xllamacpp", "gguf")):
        print("llama.cpp is left out: pip install xllamacpp gguf", file=sys.stderr)
        peers.remove("llama.cpp")
    pairs = [("ours", form, "float32") for form in ("bfloat16", "int8")]
    pairs += [("transformers", form, form) for form in ("float32", "bfloat16")]
    pairs += [("transformers", "int8", "bfloat16")]
    pairs += [("llama.cpp", "bfloat16", "F16"), ("llama.cpp", "int8", "Q8_0")]
    with tempfile.TemporaryDirectory() as scratch:
        for shape in chosen.shape or (["25m"] if chosen.quick else SHAPES):
            folder = Path(scratch) / shape
            # In a process of its own: a child's peak memory counts from that of the process that starts it.
            protocol.run_child(__file__, ["--child", "make", str(folder), shape], timeout=300)
            for peer, our_form, peer_form in pairs:
                if peer not in peers or (chosen.quick and our_form != "bfloat16"):
                    continue
                if peer == "llama.cpp" and shape in NOT_LLAMA:
                    continue

                def contender(name: str, form: str, folder: Path = folder) -> Any:
                    return lambda: protocol.run_child(
                        __file__, ["--child", name, str(folder), form], timeout=900
                    )

                facts = {"shape": shape, "ours": our_form, "theirs": peer_form, "prompt": PROMPT, "new": NEW}
                protocol.compare(
                    "decode", contender("mm-rec", our_form), {peer: contender(peer, peer_form)},
                    1 if chosen.quick else chosen.rounds, "tokens_per_second", facts,
                )  # fmt: skip


if __name__ == "__main__":
    main()
