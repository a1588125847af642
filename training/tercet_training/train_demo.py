"""All the demo's networks from nothing: render, train, score on unseen pictures, save.

Two processes train side by side, on two cores one thread each: networks this small gain little from a second.
"""

import dataclasses
import importlib.metadata
import json
import multiprocessing
import queue
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import nn

from tercet_training import train_clip, train_git, train_isnet, world
from tercet_training.evaluate_demo import Networks, compare, load_networks, recall
from tercet_training.loop import Report, Schedule
from tercet_training.pic2word.frozen import load_clip
from tercet_training.pic2word.recipe import Recipe
from tercet_training.pic2word.saving import save_for_a_lineup
from tercet_training.pic2word.sources import Arrays
from tercet_training.pic2word.train import train as train_pic2word
from tercet_training.pic2word.world import World
from tercet_training.pictures import Pictures, open_pictures, render_pictures, sample_scenes
from tercet_training.progress import Display, console
from tercet_training.texts import cut_merges, vocabulary_lines, world_words
from tercet_training.world import Gallery, make_gallery

# Where the demo's lineup reads them.
DESTINATION = Path(__file__).resolve().parents[2] / "export" / "tercet_export" / "lineups" / "demo"
LIMIT = 32 * 2**20
NETWORKS = ("isnet", "git", "clip", "pic2word")
# What the lineup reads: Pic2Word's sizes follow from its tensors.
PUBLISHED = (
    *(f"{name}.safetensors" for name in NETWORKS),
    *(f"{name}.json" for name in NETWORKS if name != "pic2word"),
    "merges.txt",
    "vocab.txt",
)
# Tasks that can be done again from what is published.
ALONE = ("pic2word",)
PROCESSES = 2
ENCODER = "encoder.safetensors"


@dataclass(frozen=True)
class Plan:
    """How much of everything. Training pictures have the seed, the validation gallery the next one."""

    pictures: int
    gallery: int
    queries: int
    isnet: Schedule
    encoder: Schedule
    git: Schedule
    clip: Schedule
    pic2word: Recipe


FULL = Plan(
    pictures=32_000,
    gallery=1200,
    queries=400,
    isnet=Schedule(700, 64, 3e-3, weight_decay=0.0),
    encoder=Schedule(900, 64, 2e-3),
    git=Schedule(1300, 64, 2e-3),
    clip=Schedule(1250, 128, 2e-3),
    pic2word=Recipe(epochs=1, batch=128, learning_rate=1e-3, middle=256),
)
QUICK = Plan(
    pictures=64,
    gallery=36,
    queries=16,
    isnet=Schedule(2, 8, 1e-3),
    encoder=Schedule(2, 8, 1e-3),
    git=Schedule(2, 8, 1e-3),
    clip=Schedule(2, 8, 1e-3),
    pic2word=Recipe(epochs=1, batch=16, middle=8),
)


@dataclass(frozen=True)
class Work:
    """What a training process must know."""

    rendered: Path  # holds the pictures
    folder: Path  # takes the trained networks
    seed: int
    plan: Plan
    threads: int

    def pictures(self) -> Pictures:
        """The training pictures, rendered before."""
        return open_pictures(sample_scenes(self.seed, self.plan.pictures), self.rendered)


def work_on(task: "Task", work: Work, reports: Any) -> float:
    """In a process of its own: do the task, reporting to a queue. Returns the minutes it took."""
    torch.set_num_threads(work.threads)
    started = time.perf_counter()
    task(work, lambda *report: reports.put(report))
    return (time.perf_counter() - started) / 60


def make_isnet(work: Work, report: Report) -> None:
    """IS-Net, and its masks of the training pictures."""
    pictures = work.pictures()
    network = train_isnet.train_isnet(pictures, work.plan.isnet, work.seed, report)
    save_network(network, dataclasses.asdict(train_isnet.CONFIG), work.folder / "isnet")
    np.save(work.folder / "masks.npy", train_isnet.predict_masks(network, pictures.scene))


def make_encoder(work: Work, report: Report) -> None:
    """What the captioner starts from."""
    network = train_git.train_encoder(work.pictures(), work.plan.encoder, work.seed, report)
    save_file(network.state_dict(), work.folder / ENCODER)


