"""Decoding on a GPU, on one that is not there: many sequences in one step, their states in place."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from fake_gpu import NAME, fake_gpu
from made_adapters import with_adapters
from small_models import BuildModel
from told import Told
from transformers import PreTrainedModel

from mm_rec.inference import batched_decoder
from mm_rec.inference.engine import Engine, Session
from mm_rec.inference.sampler import SamplingParams
from mm_rec.inference.scheduler import Scheduler
from mm_rec.models import state_pools

PROMPTS = [[5, 9, 3], [7], [1, 2, 3, 4, 5, 6, 7, 8], [11, 12], [20, 21, 22, 23, 24]]


@pytest.fixture(autouse=True)
def small_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that rows and places have to be added."""
    monkeypatch.setattr(batched_decoder, "_FIRST_ROWS", 2)
    monkeypatch.setattr(state_pools, "_FIRST_PLACES", 8)
    monkeypatch.setattr(state_pools.KVPool, "_places", 8)


def read(sessions: list[Session], token: int) -> None:
    for session in sessions:
        session.append([token])
    sessions[0].engine.forward(sessions)


def alone(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()


def same(session: Session, expected: torch.Tensor) -> None:
    assert session.logits is not None
    torch.testing.assert_close(session.logits, expected, rtol=1e-4, atol=1e-5)


def test_many_write_what_each_writes_alone(model: PreTrainedModel) -> None:
    expected = Engine(model).generate_greedy(PROMPTS, 12, stop_ids={77, 78})
    with fake_gpu() as record:
        engine = Engine(model, NAME)
        assert not engine.fallback_reason
        assert engine.generate_greedy(PROMPTS, 12, stop_ids={77, 78}) == expected
    assert record.launches["graph"]


def test_a_step_is_one_graph_and_one_wait_however_many_it_reads(model: PreTrainedModel) -> None:
    with fake_gpu() as record:
        engine = Engine(model, NAME)
        sessions = [engine.session() for _ in range(8)]
        read(sessions, 4)  # records the step of eight
        read(sessions, 5)
        record.launches.clear()
        record.synchronisations.clear()
        read(sessions, 6)
        # What it reads is copied there, that it reads is one launch, the logits are copied back.
        assert record.launches == {"copy_": 1, "graph": 1, "_to_copy": 1}
        assert len(record.synchronisations) == 1


def test_sequences_come_go_fork_and_are_read_by_the_model_between(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    chance, texts = random.Random(0), {}
    with fake_gpu(), torch.no_grad():
        engine = Engine(model, NAME)
        going: list[Session] = []
        for number in range(40):
            if len(going) < 2 or chance.random() < 0.3:
                going.append(engine.session())
                texts[id(going[-1])] = []
            if chance.random() < 0.3:
                forked = chance.choice(going)
                going.append(forked.fork())
                texts[id(going[-1])] = list(texts[id(forked)])
            if len(going) > 5 or chance.random() < 0.1:
                going.remove(chance.choice(going))
            chosen = chance.sample(going, chance.randint(1, len(going)))
            for session in chosen:
                ids = [chance.randrange(400) for _ in range(chance.choice((1, 1, 1, 5)))]
                session.append(ids)
                texts[id(session)] += ids
            engine.forward(chosen)
            if number % 10 == 9:
                path = tmp_path / "saved"
                chosen[0].save(path, {})
                going.append(engine.load_session(path, {}))
                texts[id(going[-1])] = list(texts[id(chosen[0])])
        results = [(texts[id(one)], one.next_logits()) for one in going if texts[id(one)]]
    model.to("cpu")
    with torch.no_grad():
        for ids, logits in results:
            torch.testing.assert_close(logits, alone(model, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mmrec", "llama"])
def test_each_sequence_has_its_own_adapters(build_model: BuildModel, family: str, tmp_path: Path) -> None:
    model = build_model(family)
    adapters = with_adapters(model, tmp_path)
    choices: list[dict[str, float]] = [{}, {"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": -2.0}]
    ids = [3, 1, 4, 1, 5]
    with fake_gpu():
        engine = Engine(model, NAME)
        assert not engine.fallback_reason
        sessions = [engine.session(choice) for choice in choices]
        for token in ids:
            read(sessions, token)
    model.to("cpu")
    with torch.no_grad():
        for session, choice in zip(sessions, choices, strict=True):
            adapters.apply(choice)
            same(session, alone(model, ids))


def test_what_it_does_not_know_is_read_one_by_one(tmp_path: Path) -> None:
    from mm_rec.models.presets import build, preset

    model = build(preset("hybrid_tiny").config(400), seed=0).eval()
    sampling = SamplingParams(temperature=0, max_new_tokens=5)

    def write(engine: Engine) -> list[int]:
        session = engine.session()
        session.prefill([1, 2, 3])
        return list(session.generate(sampling))

    expected = write(Engine(model))
    with fake_gpu():
        engine = Engine(model, NAME)
        assert "hybrid" in engine.fallback_reason
        assert write(engine) == expected


def test_a_servers_thread_writes_for_many_what_each_writes_alone(model: PreTrainedModel) -> None:
    sampling = [SamplingParams(temperature=0.9 * (n % 2), seed=n, max_new_tokens=3 + n) for n in range(10)]
    prompts = [[(7 * n + k) % 400 for k in range(1 + 9 * n)] for n in range(10)]

    def alone(engine: Engine, number: int) -> list[int]:
        session = engine.session()
        session.prefill(prompts[number])
        return list(session.generate(sampling[number]))

    cpu = Engine(model)
    expected = [alone(cpu, number) for number in range(10)]
    with fake_gpu() as record:
        engine, scheduler = Engine(model, NAME), Scheduler(max_running=8)
        told = [Told(engine, prompts[n], sampling[n], frozenset()) for n in range(10)]
        for one in told:
            one.submit(scheduler)
        assert [one.wait() for one in told] == expected
        assert record.launches["graph"] < sum(map(len, expected)) / 2  # several at a step
        assert not engine._decoder._pool._residents()  # nobody's state lies where the next ones write
        scheduler.close()
