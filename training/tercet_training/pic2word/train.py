"""The training loop of Pic2Word's mapping network.

Every process maps the features of the whole batch, which is little work, so that one dropout mask serves one
process or many; the text encoder, which is the work, sees only its own rows. The gradient is exact: with the
same pictures in a batch, two processes follow the loss of one.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tercet.errors import InputError
from tercet_export.networks.pic2word import Im2Text
from tercet_training.loop import Report
from tercet_training.pic2word import saving
from tercet_training.pic2word.batches import Plan, Sampler, load
from tercet_training.pic2word.frozen import FrozenCLIP, contrast
from tercet_training.pic2word.recipe import Recipe, optimiser, seed_for
from tercet_training.pic2word.sources import Shards, Source
from tercet_training.pic2word.world import World

TASK = "Pic2Word"
METRICS, UNREADABLE = "metrics.jsonl", "unreadable.tsv"
OFFICIAL = -1  # the epoch whose pictures are not cropped at random

Scalars = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Habits:
    """What changes nothing about the weights that come out: when and where to save, to validate, to log.

    `output` None writes nothing. `scalars` is told every logged value too (TensorBoard).
    """

    output: Path | None = None
    resume: bool = False
    name: str = "pic2word"
    workers: int = 0
    save_every_epochs: int = 1
    save_every_steps: int = 0
    validate_every_steps: int = 0
    log_every: int = 10
    with_clip: bool = True
    validation: Source | None = None
    scalars: Scalars = lambda step, values: None
    say: Callable[[str], None] = lambda text: None


@dataclass
class Log:
    """Metrics by step in a file, and unreadable pictures by name in another."""

    habits: Habits
    first: bool
    unreadable: dict[str, str] = field(default_factory=dict)

    def begin(self, step: int) -> None:
        """Keep what earlier runs wrote up to `step`."""
        if not self.first or self.habits.output is None:
            return
        metrics = self.habits.output / METRICS
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        metrics.write_text("".join(f"{line}\n" for line in kept))
        faults = self.habits.output / UNREADABLE
        if step and faults.is_file():
            rows = (line.partition("\t") for line in faults.read_text().splitlines())
            self.unreadable.update({name: reason for name, _, reason in rows})

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Note the metrics of a step."""
        if self.first and self.habits.output is not None:
            with (self.habits.output / METRICS).open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            self.habits.scalars(step, values)

    def collect(self, world: World) -> None:
        """Bring every process's unreadable pictures together, and write them down."""
        for found in world.objects(self.unreadable):
            self.unreadable.update(found)
        if self.first and self.habits.output is not None and self.unreadable:
            rows = (f"{name}\t{' '.join(why.split())}\n" for name, why in sorted(self.unreadable.items()))
            (self.habits.output / UNREADABLE).write_text("".join(rows))


