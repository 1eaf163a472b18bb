"""Adapter of our models to lm-eval, EleutherAI's evaluation harness, under the name "mmrec".

    import mm_rec.evaluation.lm_eval_adapter                       # registers the name
    lm_eval.simple_evaluate(model="mmrec", model_args="path=runs/tiny", tasks=["blimp"])

It differs from lm-eval's own "hf" in three things: what a chat template rendered begins as the template says, without
a bos before it; requests are packed instead of padded; and MM-Rec, which has no context limit, is never cut short.
"""

from __future__ import annotations

import difflib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.errors import ConfigError, DataError, TokenizerError, needs_extra
from mm_rec.evaluation.loglikelihood import (
    BATCH_TOKENS,
    LoglikelihoodRequest,
    encode_request,
    loglikelihoods,
    prefix_token_ids,
)
from mm_rec.inference.engine import Engine
from mm_rec.inference.generate import encode_prompt, encode_rendered, encode_text, generate_text
from mm_rec.inference.manager import open_model
from mm_rec.inference.sampler import SamplingParams
from mm_rec.models.forward import require_packing_support
from mm_rec.tokenizers.loading import fingerprint

with needs_extra("eval", "running benchmark tasks"):
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.api.task import Task
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.evaluator import evaluate
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import (
        get_rolling_token_windows,
        handle_non_serializable,
        make_disjoint_window,
        simple_parse_args_string,
    )

ROLLING_TOKENS = 8192  # the windows in which a whole document is scored, for a model without a limit
MAX_NEW_TOKENS = 256  # for a task that does not say how long an answer may be

_logger = logging.getLogger(__name__)


