"""Times GRPO steps of TRL: the baseline of `step.py`, run in an environment of its own.

    python trl_step.py MODEL PROMPTS.jsonl --steps 4

Needs only requirements-trl.txt. PROMPTS holds one {"prompt": str, "answer": str} a line, prompts
already rendered. The settings are the fastest that TRL has on a CPU (measured: single precision,
plain `generate`, micro-batches of 32 sequences; bf16, a static cache, continuous batching and one
batch of 256 are all slower). One JSON line per step: seconds in all, in generation, in scoring and
in training, tokens made, and the peak memory of the process so far. The first step warms up.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import argparse
import json
import resource
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Timed(GRPOTrainer):
    """A GRPO trainer that adds up where its time goes."""

    generate = score = 0.0
    tokens = 0

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        out = super()._generate_single_turn(*args, **kwargs)
        self.generate += time.perf_counter() - start
        self.tokens += sum(map(len, out[0]))
        return out

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        start, generated = time.perf_counter(), self.generate
        out = super()._generate_and_score_completions(inputs)
        self.score += time.perf_counter() - start - (self.generate - generated)
        return out


class Clock(TrainerCallback):
    """Prints one line per optimiser step; nothing between two steps is left out."""

    trainer: Timed

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._reset()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds, t = time.perf_counter() - self.start, self.trainer
        line = {
            "step": state.global_step,
            "seconds": seconds,
            "generate": t.generate,
            "score": t.score,
            "train": seconds - t.generate - t.score,
            "tokens": t.tokens,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(line), flush=True)
        self._reset()

    def _reset(self) -> None:
        self.trainer.generate = self.trainer.score = 0.0
        self.trainer.tokens = 0
        self.start = time.perf_counter()


def correct(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 where the text after the thought is the gold answer."""
    pairs = zip(completions, answer, strict=True)
    return [float(text.rpartition("</think>")[2] == gold) for text, gold in pairs]


def settings(args: argparse.Namespace, folder: str) -> GRPOConfig:
    sequences = args.prompts_per_step * args.rollouts_per_prompt
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        seed=args.seed,
        max_steps=args.steps + 1,
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=sequences // args.micro_batch,
        num_generations=args.rollouts_per_prompt,
        max_completion_length=args.max_tokens,
        temperature=1.0,
        top_k=0,
        beta=0.0,
        loss_type="dapo",
        learning_rate=args.lr,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        shuffle_dataset=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("--steps", type=int, default=3, help="steps after the warm-up step")
    parser.add_argument("--prompts-per-step", type=int, default=32)
    parser.add_argument("--rollouts-per-prompt", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-9)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        clock.trainer = Timed(
            model=AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
            reward_funcs=correct,
            args=settings(args, folder),
            train_dataset=Dataset.from_json(args.prompts, cache_dir=folder),
            callbacks=[clock],
        )
        clock.trainer.train()


if __name__ == "__main__":
    main()