def train(
    clip: FrozenCLIP,
    source: Source,
    recipe: Recipe,
    report: Report,
    world: World,
    habits: Habits | None = None,
) -> Im2Text:
    """Train a mapping network for `clip` on the pictures of `source`.

    Args:
        clip: frozen; moved to the world's device.
        source: the training pictures, of which `recipe.held_out` are kept for validation where
            `habits.validation` has none.
        recipe: decides, with the pictures and CLIP, what comes out.
        report: told after every step.
        world: the processes that train together.
        habits: saving, resuming, validating, logging.

    Raises:
        InputError: too few pictures, a batch that cannot be shared out, a run that cannot be resumed, a whole
            batch of unreadable pictures, or a loss that is no number.
    """
    habits = habits or Habits()
    if recipe.batch % world.size:
        raise InputError(f"a batch of {recipe.batch} cannot be shared by {world.size} processes evenly")
    plan = Plan(source, recipe)
    recipe.rate(0, plan.steps)  # or the warm-up does not fit
    digest = source.digest()
    if len(set(world.objects(digest))) > 1:
        raise InputError("the processes see different pictures: give all of them the same files")
    if isinstance(source, Shards):
        for shard, reason in source.damaged.items():
            habits.say(f"{shard} is damaged, what follows in it is left out: {reason}")

    clip.to(world.device)
    torch.manual_seed(seed_for(recipe.seed, "first weights"))
    mapper = clip.new_mapper(recipe).to(world.device)
    adam = optimiser(mapper, recipe)
    scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.precision == "fp16")
    step = resume(clip, mapper, adam, scaler, recipe, digest, habits)
    log = Log(habits, world.first)
    log.begin(step)
    validation = Validation(clip, source, plan, world, habits, log)

    def save() -> None:
        log.collect(world)
        if world.first and habits.output is not None:
            epoch, rest = divmod(step, plan.steps_per_epoch)
            every = habits.save_every_epochs
            keeps = not rest and (step == plan.steps or (every > 0 and epoch % every == 0))
            content = saving.container(
                clip,
                mapper,
                adam,
                recipe,
                name=habits.name,
                epoch=epoch,
                step=step,
                data=digest,
                scaler=scaler.state_dict(),
                with_clip=habits.with_clip,
            )
            kept = habits.output / f"epoch_{epoch}.pt" if keeps else None
            saving.write(habits.output / saving.LATEST, content, kept)

    mapper.train()
    loader = load(source, clip.preprocessing, recipe, Sampler(plan, step, world), habits.workers)
    meter = Meter(recipe.batch)
    for pixels, readable, faults in loader:
        log.unreadable.update(faults)
        rate = recipe.rate(step, plan.steps)
        loss, missing = update(clip, mapper, adam, scaler, recipe, world, pixels, readable, step, rate)
        step += 1
        speed, smooth = meter(loss, missing)
        epoch_done = step % plan.steps_per_epoch == 0
        if step % habits.log_every == 0 or epoch_done:
            values = {"loss": loss, "learning_rate": rate, "pictures_per_second": speed}
            log.values(step, values | {"unreadable": float(meter.missing)})
        if epoch_done or (habits.validate_every_steps and step % habits.validate_every_steps == 0):
            log.values(step, validation(mapper))
        if epoch_done or (habits.save_every_steps and step % habits.save_every_steps == 0):
            save()
        skipped = f"  skipped {meter.missing}" if meter.missing else ""
        epoch = f"epoch {(step - 1) // plan.steps_per_epoch + 1}/{recipe.epochs}"
        report(
            TASK, step, plan.steps, f"{epoch}  {speed:,.0f}/s  loss {smooth:.3f}{skipped}{validation.note}"
        )
    if log.unreadable:
        name, reason = next(iter(sorted(log.unreadable.items())))
        where = f", all in {habits.output / UNREADABLE}" if habits.output else ""
        habits.say(
            f"{len(log.unreadable):,} unreadable pictures were skipped, such as {name} ({reason}){where}"
        )
    return mapper.eval()


def update(
    clip: FrozenCLIP,
    mapper: Im2Text,
    adam: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    world: World,
    pixels: Tensor,
    readable: Tensor,
    step: int,
    rate: float,
) -> tuple[float, int]:
    """One step on this process's share of a batch.

    Returns the whole batch's loss, and how many of its pictures could not be read.
    """
    for group in adam.param_groups:
        group["lr"] = rate
    valid = world.gather(readable.to(world.device).byte()).bool()
    if not valid.any():
        raise InputError(
            f"not one picture of a whole batch could be read (step {step + 1:,}): check --data, and "
            f"{UNREADABLE} in the output"
        )
    with world.autocast(recipe.precision):
        features = world.gather(clip.features(pixels.to(world.device, non_blocking=True)))  # (B, D)
        torch.manual_seed(seed_for(recipe.seed, "dropout", step))
        tokens = mapper(features)  # (B, W), the same in every process
        mine = tokens[world.rank * len(pixels) : (world.rank + 1) * len(pixels)]
        texts = world.gather_mine_with_gradient(clip.compose(mine))  # (B, D)
    loss = contrast(F.normalize(features, dim=-1), texts, clip.scale, valid)
    adam.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    world.sum_gradients(mapper.parameters())
    if recipe.gradient_norm is not None:
        scaler.unscale_(adam)
        nn.utils.clip_grad_norm_(mapper.parameters(), recipe.gradient_norm)
    scaler.step(adam)
    scaler.update()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise InputError(
            f"the loss is {value} at step {step + 1:,}: start anew with --precision fp32 or a lower "
            "--learning-rate"
        )
    return value, int((~valid).sum())


