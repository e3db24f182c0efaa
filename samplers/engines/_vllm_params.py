"""Requests in vLLM's words, and its scores in ours."""

from __future__ import annotations

from typing import Any

import numpy as np

from samplers import seeds
from samplers.types import Floats, Request


def sampling(request: Request) -> Any:
    """vLLM's form of a request's settings; processed logprobs are those after temperature and
    truncation; greedy rows have none."""
    from vllm.sampling_params import SamplingParams

    bias = request.logit_bias
    # Its generators begin anew with every request: what was drawn before changes the seed.
    seed = seeds.key(request.seed, request.drawn) if request.drawn else request.seed
    return SamplingParams(
        temperature=request.temperature,
        seed=seed & 0x7FFF_FFFF_FFFF_FFFF,
        max_tokens=request.max_tokens,
        stop_token_ids=list(request.stop_ids),
        ignore_eos=True,
        logprobs=0,
        top_p=request.top_p,
        top_k=request.top_k,
        logit_bias=dict(bias) if bias else None,
        detokenize=False,
    )


def scoring(last: int, temperature: float, cached: bool = False) -> Any:
    """Logprobs of the prompt, and of `last` as the token after it.

    Args:
        cached: of the prompt only what the prefix cache does not hold.
    """
    from vllm.sampling_params import SamplingParams

    return SamplingParams(
        temperature=temperature, max_tokens=1, ignore_eos=True, logprobs=0, prompt_logprobs=0,
        logprob_token_ids=[last], detokenize=False, skip_reading_prefix_cache=not cached,
    )  # fmt: skip


def scores(output: Any) -> Floats:
    """Logprobs of a prompt, and of the last token as one that might have been sampled."""
    last = output.new_logprobs.logprobs[:, 1]
    prompt = output.new_prompt_logprobs_tensors
    first = last[:0] if prompt is None else prompt.logprobs[:, 0].cpu().numpy()
    return np.concatenate([first, last]).astype(np.float32)
