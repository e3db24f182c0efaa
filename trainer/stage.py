"""A stage in progress: what the driver owns while the loop runs.

State of sampling and shaping, clock and step: all of it can be saved and restored, because workers
own nothing that cannot be rebuilt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from rewards.apply import Shaping
from rewards.verify import verify
from samplers import seam, seeds
from samplers.data import PromptStream
from samplers.types import Group, Job, Prompt, Rollout
from trainer import alarms, golds, guard, measure, runfolder, scoring, staleness, supervised
from trainer.ahead import Ahead
from trainer.batching import pack, without_idle
from trainer.checkpoint import CheckpointConfig
from trainer.collect import Making, Rounds, Timed
from trainer.config import Recipe, Stage
from trainer.eval.asked import with_asked
from trainer.eval.budgets import EvalConfig, evaluate
from trainer.faults import Mended, Stopped
from trainer.metrics import Clock, summarise, verification
from trainer.rows import weighted
from trainer.sampling import Sampled, Sampling
from trainer.stop import Stop
from trainer.supervised import SupervisedStream
from trainer.tracking import Tracker
from trainer.types import Batch, TrainSequence
from trainer.world import World


class StageRun:
    """`step` counts within the stage; `first + step` over the run. Close it, or use `with`.

    With `max_staleness` to spare batches are sampled in a thread of their own (`trainer/ahead.py`),
    which then owns what they are drawn from. An evaluation shares the engines with it, at the
    newest weights.

    Its lines raise `trainer.stop.Ended` where `stop` is asked; what there is to keep is kept then.
    """

    def __init__(
        self,
        recipe: Recipe,
        index: int,
        first: int,
        model: str,
        world: World,
        tracker: Tracker,
        folder: Path,
        stop: Stop | None = None,
    ) -> None:
        self.recipe, self.index, self.first, self.world = recipe, index, first, world
        self.stage: Stage = recipe.stages[index]
        self.tracker, self.folder, self.clock = tracker, folder, Clock()
        self.stop = stop or Stop()
        self.keeper = runfolder.keeper(recipe, folder, tracker)
        self.step = 0
        stage = self.stage
        # a later stage draws other prompts, and other random numbers, than the one before
        self.seed = seeds.key(recipe.seed, index) if index else recipe.seed
        self.stream: PromptStream | SupervisedStream
        if stage.kind == "sft":
            self.stream = supervised.demonstrations(stage, model, self.seed)
        else:
            dataset = golds.training(stage, recipe.seed, index)
            self.stream = PromptStream(dataset, self.seed, stage.data.shuffle)
        self.sampling = Sampling(stage, self.stream, self.seed)
        self.plans = self.sampling.plans
        self.shaping = Shaping(stage.shaping, world.decode, stage.markers)
        self.algorithm, self.algorithm_config = seam.resolve("trainer.algorithms", stage.algorithm)
        needs = getattr(self.algorithm, "needs", None)
        self.needs: set[str] = set(needs(self.algorithm_config)) if needs else set()
        if stage.loss.importance != "none" and stage.loss.importance_normalize:
            self.needs.add("old_logprobs")  # its mean is over the whole step: needed to pack
        self.scoring = scoring.Scoring(stage, world, self.clock)
        self.held_out = self._held_out()
        self._begun = False  # a step has trained groups: with chunks the first ones may have none
        self._sampled = Sampled([], [], {})
        self._owed: dict[str, Any] | None = None  # figures of a step that lacks its evaluation
        self._mended = Mended(world, tracker)
        self._rows: list[TrainSequence] = []
        self._ages: dict[str, float] = {}
        self.ahead: Ahead[Sampled] | None = None
        self.history: list[dict[str, Any]] = []  # what alarms read of the stage's steps

    def _held_out(self) -> list[Prompt]:
        """The test problems of every evaluation: the first ones of the test split."""
        config = self.stage.evaluation
        if config is None or not config.every:
            return []
        dataset = golds.load(self.stage, "test", self.recipe.seed)
        size = config.problems if dataset.size is None else min(config.problems, dataset.size)
        return [dataset[i] for i in range(size)]

    @property
    def unfinished(self) -> bool:
        return self.step < self.stage.steps

    def follow(self, before: Sampling) -> None:
        """Begin with what an earlier stage learned of the same prompts."""
        if note := self.sampling.inherit(before):
            self.tracker.say(note)

    # one line of the loop each

    def begin(self) -> None:
        """Measure what the stage starts from, or what the run that was stopped still owes."""
        self._mended.tell(self.at)
        try:
            if self._owed is not None:
                owed, self._owed = self._owed, None
                self._conclude(owed["first"], owed["trouble"], owed["metrics"] | self._evaluate())
                if self._due(self.recipe.checkpoint):  # made before, without these figures
                    self._checkpoint()
            elif self.step == 0 and self.held_out:
                evaluated = self._evaluate()
                self.tracker.log(self.at, evaluated | summarise([], {}, self.clock.lap()))
                self.history = [alarms.kept(self.tracker.newest, self.first)]
        except Stopped:
            self._end()

    def sample(self) -> list[Group]:
        stage, depth = self.stage, staleness.depth(self.stage)
        self._work()
        if depth and self.ahead is None:
            limits = (depth, stage.rollout.in_flight_updates)
            self.ahead = Ahead(self._sample, self.world.abort, self.step, stage.steps, *limits)
            self.stop.gives_up(self.ahead.stop)  # in every line: the engines are wanted elsewhere
        try:
            with self.stop.losing(self.world.abort):
                if self.ahead is None:
                    self._sampled = self._sample(self.step)
                else:
                    with self.clock.phase("wait"):
                        self._sampled = self.ahead.next()
            return self._sampled.groups
        except Stopped:
            self._end()

    def _sample(self, step: int) -> Sampled:
        """The groups that step `step` trains, begun with the allocator as it is now."""

        def judge(groups: list[Group]) -> list[Group]:
            with self.clock.phase("verify"):
                return verify(groups, self.world.grade)

        def enrich(groups: Sequence[Group], what: str) -> list[Group]:
            if self.ahead is not None and not what.startswith(scoring.GRAD_NORM):
                raise ValueError(
                    f"allocation: {what} cannot be had while engines sample ahead, by weights that "
                    f"learners no longer hold; set max_staleness=0, or ask for {scoring.GRAD_NORM}"
                )
            return self.scoring.annotate(groups, {what})

        with self._making() as making:
            return self.sampling.step(step, making, judge, enrich)

    @contextmanager
    def _making(self) -> Iterator[Making]:
        """Rollouts one group at a time, for an allocator that goes on with each; or in rounds."""

        def make(jobs: list[Job]) -> list[Rollout]:
            with turn(), self.clock.phase("generate"):
                return self.world.rollout(jobs)

        turn = self.ahead.generating if self.ahead else nullcontext
        if self.recipe.deterministic or not getattr(self.sampling.allocation, "refills", False):
            yield Rounds(make)
            return
        with turn(), self.world.flow() as flow:
            yield Timed(flow, self.clock)

    def reward(self, groups: list[Group]) -> list[Group]:
        return self.shaping.apply(groups) if groups else []

    def annotate(self, groups: list[Group]) -> list[Group]:
        return self.scoring.annotate(groups, self.needs) if self.needs and groups else groups

    def credit(self, groups: list[Group]) -> list[TrainSequence]:
        if not groups:
            return []
        sequences: list[TrainSequence] = self.algorithm.sequences(groups, self.algorithm_config)
        return weighted(sequences, groups)

    def examples(self) -> list[TrainSequence]:
        assert isinstance(self.stream, SupervisedStream)
        self._work()
        return self.stream.next()

    def pack(self, sequences: list[TrainSequence]) -> Batch:
        stage, self._rows = self.stage, sequences
        if stage.kind == "rl":
            self._ages = staleness.check(sequences, self.world.version, stage.max_staleness)
        batch = pack(
            sequences,
            stage.loss,
            tokens_per_micro_batch=stage.tokens_per_micro_batch,
            ranks=stage.learner.ranks,
            updates=stage.updates_per_batch,
            packed=stage.model.attention == "flash_attention_2",
        )
        return without_idle(batch)

    def learn(self, batch: Batch) -> dict[str, Any]:
        every = self.stage.measure.gradient_variance
        measured = {}
        if every and self.step % every == 0:
            with self.clock.phase("measure"):
                measured = measure.variance(self.world, self._rows, self.stage)
        with self.clock.phase("train"):
            return {**self.world.step(batch), **measured}

    def sync(self) -> None:
        def load() -> None:
            with self.clock.phase("sync"):
                self.world.sync()

        if self.ahead is None:
            load()
            return
        with self.clock.phase("wait"):  # for what the engines are at
            self.ahead.sync(load)

    def finish(self, groups: list[Group], learned: Mapping[str, Any]) -> None:
        """Close the step: evaluation, figures, bounds, samples one can read, checkpoint."""
        first, self._begun = bool(groups) and not self._begun, self._begun or bool(groups)
        self.step += 1
        self.sampling.forget(self.step)
        try:
            evaluated = self._evaluate() if self._due(self.stage.evaluation) else {}
        except Stopped:
            evaluated = None
        figures = dict(learned)
        if self.stage.kind == "rl" and self.stage.max_staleness:
            figures = self._of_stale(figures)
        for note in figures.pop("notes", ()):
            self.tracker.say(f"step {self.at}: {note}")
        discarded = self._sampled.discarded
        came = groups or discarded or not self.sampling.carried  # of chunks none may be whole yet
        if self.stage.kind == "rl" and came and not figures.get("steps"):
            self.tracker.say(f"step {self.at}: nothing to learn from; no optimiser step was taken")
        apart = getattr(self.sampling.allocation, "apart", False)
        metrics = summarise(groups, figures, self.clock.lap(), discarded, apart)
        metrics |= self._sampled.figures
        metrics |= self._mended.figures(self.at)
        if self.stage.kind == "rl":
            metrics |= verification(self.world.grading())
        if groups:
            self.tracker.samples(self.at, groups, self.world.decode)
        if evaluated is None:  # given up: whoever goes on begins with it
            exact = {name: getattr(v, "item", lambda v=v: v)() for name, v in metrics.items()}
            self._owed = {"first": first, "trouble": alarms.trouble(groups), "metrics": exact}
            self._end()
        self._conclude(first, alarms.trouble(groups), metrics | evaluated)
        if self._due(self.recipe.checkpoint):
            self._checkpoint()
        over = not self.unfinished and not self.recipe.stages[self.index + 1 :]
        if self.stop.asked and not (over and self.keeper.kept(self.at)):
            self._end()
        self.stop.working = self.unfinished

    def _conclude(self, first: bool, trouble: str, metrics: dict[str, Any]) -> None:
        """Alarms and bounds of the step's figures, and its record."""
        raised = self._watch(metrics)
        self.tracker.log(self.at, metrics)
        for name, why in raised.items():
            self.tracker.alarm(self.at, name, why + (trouble if name == "unknown" else ""))
        guard.check(self.stage, first, metrics)

    def _work(self) -> None:
        """A step begins: unless it is to end now, the run ends with a whole one."""
        self.stop.working = True
        if self.stop.asked:
            self._end()

    def _end(self) -> NoReturn:
        """Keep what is done, unless it is kept, and end the run."""
        if self.step and not self.keeper.kept(self.at):
            try:
                self._checkpoint()
            except Exception as error:
                self.tracker.say(f"step {self.at}: no checkpoint: {error}")
        self.stop.end(self.at, self.keeper.kept(self.at))

    def _watch(self, metrics: dict[str, Any]) -> dict[str, str]:
        """Add the step's alarms to its figures: those that people are to be told now."""
        if self.stage.kind != "rl":
            return {}
        config, step = self.stage.alarms, {"step": self.at, **metrics}
        found = alarms.check([*self.history, alarms.kept(step, self.first)], config)
        metrics |= alarms.figures(found)
        self.history.append(alarms.kept(step | metrics, self.first))
        return alarms.news(self.history, found, config.window)

    @property
    def at(self) -> int:
        """Steps of the run so far, all stages counted."""
        return self.first + self.step

    def _due(self, config: EvalConfig | CheckpointConfig | None, step: int | None = None) -> bool:
        """Every so many steps, and at the stage's end."""
        if config is None:
            return False
        step = self.step if step is None else step
        return step >= self.stage.steps or bool(config.every and step % config.every == 0)

    def _of_stale(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Between engine and learner lie updates: what training tokens tell of them is drift.

        The gap between engine and learner is measured on a few rows that both score now, when the
        engines have just loaded the learners' weights.
        """
        for name in ("engine_gap", "engine_gap_max"):
            if name in figures:
                figures[name.replace("engine_gap", "policy_drift")] = figures.pop(name)
        figures |= self._ages
        beside = self.ahead is not None  # else they may share their GPUs
        with self.clock.phase("probe"):
            figures |= staleness.probed(self._rows, self.scoring.logprobs, self.world.probe, beside)
        return figures

    def state_dict(self) -> dict[str, Any]:
        return {
            "stage": self.index,
            "first": self.first,
            "step": self.step,
            "begun": self._begun,
            "weight_version": self.world.version,
            **self.sampling.state_dict(self.step),
            "shaping": self.shaping.state_dict(),
            "owed": self._owed,
            "left_out": sorted(map(list, list(self.world.left_out))),
            "wandb_id": self.tracker.wandb_id,
        }

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of this stage: driver's state, learners, then the engines."""
        self.step, self._begun, self._owed = (state[key] for key in ("step", "begun", "owed"))
        self.sampling.load_state_dict(state)
        self.shaping.load_state_dict(state["shaping"])
        steps = (s for s in self.tracker.steps() if self.first <= s["step"] <= self.at)
        self.history = [alarms.kept(step, self.first) for step in steps]
        self.world.left_out |= {tuple(words) for words in state.get("left_out", ())}
        self.world.load(folder)
        self.world.version = state["weight_version"] - 1  # the sync below makes it this again
        self.world.sync()

    def _evaluate(self) -> dict[str, float]:
        """Accuracy at the stage's budgets on held-out problems, by the code that serves."""
        config = self.stage.evaluation
        if config is None or not self.held_out:
            return {}
        if self.stage.kind == "sft" and self.step:  # supervised steps leave the engines behind
            self.sync()
        with self.clock.phase("evaluate"):
            plan = self.sampling.natural(self.held_out[0], self.step)
            self.tracker.note("evaluating")
            thinking = self.stage.markers is not None
            with self.stop.losing(self.world.abort):
                world, prompts = self.world, self.held_out
                result = evaluate(world, prompts, config, plan, self.at, thinking=thinking)
                if config.asked and (asked := self.sampling.asked()):
                    result = with_asked(result, world, prompts, config, asked)
            with self.tracker.best_effort("eval/ results"):
                result.save(self.folder / "eval")
        return result.flat() | {"eval/problems": len(self.held_out)}

    def _checkpoint(self) -> None:
        with self.clock.phase("checkpoint"):
            next_one = self.recipe.checkpoint.after(self.step, self.stage.steps)
            self.keeper.save(
                self.at,
                self.world.save,
                self.state_dict(),
                self.tracker.newest,
                due=self.first + next_one if self.unfinished else None,
                last=not self.unfinished,
                enough=lambda: self.stop.asked,
            )

    def close(self) -> None:
        """End what goes on beside the loop."""
        if self.ahead is not None:
            self.ahead.close()
            self.stop.forget(self.ahead.stop)
        self._mended.tell(self.at)

    def __enter__(self) -> StageRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