class Meter:
    """Running mean of the loss, pictures a second, unreadable pictures met."""

    def __init__(self, batch: int) -> None:
        self.batch, self.steps, self.missing = batch, 0, 0
        self.started, self.mean = time.perf_counter(), math.nan

    def __call__(self, loss: float, missing: int) -> tuple[float, float]:
        """Speed and smoothed loss after one more step."""
        self.steps += 1
        self.missing += missing
        self.mean = loss if self.steps == 1 else 0.95 * self.mean + 0.05 * loss
        return self.steps * self.batch / (time.perf_counter() - self.started), self.mean


class Validation:
    """Loss and recall@1 of "a photo of *" on pictures that are not trained on; their features are kept."""

    def __init__(
        self, clip: FrozenCLIP, source: Source, plan: Plan, world: World, habits: Habits, log: Log
    ) -> None:
        self.clip, self.recipe, self.world, self.habits, self.log = clip, plan.recipe, world, habits, log
        self.source = habits.validation or source
        self.numbers = np.arange(len(habits.validation)) if habits.validation else plan.held_out
        self.known: Tensor | None = None  # (N, D)
        self.note = ""

    @torch.no_grad()
    def __call__(self, mapper: Im2Text) -> dict[str, float]:
        """`validation_loss`, in batches as in training, and `validation_recall@1` in percent, over all."""
        if len(self.numbers) < 2:
            return {}
        if self.known is None:
            self.known = self.features()
        features, size = self.known, self.recipe.batch
        mapper.eval()
        with self.world.autocast(self.recipe.precision):
            texts = torch.cat([self.clip.compose(mapper(part)) for part in features.split(size)])
        mapper.train()
        images = F.normalize(features, dim=-1)
        losses, right = [], 0
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            valid = torch.ones(len(images[rows]), dtype=torch.bool, device=images.device)
            losses.append(float(contrast(images[rows], texts[rows], self.clip.scale, valid)) * len(valid))
            nearest = (texts[rows] @ images.T).argmax(dim=1)
            right += int((nearest == torch.arange(start, start + len(valid), device=nearest.device)).sum())
        found = {
            "validation_loss": sum(losses) / len(images),
            "validation_recall@1": 100 * right / len(images),
        }
        self.note = "  validation {validation_loss:.3f}, recall@1 {validation_recall@1:.1f} %".format(**found)
        return found

    def features(self) -> Tensor:
        """Of every picture that can be read, each process doing its part."""
        mine = np.array_split(self.numbers, self.world.size)[self.world.rank]
        size = self.recipe.batch
        keys = [
            [(OFFICIAL, int(number)) for number in mine[start : start + size]]
            for start in range(0, len(mine), size)
        ]
        parts: list[Tensor] = []
        for pixels, readable, faults in load(
            self.source, self.clip.preprocessing, self.recipe, keys, self.habits.workers
        ):
            self.log.unreadable.update(faults)
            with self.world.autocast(self.recipe.precision):
                features = self.clip.features(pixels.to(self.world.device))
            parts.append(features[readable.to(features.device)].cpu())
        gathered = [part for parts_of_one in self.world.objects(parts) for part in parts_of_one]
        found = torch.cat(gathered) if gathered else torch.empty(0, 1)
        if len(found) < 2:
            raise InputError("fewer than two validation pictures could be read: check --validation")
        return found.to(self.world.device)


def resume(
    clip: FrozenCLIP,
    mapper: Im2Text,
    adam: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    data: str,
    habits: Habits,
) -> int:
    """Put everything back as the latest checkpoint has it; the number of steps done."""
    if habits.output is None:
        return 0
    habits.output.mkdir(parents=True, exist_ok=True)
    latest = habits.output / saving.LATEST
    if not latest.is_file():
        return 0
    if not habits.resume:
        raise InputError(f"{habits.output} holds a run: go on with it by --resume, or give another --output")
    checkpoint = saving.read(latest, clip, recipe, data)
    mapper.load_state_dict(checkpoint.tensors("state_dict_img2text"))
    adam.load_state_dict(checkpoint.content["optimizer"])
    ours: dict[str, Any] = dict(checkpoint.content["tercet"])
    scaler.load_state_dict(ours["scaler"])
    step = int(ours["step"])
    habits.say(f"Going on from {latest} after {step:,} steps")
    return step


def read_metrics(output: Path) -> Iterator[dict[str, float]]:
    """What a run noted, line by line."""
    for line in (output / METRICS).read_text().splitlines():
        yield json.loads(line)
