"""vLLM inside the actor's own process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from actors.config import RolloutConfig, SamplingConfig
from actors.engines.base import (
    Engine,
    StopStrings,
    assemble,
    check_complete,
    check_prompts,
    digesting,
    end_tokens,
    row_seed,
    share_of,
)
from rayrlhf.batches import Part, Prompts, Rollouts
from rayrlhf.errors import RoleError

_ENVIRONMENT = {
    # engine and (without tensor parallelism) worker in this process: starts in a third of the
    # time, leaves no child behind, and a callable given to collective_rpc crosses no wire
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # threads come from the layout (OMP_NUM_THREADS); by default vLLM would pin them to the very
    # cores that the trainer on this machine uses
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}


# Share of a GPU that must be free as vLLM starts: what it takes is kv_cache_memory_bytes, and others may be on the GPU.
_LEAST_FREE = 0.05


class VLLMEngine(Engine):
    """See actors.engines.base.Engine."""

    def __init__(self, folder: str, config: RolloutConfig, sleeps: bool = False) -> None:
        """Starts vLLM on a Hugging Face folder and runs one request, which compiles its kernels.

        `sleeps` takes GPU memory in a way that can be given back; vLLM refuses it where there is no GPU.
        """
        os.environ.update(_ENVIRONMENT)
        # it warns at every reload of layers that have nothing to load, such as rotary embeddings
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # it speaks before it reads the variable
        from vllm import LLM

        self.version = 0
        self._ends, self._stops = end_tokens(folder), StopStrings(folder)
        self._in_process = config.tensor_parallel == 1
        of_gpu: dict[str, Any] = {"gpu_memory_utilization": _LEAST_FREE} if torch.cuda.is_available() else {}
        self._llm: Any = LLM(
            model=folder,
            dtype=config.dtype,
            load_format="safetensors",  # by itself it takes pickles where there are none
            max_model_len=config.max_model_len,
            kv_cache_memory_bytes=int(config.kv_cache_gib * 2**30),
            tensor_parallel_size=config.tensor_parallel,
            enforce_eager=config.enforce_eager,
            enable_sleep_mode=sleeps,
            # To read a prompt in two steps vLLM 0.32 takes a row's random numbers back after the first, which a
            # CPU's generator refuses: with a prompt too many for one step there the next step takes it whole.
            enable_chunked_prefill=None if torch.cuda.is_available() else False,
            **of_gpu,
            # log_softmax(logits / temperature), as the trainer computes it; the default leaves
            # the temperature out
            logprobs_mode="processed_logprobs",
            # sampling defaults of the folder's generation_config.json must not slip in
            generation_config="vllm",
            use_tqdm_on_load=False,
        )
        self._context = self._llm.llm_engine.model_config.max_model_len
        one = torch.ones(1, dtype=torch.int64)
        self.generate(Prompts(one[:, None], one, one), SamplingConfig(max_new_tokens=1), seed=0)

    def stream(
        self, prompts: Prompts, sampling: SamplingConfig, seed: int, part: Part | None = None, parts: int = 1
    ) -> Iterator[Rollouts]:
        """See Engine; log-probabilities as vLLM computed them while sampling."""
        from vllm import SamplingParams

        part = Part.of_all(len(prompts), sampling.max_new_tokens) if part is None else part
        check_prompts(prompts, part, self._context)
        stops = self._stops.of(sampling)
        rows = list(zip(prompts.tokens.tolist(), prompts.lengths.tolist(), strict=True))
        requests = self._llm.enqueue(
            [{"prompt_token_ids": tokens[:length]} for tokens, length in rows],
            [
                SamplingParams(
                    temperature=0.0 if sampling.is_greedy else sampling.temperature,
                    max_tokens=limit,
                    seed=row_seed(seed, index, begun),
                    logprobs=0,  # of the sampled token only
                    stop_token_ids=self._ends,
                    ignore_eos=True,  # ends are the list above, the same for every engine
                    detokenize=bool(stops),  # only texts to stop at need it
                    stop=stops,
                    include_stop_str_in_output=True,
                    skip_special_tokens=False,  # a special token may be written in them
                )
                for index, begun, limit in zip(
                    prompts.prompt_index.tolist(), part.begun.tolist(), part.limit.tolist(), strict=True
                )
            ],
            use_tqdm=False,
        )
        # vLLM numbers requests in the order in which they come, and puts the number first in its own name of each
        row_of = {name.split("-")[0]: row for row, name in enumerate(requests)}
        engine, ended = self._llm.llm_engine, dict[int, Any]()  # the latter by row, not yielded yet
        try:
            while engine.has_unfinished_requests():
                ended |= {row_of[output.request_id]: output.outputs[0] for output in engine.step() if output.finished}
                if len(ended) >= share_of(len(prompts), parts) or not engine.has_unfinished_requests():
                    if ended:
                        yield self._assembled(prompts, ended)
                    ended = {}
        finally:
            if engine.has_unfinished_requests():  # it was left before its end
                engine.abort_request(requests, internal=True)

    def _assembled(self, prompts: Prompts, completions: dict[int, Any]) -> Rollouts:
        """Of those rows."""
        rows = sorted(completions)
        found = [completions[row] for row in rows]
        return assemble(
            prompts.rows(rows),
            [list(c.token_ids) for c in found],
            [[entry[token].logprob for token, entry in zip(c.token_ids, c.logprobs, strict=True)] for c in found],
            [c.finish_reason == "stop" for c in found],
            self.version,
        )

    def load_weights(self, version: int, buckets: Iterable[dict[str, Tensor]]) -> dict[str, str]:
        """Replaces the weights of the running engine; its KV cache of older weights is dropped."""
        if not self._in_process:
            # the buckets' iterator cannot cross to the workers; they cut their own parts out
            buckets = list(buckets)
        workers = self._llm.collective_rpc(_reload, args=(buckets,))
        if any(digests != workers[0] for digests in workers):
            raise RoleError(f"the {len(workers)} workers of one vLLM engine loaded different weights")
        self._llm.reset_prefix_cache()
        self.version = version
        return workers[0]

    def sleep(self) -> None:
        self._llm.sleep(level=1)  # 2 would drop the weights, and an evaluation samples twice from the same

    def wake(self) -> None:
        self._llm.wake_up()


def _reload(worker: Any, buckets: Iterable[dict[str, Tensor]]) -> dict[str, str]:
    """Runs in each vLLM worker.

    `reload_weights` redoes what vLLM did to the weights after it first loaded them (fusing,
    repacking for the CPU kernels).  Of a parameter that does not come it keeps the old values
    with no more than a warning, so what the model says it loaded is checked here.
    """
    model = worker.model_runner.get_model()
    expected = {name for name, _ in model.named_parameters()}
    digests: dict[str, str] = {}
    loaded: set[str] = set()
    load_weights = model.load_weights

    def recording(weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded.update(load_weights(weights))
        return loaded

    model.load_weights = recording
    try:
        worker.reload_weights(weights_iterator=digesting(buckets, digests))
    finally:
        del model.load_weights
    check_complete(expected, loaded)
    _repack_tied(model)
    return digests


def _repack_tied(model: Any) -> None:
    """Processes the layers that share one weight again.

    A tied output head gets no tensor of its own, so `reload_weights` leaves out its processing,
    which on CPUs is a packed copy of the weight: the head would go on with the old one.
    """
    by_weight: dict[int, list[Any]] = {}
    for module in model.modules():
        if hasattr(module, "quant_method") and getattr(module, "weight", None) is not None:
            by_weight.setdefault(id(module.weight), []).append(module)
    for modules in by_weight.values():
        if len(modules) > 1:
            for module in modules:
                module.quant_method.process_weights_after_loading(module)