def make_clip(work: Work, report: Report) -> None:
    """CLIP and its merges."""
    merges = cut_merges(world_words())
    network = train_clip.train_clip(work.pictures(), merges, work.plan.clip, work.seed, report)
    (work.folder / "merges.txt").write_text(merges, encoding="utf-8")
    save_network(network, train_clip.config(network.vocab_size), work.folder / "clip")


def make_git(work: Work, report: Report) -> None:
    """GIT and its vocabulary."""
    lines = vocabulary_lines(world_words())
    predicted = np.load(work.folder / "masks.npy", mmap_mode="r")
    start = train_git.new_classifier()
    start.load_state_dict(load_file(work.folder / ENCODER))
    network = train_git.train_git(work.pictures(), predicted, lines, start, work.plan.git, work.seed, report)
    (work.folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    save_network(network, dataclasses.asdict(network.config), work.folder / "git")


def make_pic2word(work: Work, report: Report) -> None:
    """Pic2Word's mapping network for that CLIP, as it is stored."""
    clip = load_clip(
        work.folder / "clip.safetensors", str(work.folder / "clip.json"), str(work.folder / "merges.txt")
    )
    recipe = dataclasses.replace(work.plan.pic2word, seed=work.seed)
    mapper = train_pic2word(clip, Arrays(work.pictures().view), recipe, report, World())
    save_for_a_lineup(work.folder / "pic2word.safetensors", clip, mapper)


Task = Callable[[Work, Report], None]
# In the order in which they start, each with the tasks whose results it needs.
TASKS: dict[str, tuple[Task, frozenset[str]]] = {
    "isnet": (make_isnet, frozenset()),
    "encoder": (make_encoder, frozenset()),
    "clip": (make_clip, frozenset()),
    "pic2word": (make_pic2word, frozenset({"clip"})),
    "git": (make_git, frozenset({"isnet", "encoder"})),
}


def save_network(network: nn.Module, architecture: Mapping[str, Any], path: Path) -> None:
    """`path`.safetensors, the official state dict in f16, and `path`.json, its architecture.

    Tied tensors, one in memory, are stored twice, as officially.
    """
    state = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).clone().contiguous()
        for name, tensor in network.state_dict().items()
    }
    save_file(state, path.with_suffix(".safetensors"))
    write_json(path.with_suffix(".json"), architecture)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Indented JSON with a last newline."""
    path.write_text(json.dumps(values, indent=1) + "\n")


def train_side_by_side(work: Work, display: Display, tasks: Collection[str]) -> dict[str, float]:
    """These tasks, two at a time; returns the minutes that each took."""
    context = multiprocessing.get_context("spawn")
    running: dict[str, Future[float]] = {}
    minutes: dict[str, float] = {}
    with context.Manager() as manager, ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        reports = manager.Queue()
        while len(minutes) < len(tasks) or not reports.empty():
            for name, (task, needs) in TASKS.items():
                if name in tasks and name not in running and needs & set(tasks) <= minutes.keys():
                    running[name] = pool.submit(work_on, task, work, reports)
            for name, future in running.items():
                if future.done():
                    minutes[name] = future.result()
            try:
                display(*reports.get(timeout=0.2))
            except queue.Empty:
                continue
    return minutes


def score_captions(networks: Networks, pictures: Pictures, masks: np.ndarray) -> dict[str, float]:
    """Share of greedy captions that are the usual wording to the word, of whole pictures and of cut-outs."""
    whole = train_git.caption_pictures(networks.git, networks.lines, pictures.view)
    cut = train_git.caption_pictures(networks.git, networks.lines, train_git.cut_out(pictures.view, masks))
    usual = [world.caption(scene) for scene in pictures.scenes]
    alone = [world.caption(scene, background=False, style=False) for scene in pictures.scenes]
    return {
        "whole_picture": float(np.mean([said == meant for said, meant in zip(whole, usual, strict=True)])),
        "cut_out": float(np.mean([said == meant for said, meant in zip(cut, alone, strict=True)])),
    }


def score(networks: Networks, gallery: Gallery, pictures: Pictures) -> dict[str, Any]:
    """Masks, captions and recall on a gallery that the networks have not seen."""
    masks = train_isnet.predict_masks(networks.isnet, pictures.scene)
    return {
        "masks": train_isnet.score_masks(masks, pictures.mask),
        "captions": score_captions(networks, pictures, masks),
        "recall": recall(gallery, compare(networks, gallery, pictures)),
    }


def recall_table(gallery: Gallery, scores: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Recall@1 / @10 by way of asking and kind of modification."""
    table = Table(title="Composed queries on pictures not seen in training: recall@1 / recall@10, %")
    table.add_column("way of asking")
    for group in next(iter(scores.values())):
        count = sum(group in ("all", query.kind) for query in gallery.queries)
        table.add_column(f"{group} ({count})", justify="right")
    for way, groups in scores.items():
        table.add_row(way, *(f"{cell['recall@1']:.1f} / {cell['recall@10']:.1f}" for cell in groups.values()))
    return table


