"""The engine: what is decoded from a carried state is what re-reading everything gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.errors import CheckpointError, ConfigError, UserError
from mm_rec.inference import engine as engine_module
from mm_rec.inference.engine import MAX_KERNEL_TOKENS, Engine, Generation, Session
from mm_rec.inference.sampler import SamplingParams

GREEDY = SamplingParams(temperature=0, max_new_tokens=24)
PROMPT = [7, 30, 121, 45, 9, 300, 12, 12, 8, 77, 201]


@torch.inference_mode()
def uncached(model: PreTrainedModel, ids: list[int], count: int) -> list[int]:
    """The likeliest continuation, everything read anew for each token."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[-count:]


def assert_equal_logits(ours: Tensor, theirs: Tensor, model: PreTrainedModel) -> None:
    """To the last digits of the numbers that the model computes with."""
    rounding = {} if model.dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(ours, theirs, **rounding)


def fed(engine: Engine, ids: list[int]) -> Session:
    session = engine.session()
    session.prefill(ids)
    return session


def test_cached_tokens_are_the_uncached(model: PreTrainedModel) -> None:
    assert list(fed(Engine(model), PROMPT).generate(GREEDY)) == uncached(model, PROMPT, 24)


def test_segments_of_a_prompt_change_nothing(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model)
    whole = fed(engine, PROMPT * 4).next_logits()
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK_TOKENS", 5)
    assert_equal_logits(fed(engine, PROMPT * 4).next_logits(), whole, model)
    session = engine.session()
    for token in PROMPT * 4:
        session.prefill([token])
    assert_equal_logits(session.next_logits(), whole, model)


def test_state_kept_between_turns_is_re_reading_everything(model: PreTrainedModel) -> None:
    engine = Engine(model)
    session, said = engine.session(), []
    for turn in range(3):
        new = [token + turn for token in PROMPT]
        session.prefill(new)
        said += new
        reply = list(session.generate(GREEDY))
        assert reply == list(fed(engine, said).generate(GREEDY))
        said += reply
    assert session.length == len(said)
    assert_equal_logits(session.next_logits(), fed(engine, said).next_logits(), model)


def test_forks_do_not_touch_each_other(model: PreTrainedModel) -> None:
    session = fed(Engine(model), PROMPT)
    expected = list(session.fork().generate(GREEDY))
    other = session.fork()
    other.prefill([1, 2, 3])
    list(other.generate(GREEDY))
    assert session.length == len(PROMPT)
    assert list(session.generate(GREEDY)) == expected
    assert other.length == len(PROMPT) + 3 + 24


def test_a_saved_session_goes_on_as_if_it_had_not_been(model: PreTrainedModel, tmp_path: Path) -> None:
    engine, path = Engine(model), tmp_path / "session.safetensors"
    session = fed(engine, PROMPT * 30)
    list(session.generate(GREEDY.replace(max_new_tokens=4)))
    session.save(path, {"model": "m", "template": "t"})
    loaded = Engine(model).load_session(path, {"model": "m", "template": "t"})
    assert (loaded.length, loaded.pending_ids, loaded.recent) == (
        session.length,
        session.pending_ids,
        session.recent,
    )
    assert loaded.length == 30 * len(PROMPT) + 4
    assert torch.equal(loaded.next_logits(), session.next_logits())
    assert list(loaded.generate(GREEDY)) == list(session.generate(GREEDY))
    with pytest.raises(CheckpointError, match=r"another template \(t, not other\)"):
        engine.load_session(path, {"model": "m", "template": "other"})


