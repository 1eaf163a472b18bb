"""What arms remember: trained on short texts of recall tasks, asked in longer ones.

    python bench/recall.py ARM … [--task passkey] [--steps 1500] [--seeds 1] [--quick]
    python bench/recall.py --report

A cell is one arm trained on one task from nothing, in a process of its own; its figures are written to bench/recall/
and are not made again. Rows grow from 512 to 4,096 tokens in four equal parts of the steps (`--seq-len-start`); in the
last of them they begin on the states of others (`--state-passing`), which an arm without a constant state does not do.
Of passkey and multikey a row that is learnt holds one text, two or four; where rows begin on the states of others, a
text begins in one row and ends in the next, and may have the length of two. Only answers are learnt and measured: the
share of answers of which every token is the likeliest, by the length of the text.

    passkey   five digits stand somewhere in the text behind a mark, and are asked for at its end
    multikey  four such, each behind a name of two tokens; one name is asked for
    mqar      pairs of a key and a value, then each key again (Arora et al. 2023, "Zoology"), a quarter of the length
    copying   a third of the text is random, and is written again

The text between is random tokens of a Zipf distribution. What a model of this size can learn of them says what its
memory can hold, not how well it writes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import protocol
from arms import ARMS, Size, config_of

FOLDER = Path(__file__).resolve().parent / "recall"
SIZE = Size(128, 4, 512)
TASKS = ("passkey", "multikey", "mqar", "copying")
SHORT, TRAINED = 512, 4096  # tokens of a row at the start and at the end
TOKENS = 8192  # of a step
# Where marks, digits, names and text begin in the vocabulary.
MARK, ASK, DIGITS, NAMES, TEXT = 0, 1, 2, 12, 64
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
SEGMENT = 4096
PASSING = 0.25


def make_rows(task: str, rows: int, length: int, generator: Any) -> tuple[Any, Any]:
    """Tokens (rows, length), and labels, which are −100 but for answers."""
    import torch

    def random(low: int, high: int, *shape: int) -> Any:
        return torch.randint(low, high, shape, generator=generator)

    frequencies = 1.0 / torch.arange(1, SIZE.vocabulary - TEXT + 1)
    drawn = torch.multinomial(frequencies, rows * length, replacement=True, generator=generator)
    ids = TEXT + drawn.view(rows, length)
    labels = torch.full_like(ids, -100)
    if task == "copying":
        third = (length - 1) // 3
        ids[:, -third:] = ids[:, :third]
        ids[:, -third - 1] = ASK
        labels[:, -third:] = ids[:, -third:]
    elif task == "mqar":
        pairs = max(2, min(64, length // 8))
        shuffled = [torch.randperm(SIZE.vocabulary - TEXT, generator=generator) for _ in range(rows)]
        keys = TEXT + torch.stack(shuffled)[:, :pairs]
        values = random(TEXT, SIZE.vocabulary, rows, pairs)
        ids[:, : 2 * pairs] = torch.stack([keys, values], dim=-1).flatten(1)
        order = torch.stack([torch.randperm(pairs, generator=generator) for _ in range(rows)])
        asked = torch.stack([keys.gather(1, order), values.gather(1, order)], dim=-1)
        ids[:, -2 * pairs :] = asked.flatten(1)
        labels[:, -2 * pairs + 1 :: 2] = asked[..., 1]
    else:
        count, name = (4, 2) if task == "multikey" else (1, 0)
        needle = 1 + name + 5
        for row in range(rows):
            places = torch.randperm((length - needle - 1) // needle, generator=generator)[:count] * needle
            names = random(NAMES, TEXT, count, name)
            digits = random(DIGITS, NAMES, count, 5)
            for place, own, secret in zip(places.tolist(), names, digits, strict=True):
                ids[row, place : place + needle] = torch.cat([torch.tensor([MARK]), own, secret])
            ids[row, -needle:] = torch.cat([torch.tensor([ASK]), names[0], digits[0]])
            labels[row, -5:] = digits[0]
    return ids, labels


def make_batch(task: str, length: int, passing: bool, generator: Any) -> dict[str, Any]:
    """Rows that are learnt: TOKENS tokens of texts of one length, in rows of `length`."""
    import torch

    from mm_rec.models.forward import PASS_STATES

    if task in ("mqar", "copying"):
        ids, labels = make_rows(task, TOKENS // length, length, generator)
    else:
        lengths = [length // 4, length // 2, length, *[2 * length] * passing]
        text = lengths[int(torch.randint(len(lengths), (1,), generator=generator))]
        ids, labels = make_rows(task, TOKENS // text, text, generator)
        if passing:  # a text begins in one row and ends in the next
            ids, labels = (x.flatten().roll(text // 2) for x in (ids, labels))
    batch = {"input_ids": ids.reshape(-1, length), "labels": labels.reshape(-1, length)}
    return {**batch, PASS_STATES: torch.tensor(True)} if passing else batch


def train_cell(arm: str, task: str, seed: int, steps: int) -> dict[str, Any]:
    """Train an arm on a task, and ask it in texts of every length."""
    import torch

    from mm_rec import cpu
    from mm_rec.models.forward import compile_layers
    from mm_rec.models.presets import build
    from mm_rec.training.curriculum import passes_states, row_length
    from mm_rec.training.objectives import next_token
    from mm_rec.training.optim import OptimizerSet
    from mm_rec.training.schedule import learning_rate
    from mm_rec.training.section import ResolvedTrainSection

    section = ResolvedTrainSection(
        steps=steps,
        seq_len=TRAINED,
        seq_len_start=SHORT,
        state_passing=PASSING,
        learning_rate=4e-3,
        optimizer="muon",
        warmup_steps=steps // 20,
        seed=seed,
    )
    model = build(config_of(arm, SIZE), seed=seed).train()
    constant_state = ARMS[arm].family == "mmrec"
    optimizer, objective = OptimizerSet(model, section), next_token(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    compile_layers(model)
    start = time.perf_counter()
    for step in range(steps):
        passing = constant_state and passes_states(section, step)
        batch = make_batch(task, row_length(section, step), passing, generator)
        found = objective(model, batch)["loss"]
        (found.total / found.count).backward()
        torch.nn.utils.clip_grad_norm_(optimizer.parameters, 1.0)
        optimizer.set_learning_rate(learning_rate(step, section))
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(
                f"{arm} {task} {step + 1}: {float(found.total / found.count):.4f}",
                file=sys.stderr,
                flush=True,
            )
    seconds = time.perf_counter() - start
    model.eval()
    longest = LENGTHS[-1] if constant_state else 8192  # its cache and its time grow
    shares = {n: share_right(model, task, n, constant_state) for n in LENGTHS if n <= longest}
    facts = {"processor": cpu.describe(), "isa": cpu.vector_isa(), "date": time.strftime("%Y-%m-%d")}
    return {"right": shares, "seconds": round(seconds), "parameters": model.num_parameters(), **facts}


def share_right(model: Any, task: str, length: int, constant_state: bool) -> float:
    """The share of answers that are right in every token, of 64 rows, or of as many as are asked in 500,000 tokens."""
    import torch

    from mm_rec.models.forward import hidden_states, lm_head_of, new_carried_state, read_segment

    generator = torch.Generator().manual_seed(1_000_003)
    rows = max(4, min(64, 500_000 // length))
    ids, labels = make_rows(task, rows, length, generator)
    right = []
    with torch.no_grad():
        for row_ids, row_labels in zip(ids.split(4), labels.split(4), strict=True):
            asked = row_labels[:, 1:] != -100
            first = int(asked.any(0).nonzero()[0])
            if constant_state:
                parts, state = [], new_carried_state(model, len(row_ids))
                for part in row_ids.split(SEGMENT, dim=1):
                    hidden, state = read_segment(model, {"input_ids": part}, state)
                    parts.append(hidden)
                hidden = torch.cat(parts, dim=1)
            else:
                hidden = hidden_states(model, {"input_ids": row_ids})
            chosen = lm_head_of(model).logits(hidden[:, first:-1]).argmax(-1)
            same = (chosen == row_labels[:, 1 + first :]) | ~asked[:, first:]
            right.append(same[asked[:, first:]] if task in ("mqar", "copying") else same.all(1))
    return round(float(torch.cat(right).float().mean()), 4)


def cell(arm: str, task: str, seed: int, steps: int) -> dict[str, Any]:
    """The figures of a cell."""

    def make() -> dict[str, Any]:
        commit = protocol.commit()
        found = protocol.run_child(__file__, ["--child", arm, task, str(seed), str(steps)], timeout=3600)
        return {"arm": arm, "task": task, "seed": seed, "steps": steps, "commit": commit, **found}

    return protocol.kept(FOLDER / f"{task}-{arm}-seed{seed}-{steps}.json", make)


def report() -> None:
    """A table in Markdown for each task: arms by lengths."""
    cells = [json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    for task in TASKS:
        rows = [one for one in cells if one["task"] == task]
        if rows:
            print(
                f"\n{task}\n\n| arm, seed | {' | '.join(f'{n:,}' for n in LENGTHS)} |\n|---|{'---|' * len(LENGTHS)}"
            )
        for one in rows:
            shown = (
                f"{100 * one['right'][str(n)]:.0f} %" if str(n) in one["right"] else "–" for n in LENGTHS
            )
            print(f"| {one['arm']}, {one['seed']} | {' | '.join(shown)} |")


def main() -> None:
    """Run cells, report them, or be one (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    options.add_argument("--task", choices=TASKS, action="append")
    options.add_argument("--steps", type=int, default=1500)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--report", action="store_true")
    options.add_argument("--child", nargs=4, metavar=("ARM", "TASK", "SEED", "STEPS"))
    chosen = options.parse_args()
    if chosen.child:
        arm, task, seed, steps = chosen.child
        os.nice(10)
        protocol.child_result(train_cell(arm, task, int(seed), int(steps)))
        return
    for task in chosen.task or TASKS:
        for arm in chosen.arms:
            for seed in range(1, chosen.seeds + 1):
                cell(arm, task, seed, 40 if chosen.quick else chosen.steps)
    if chosen.report or not chosen.arms:
        report()


if __name__ == "__main__":
    main()