def publish(folder: Path, output: Path, report: Mapping[str, Any]) -> None:
    """Copy the finished files to where the lineup reads them, with the report.

    Raises:
        ValueError: the weights are larger than what the repository may carry.
    """
    total = sum((folder / f"{name}.safetensors").stat().st_size for name in NETWORKS)
    if total > LIMIT:
        raise ValueError(f"the weights have {total:,} bytes, the repository carries {LIMIT:,} at most")
    output.mkdir(parents=True, exist_ok=True)
    for name in PUBLISHED:
        (output / name).write_bytes((folder / name).read_bytes())
    write_json(output / "training.json", report)


def train_demo(
    output: Path, seed: int, plan: Plan, cache: Path | None, threads: int, only: str | None = None
) -> dict[str, Any]:
    """Render, train, score and save.

    Args:
        output: takes weights, architectures, vocabularies and `training.json`, when all is done.
        seed: decides the pictures, the captions and the first weights.
        plan: how much of everything.
        cache: keeps the rendered pictures for the next run; None keeps nothing.
        threads: CPU threads, shared by the two processes.
        only: train this task alone, one of ALONE, beside the other networks that `output` has.

    Returns:
        What is written to `training.json`: scores, minutes, seeds, versions.
    """
    started = time.perf_counter()
    display = Display()
    earlier: dict[str, Any] = {}
    if only:
        earlier = json.loads((output / "training.json").read_text())
        seed = earlier["seed"]
    with tempfile.TemporaryDirectory(prefix="tercet-train-") as scratch, display.bars:
        folder = Path(scratch)
        rendered = cache or folder
        gallery = make_gallery(seed + 1, plan.gallery, plan.queries)
        unseen = render(gallery.scenes, rendered, "Render the gallery", display)
        render(sample_scenes(seed, plan.pictures), rendered, "Render pictures", display)
        minutes = {"render": (time.perf_counter() - started) / 60}
        if only:
            for name in set(PUBLISHED) - {f"{only}.safetensors"}:
                (folder / name).write_bytes((output / name).read_bytes())
        work = Work(rendered, folder, seed, plan, max(1, threads // PROCESSES))
        minutes |= train_side_by_side(work, display, [only] if only else TASKS)
        torch.set_num_threads(threads)
        networks = load_networks(folder)
        scores = score(networks, gallery, unseen)
        minutes["all"] = (time.perf_counter() - started) / 60
        report = {
            "seed": seed,
            "scores": scores,
            "minutes": earlier.get("minutes", {})
            | {name: round(value, 1) for name, value in minutes.items() if not only or name == only},
            "threads": threads,
            "parameters": {
                name: sum(parameter.numel() for parameter in network.parameters())
                for name, network in (
                    ("isnet", networks.isnet),
                    ("git", networks.git),
                    ("clip", networks.clip),
                    ("pic2word", networks.pic2word),
                )
            },
            "plan": dataclasses.asdict(plan),
            "versions": {
                package: importlib.metadata.version(package)
                for package in ("torch", "open_clip_torch", "numpy", "Pillow")
            },
        }
        publish(folder, output, report)
    console.print(recall_table(gallery, scores["recall"]))
    console.print({name: scores[name] for name in ("masks", "captions")}, minutes)
    console.print(f"Written to {output}")
    return report


def render(scenes: list[world.Scene], folder: Path, task: str, display: Display) -> Pictures:
    """`render_pictures` with a bar."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        display(task, done, len(scenes), "")

    return render_pictures(scenes, folder, advance)