def test_a_file_of_mmrec_has_one_size(build_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    engine = Engine(build_model("mmrec"))
    sizes = []
    for times in (30, 600):
        fed(engine, PROMPT * times).save(tmp_path / "s", {})
        sizes.append((tmp_path / "s").stat().st_size)
    assert abs(sizes[0] - sizes[1]) < 16  # a digit more of the length


@pytest.mark.parametrize("ids", [[5, -1], [400], [2**40, 3]])
def test_ids_that_are_no_tokens_are_refused(model: PreTrainedModel, ids: list[int]) -> None:
    session = fed(Engine(model), PROMPT)
    with pytest.raises(ConfigError, match="this model's go from 0 to 399"):
        session.prefill(ids)
    assert (session.length, session.pending_ids) == (len(PROMPT), [])


def test_a_stop_token_is_neither_yielded_nor_read(model: PreTrainedModel) -> None:
    engine = Engine(model)
    tokens = uncached(model, PROMPT, 24)
    stop = tokens[5]
    place = tokens.index(stop)
    session = fed(engine, PROMPT)
    assert list(session.generate(GREEDY, {stop})) == tokens[:place]
    assert session.ended
    assert session.length == len(PROMPT) + place
    session.prefill([3])
    expected = fed(engine, [*PROMPT, *tokens[:place], 3]).next_logits()
    assert_equal_logits(session.next_logits(), expected, model)


def test_a_reply_broken_off_keeps_what_was_yielded(model: PreTrainedModel) -> None:
    engine = Engine(model)
    session, taken = fed(engine, PROMPT), []
    for token in session.generate(GREEDY):
        taken.append(token)
        if len(taken) == 3:
            break
    assert not session.ended
    assert session.length == len(PROMPT) + 3
    assert_equal_logits(session.next_logits(), fed(engine, PROMPT + taken).next_logits(), model)


def test_the_last_token_is_read_only_when_something_follows(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, calls = Engine(model), []
    model.register_forward_hook(lambda *_: calls.append(1))
    if engine._decoder is not None:
        by_kernels = engine._decoder.forward
        monkeypatch.setattr(engine._decoder, "forward", lambda *args: (calls.append(1), by_kernels(*args))[1])
    session = fed(engine, PROMPT)
    list(session.generate(GREEDY.replace(max_new_tokens=3)))
    assert len(calls) == 3
    session.prefill([5])
    assert len(calls) == 4


class Evens:
    """Allows even tokens; ends after five of them, and may end after three."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.left: list[int] = []

    @property
    def is_stopped(self) -> bool:
        return len(self.taken) == 5

    @property
    def is_accepting(self) -> bool:
        return len(self.taken) >= 3

    def sample(self, logits: Tensor, left: int, draw: Callable[[Tensor], int]) -> int:
        self.left.append(left)
        return draw(logits.masked_fill(torch.arange(400) % 2 == 1, -torch.inf))

    def accept_token(self, token: int) -> None:
        self.taken.append(token)


def test_a_constraint_is_kept_and_ends_the_continuation(model: PreTrainedModel) -> None:
    session, constraint = fed(Engine(model), PROMPT), Evens()
    hot = SamplingParams(temperature=3.0, top_p=1.0, seed=1, max_new_tokens=50)
    generation, tokens = Generation(session, hot, constraint=constraint), []
    while not generation.finish_reason:
        chosen = generation.step()
        tokens += [] if chosen is None else [chosen.token]
    assert tokens == constraint.taken and len(tokens) == 5
    assert not any(token % 2 for token in tokens)
    assert generation.finish_reason == "stop" and session.ended
    assert constraint.left == [50, 49, 48, 47, 46]


@pytest.mark.parametrize(("tokens", "finish_reason"), [(2, "length"), (3, "stop"), (4, "stop")])
def test_a_constraint_says_whether_the_last_token_ends_it(
    build_model: Callable[..., PreTrainedModel], tokens: int, finish_reason: str
) -> None:
    session = fed(Engine(build_model("mmrec")), PROMPT)
    generation = Generation(session, GREEDY.replace(max_new_tokens=tokens), constraint=Evens())
    while not generation.finish_reason:
        generation.step()
    assert generation.finish_reason == finish_reason


def test_a_text_is_scored_as_one_forward_pass_scores_it(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK_TOKENS", 7)
    engine, ids = Engine(model), PROMPT * 3
    session, scored = engine.session(), []
    session.append(ids)
    while session.pending_ids:
        scored += engine.score_chunk(session, top_logprobs=2)
    expected = model(input_ids=torch.tensor([ids])).logits[0].detach().double().log_softmax(-1)
    assert scored[0] is None and len(scored) == len(ids)
    for place, one in enumerate(scored[1:], start=1):
        assert one is not None and one.token == ids[place]
        assert one.logprob == pytest.approx(float(expected[place - 1, ids[place]]), rel=1e-4)
        assert [token for token, _ in one.top_logprobs] == expected[place - 1].topk(2).indices.tolist()
    following = fed(engine, ids)
    torch.testing.assert_close(session.next_logits(), following.next_logits(), rtol=1e-4, atol=1e-4)


def test_hidden_states_are_summed_over_segments(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK_TOKENS", 7)
    engine, ids = Engine(model), PROMPT * 3
    session, total = engine.session(), torch.zeros(())
    session.append(ids)
    while session.pending_ids:
        total = total + engine.embed_chunk(session)
    whole = model.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state[0].detach()
    torch.testing.assert_close(total, whole.float().sum(0), rtol=1e-4, atol=1e-4)


def test_probabilities_are_the_models_own(model: PreTrainedModel) -> None:
    session = fed(Engine(model), PROMPT)
    expected = session.next_logits().log_softmax(0)
    bent = SamplingParams(temperature=0, logit_bias={9: 100.0}, max_new_tokens=1)
    chosen = Generation(session, bent, constraint=None, logprobs=3).step()
    assert chosen is not None and chosen.token == 9
    assert chosen.logprob == pytest.approx(float(expected[9]))
    best = expected.topk(3)
    assert [token for token, _ in chosen.top_logprobs] == best.indices.tolist()
    assert [value for _, value in chosen.top_logprobs] == pytest.approx(best.values.tolist())
    plain = Generation(session, bent.replace(max_new_tokens=2)).step()
    assert plain is not None and (plain.logprob, plain.top_logprobs) == (None, ())


def test_sampling_repeats_with_its_seed(model: PreTrainedModel) -> None:
    engine, sampling = Engine(model), SamplingParams(temperature=1.5, seed=11, max_new_tokens=20)
    first, again, other = (
        list(fed(engine, PROMPT).generate(sampling.replace(seed=seed))) for seed in (11, 11, 12)
    )
    assert first == again != other


def test_a_penalty_knows_the_prompt_and_the_reply(model: PreTrainedModel) -> None:
    strong = GREEDY.replace(repetition_penalty=100.0, max_new_tokens=40)
    reply = list(fed(Engine(model), PROMPT).generate(strong))
    assert len(set(reply)) == len(reply)
    assert not set(reply) & set(PROMPT)


def test_context_limit_is_kept(build_model: Callable[..., PreTrainedModel]) -> None:
    engine = Engine(build_model("llama", context_limit=20))
    session = engine.session()
    with pytest.raises(UserError, match=r"at most 20 tokens, and 21"):
        session.prefill([5] * 21)
    assert session.length == 0
    session.prefill(PROMPT)
    assert len(list(session.generate(GREEDY))) == 20 - len(PROMPT)
    assert not session.ended
    with pytest.raises(UserError, match="start anew"):
        next(session.generate(GREEDY))
    with pytest.raises(UserError):
        session.prefill([1])
    with pytest.raises(UserError):
        engine.generate_greedy([PROMPT], 10, {1})


def test_mmrec_has_no_limit_and_a_constant_state(build_model: Callable[..., PreTrainedModel]) -> None:
    engine = Engine(build_model("mmrec"))
    assert engine.context_limit is None
    session = fed(engine, PROMPT)
    before = session.state.nbytes
    session.prefill(PROMPT * 100)
    assert session.state.nbytes == before


def test_nothing_read_yet(model: PreTrainedModel) -> None:
    session = Engine(model).session()
    session.prefill([])
    with pytest.raises(ValueError, match="nothing has been read"):
        next(session.generate(GREEDY))


def test_together_is_one_by_one(model: PreTrainedModel) -> None:
    engine = Engine(model)
    prompts = [PROMPT, PROMPT[:3], [4], PROMPT * 2, PROMPT[2:9]]
    alone = [list(fed(engine, prompt).generate(GREEDY)) for prompt in prompts]
    assert engine.generate_greedy(prompts, 24, {VOCABULARY_END}) == alone
    stop = alone[0][7]
    expected = [list(fed(engine, prompt).generate(GREEDY, {stop})) for prompt in prompts]
    assert engine.generate_greedy(prompts, 24, {stop}) == expected


VOCABULARY_END = 10**6  # no token has this id


def test_another_default_dtype_changes_nothing(model: PreTrainedModel) -> None:
    """transformers sets it, for all threads, while it makes a model of another precision."""
    engine, prompt = Engine(model), PROMPT * (MAX_KERNEL_TOKENS // len(PROMPT) + 1)
    sampling = SamplingParams(
        temperature=0.9, seed=5, max_new_tokens=20, repetition_penalty=1.3, frequency_penalty=0.3,
        logit_bias={7: 0.123},
    )  # fmt: skip

    def generate() -> tuple[list[int], torch.Tensor]:
        session = fed(engine, prompt)
        return list(session.generate(sampling)), session.next_logits()

    expected, logits = generate()
    torch.set_default_dtype(torch.bfloat16)
    found, same = generate()
    assert found == expected and torch.equal(same, logits)