@register_model("mmrec")
class MMRecLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A model and its tokenizer behind lm-eval's interface.

    `max_length` tokens are read of a request, the last ones (default: the model's limit, or all where it has none).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens
        self.engine = Engine(model)
        self.limit = max_length or self.engine.context_limit
        self._device = model.device
        self._uses_chat_template = False  # whether a chat template writes what is read

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """Load the model of `path=…,max_length=…,device=…`, as `lm_eval --model_args` has them."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """Load the model of a mapping with `path`, and perhaps `max_length`, `batch_tokens` and `device`."""
        arguments = dict(arg_dict)
        # lm-eval adds its own --device and --batch_size; ours is counted in tokens.
        device = arguments.pop("device", (additional_config or {}).get("device") or "auto")
        if "path" not in arguments:
            raise ConfigError("--model mmrec needs to know which model: --model_args path=FOLDER")
        loaded = open_model(arguments.pop("path"), device=device)
        require_packing_support(loaded.model)
        return cls(loaded.model, loaded.tokenizer, **arguments)

    @property
    def max_length(self) -> int:
        """Return the tokens of a window when a whole document is scored."""
        return self.limit or ROLLING_TOKENS

    @property
    def max_gen_toks(self) -> int:
        """Return the most new tokens where a task does not say."""
        return MAX_NEW_TOKENS

    @property
    def eot_token_id(self) -> int | None:
        """Return the id of eos."""
        eos: int | None = self.tokenizer.eos_token_id
        return eos

    @property
    def prefix_token_id(self) -> int:
        """Return the id that precedes a text without context."""
        first = prefix_token_ids(self.tokenizer)
        if not first:
            raise TokenizerError(
                "the tokenizer has neither a bos nor an eos token, so that nothing predicts the first token of a text. "
                "Name one in its tokenizer_config.json"
            )
        return first[0]

    @property
    def tokenizer_name(self) -> str:
        """Return a fingerprint of the tokenizer, for the names of lm-eval's cache."""
        return fingerprint(self.tokenizer)[:16]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Encode a text, begun as the tokenizer begins it unless `add_special_tokens` is False, or of a chat."""
        if self._uses_chat_template:
            return encode_rendered(self.tokenizer, string)
        return (encode_text if add_special_tokens is False else encode_prompt)(self.tokenizer, string)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation by the tokenizer's own template."""
        self._uses_chat_template = True
        if not self.tokenizer.chat_template:
            raise TokenizerError(
                "this model's tokenizer has no chat template. Run the tasks without one, or use a chat model"
            )
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log-likelihood (nats) of each continuation, and whether greedy decoding would write it."""
        texts = [request.args for request in requests]
        encoded = [(text, *self._encode_request(*text)) for text in texts]
        return self._loglikelihood_tokens(encoded)

    def _encode_request(self, context: str, continuation: str) -> LoglikelihoodRequest:
        """lm-eval's rule: white space at the end of a context belongs to what follows it."""
        kept = context.rstrip()
        return encode_request(
            self.tokenizer, kept, context[len(kept) :] + continuation, self._uses_chat_template
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, Sequence[int], Sequence[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The same for (texts, context ids, continuation ids)."""
        if self.limit is not None:
            cut = sum(len(context) + len(ids) > self.limit + 1 for _, context, ids in requests)
            if cut:
                _logger.warning(
                    "%d of %d requests are longer than %d tokens: only their last ones are read",
                    *(cut, len(requests), self.limit),
                )
        pairs = [(context, ids) for _, context, ids in requests]
        found = loglikelihoods(self.model, pairs, max_length=self.limit, batch_tokens=self.batch_tokens)
        answers = []
        for (texts, _, _), likelihood in zip(requests, found, strict=True):
            answers.append((likelihood.logprob, likelihood.is_greedy))
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answers[-1])
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-probability (nats) of each document, in windows of `max_length` tokens that share one token."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=encode_text(self.tokenizer, request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Generate after each context, up to a stop string or the end of the text."""
        answers = []
        for request in requests:
            answers.append(self._generate(*request.args))
            self.cache_hook.add_partial("generate_until", request.args, answers[-1])
        return answers

    def _generate(self, context: str, options: Mapping[str, Any]) -> str:
        sampling = _sampling(options)
        ids = self.tok_encode(context) or [self.prefix_token_id]
        if self.limit is not None:
            room = self.limit - sampling.max_new_tokens
            if room < 1:
                raise ConfigError(
                    f"the task asks for {sampling.max_new_tokens:,} new tokens and this model reads at most "
                    f"{self.limit:,}, which leaves no room for a question"
                )
            ids = ids[-room:]
        session = self.engine.session()
        session.prefill(ids)
        return "".join(generate_text(session, self.tokenizer, sampling))


def _sampling(options: Mapping[str, Any]) -> SamplingParams:
    """Convert lm-eval's generation options to ours; greedy unless the task samples, and then from torch's seed."""
    values = normalize_gen_kwargs(dict(options), MAX_NEW_TOKENS)
    known = ("top_k", "top_p", "min_p", "repetition_penalty")
    return SamplingParams(
        temperature=values.get("temperature", 0.0),
        max_new_tokens=values["max_gen_toks"],
        stop=tuple(text for text in values["until"] if text),
        seed=int(torch.randint(2**62, ())),
        **{"top_p": 1.0, **{name: values[name] for name in known if name in values}},
    )


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    max_length: int | None = None,
    include_path: Path | None = None,
) -> dict[str, Any]:
    """Run lm-eval tasks by name, pattern or YAML file; returns lm-eval's own results as plain values, ready for JSON.

    `limit` questions of each task; `chat` puts questions into the tokenizer's chat template. `include_path` is a folder
    of more tasks, whose Python functions run. Data comes from the hub, unless it is in the cache or the task names
    files. Raises ConfigError for a task that is not known or needs a package, DataError where its data cannot be had.
    """
    from datasets.exceptions import DatasetsError

    manager = _task_manager(tasks, include_path)
    names = _known_tasks(tasks, manager)
    _seed()
    try:
        loaded = manager.load(names)
        for task in loaded["tasks"].values():
            _set_examples(task, num_fewshot)
        results = evaluate(
            lm=MMRecLM(model, tokenizer, max_length),
            task_dict=loaded,
            limit=limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=True,
            log_samples=False,
        )
    except (OSError, DatasetsError) as error:
        raise DataError(
            f"the data of {', '.join(tasks)} cannot be had ({type(error).__name__}: {error}). Check the connection and "
            "HF_HUB_OFFLINE, or use tasks whose data lies here (--include-path)"
        ) from error
    except ModuleNotFoundError as error:
        raise ConfigError(f"{', '.join(tasks)}: {error}. Install it: pip install {error.name}") from error
    plain: dict[str, Any] = json.loads(json.dumps(results, default=handle_non_serializable))
    return {"lm_eval_version": version("lm_eval"), **plain}


def _seed() -> None:
    """Start from the seeds that lm-eval itself starts from."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)


def _set_examples(task: Task, num_fewshot: int | None) -> None:
    """lm-eval's rule: examples as asked for, or as the task says, or none; a task that says none keeps to it."""
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def _task_manager(tasks: Sequence[str], include_path: Path | None) -> TaskManager:
    """Return the tasks of a folder alone where it has all that are named: lm-eval's own 14,000 take seconds to list."""
    if include_path is None:
        return TaskManager()
    own = TaskManager(include_path=str(include_path), include_defaults=False)
    # Its groups may name tasks of lm-eval.
    if not own.all_groups and all(own.match_tasks([task]) for task in tasks):
        return own
    return TaskManager(include_path=str(include_path))


def _known_tasks(tasks: Sequence[str], manager: TaskManager) -> list[str]:
    """Return the names of the tasks; raises ConfigError for one that lm-eval does not have."""
    names: dict[str, None] = {}
    for task in tasks:
        found = [task] if Path(task).is_file() else manager.match_tasks([task])
        if not found:
            near = difflib.get_close_matches(task, manager.all_tasks)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise ConfigError(
                f"lm-eval has no task {task!r}.{hint} `lm_eval ls tasks` lists all {len(manager.all_tasks):,}"
            )
        names.update(dict.fromkeys(found))
    return list(names)
