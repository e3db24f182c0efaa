"""`python -m trainer.export.vllm_check FOLDER`: an exported model in vLLM; one line of JSON.

Every mode gives the ids that transformers renders, bad values are refused, hard budgets hold
exactly, and the folder is one that `--reasoning-parser hf` takes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from samplers import render
from samplers.engines import _vllm_start
from samplers.engines import vllm as settings
from samplers.render import ThinkingConfig
from trainer.export import check, read
from trainer.modelfolder import ModelFolder

HARD = (0, 3, 8)
ANSWER = 4


def run(folder: Path) -> str:
    """What was found, for people.

    Raises:
        ValueError: the first thing that is wrong.
    """
    said = read(folder)
    assert said is not None
    markers = said["thinking"]
    thinking = ThinkingConfig(start=markers["start"], end=markers["end"]) if markers else None
    renderer, llm = render.load(str(folder), thinking), _engine(folder, thinking is not None)
    import vllm

    talk = [dict(one) for one in check.TALKS[0]]
    short = vllm.SamplingParams(max_tokens=1, temperature=1.0, seed=0)

    def chat(arguments: dict[str, Any], sampling: Any) -> Any:
        return llm.chat(talk, sampling, chat_template_kwargs=arguments, use_tqdm=False)[0]

    count = 0
    for name, arguments, _ in check.ways(said):
        ids = chat(arguments, short).prompt_token_ids
        wanted = check._told_ids(renderer, arguments, check.TALKS[0]).tolist()
        if ids != wanted:
            raise ValueError(f"{name} ({arguments}): vLLM's prompt is {ids}, not {wanted}")
        count += 1
    refused = check.bad_values(said)
    for arguments in refused:
        try:
            chat(arguments, short)
        except Exception as error:  # VLLMValidationError in 0.32, which its server makes a 400
            if "Validation" not in type(error).__name__ and not isinstance(error, ValueError):
                raise
            continue
        raise ValueError(f"{arguments} is taken")
    text = f"vLLM {vllm.__version__}: {count} prompts equal, {len(refused)} bad values refused"
    return text if thinking is None else text + _hard(chat, renderer)


def _hard(chat: Any, renderer: Any) -> str:
    """Thoughts end at their hard budget or before, and something follows."""
    import vllm

    markers, most = renderer.thinking, 0
    for budget in HARD:
        for seed in range(4):
            sampling = vllm.SamplingParams(
                thinking_token_budget=budget,
                max_tokens=budget + 2 + ANSWER,
                temperature=1.0,
                seed=seed,
            )
            ids = list(chat({}, sampling).outputs[0].token_ids)
            if not markers.opened:  # the model has to open its thought; without it there is none
                ids = ids[ids.index(markers.start_id) + 1 :] if markers.start_id in ids else []
            at = ids.index(markers.end_id) if markers.end_id in ids else len(ids)
            if at > budget:
                raise ValueError(f"a hard budget of {budget} did not hold: {ids}")
            most = max(most, at)
    return f", hard budgets {', '.join(map(str, HARD))} hold (longest thought {most})"


def _engine(folder: Path, thinks: bool) -> Any:
    config = settings.Config(name="vllm", slots=16)
    _vllm_start.environment(config)
    context = ModelFolder(folder).context or _vllm_start.CPU_BATCH
    arguments = _vllm_start.arguments(folder, config, False, context)
    for ours in (
        "skip_tokenizer_init",
        "worker_extension_cls",
        "logprobs_mode",
        "disable_log_stats",
    ):
        arguments.pop(ours, None)
    arguments["dtype"] = "auto"
    if thinks:
        arguments["reasoning_parser"] = "hf"
    import vllm

    llm = vllm.LLM(**arguments)
    if thinks:
        from vllm.parser.response_template import validate_tokenizer_response_template

        validate_tokenizer_response_template(llm.get_tokenizer(), reasoning=True, tools=False)
    return llm


def main() -> None:
    try:
        found = {"ok": True, "text": run(Path(sys.argv[1]))}
    except Exception as error:
        found = {"ok": False, "text": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
