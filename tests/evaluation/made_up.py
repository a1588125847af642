"""Small made-up evaluations: pictures on disk, queries in two tasks, rankings from random scores."""

import colorsys
import datetime
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tercet.composition import Composition
from tercet.compositions.scoring import ComposedQuery, Linear
from tercet.evaluation.chosen import choose
from tercet.evaluation.ranking import rank
from tercet.evaluation.results import RunReport, make_report
from tercet.evaluation.run import Chosen, TaskRun
from tercet.evaluation.values import Dataset, Metric, PictureSource, Query, Task
from tercet.lineup import Checkpoint, Lineup, Role
from tercet.messages import Caption

COLOURS = ("red", "orange", "green", "teal", "blue", "purple")
SHAPES = ("ball", "box", "star")
ASPECTS = ("background", "addition", "style", "attribute")
STARTED = datetime.datetime(2026, 3, 4, 5, 6, 7, tzinfo=datetime.UTC)

METRICS = (
    *(Metric(f"recall@{k}", "recall", k) for k in (1, 5, 10)),
    Metric("mAP@5", "average_precision", 5),
)


def make_dataset(
    folder: Path,
    queries: int = 40,
    pictures: int = 36,
    *,
    tasks: int = 2,
    answers: bool = True,
    seed: int = 1,
) -> Dataset:
    """Two tasks over the same pictures, `queries` queries each."""
    random = np.random.default_rng(seed)
    names = [f"picture-{number:03d}" for number in range(pictures)]
    folder.mkdir(parents=True, exist_ok=True)
    sources = {name: PictureSource(folder / f"{name}.jpg") for name in names}
    for number, source in enumerate(sources.values()):
        draw(number, source.path)
    made = []
    for task in range(tasks):
        of_task = []
        for number in range(queries):
            reference, first, second = random.choice(names, 3, replace=False).tolist()
            of_task.append(
                Query(
                    name=f"{task}-{number:03d}",
                    reference=reference,
                    modifications=(f"in {COLOURS[number % 6]}, on a {ASPECTS[number % 4]}",),
                    targets=(first, second)[: 1 + number % 2] if answers else (),
                    aspects=(ASPECTS[number % 4],),
                )
            )
        made.append(Task(f"task {task}", tuple(names), tuple(of_task), exclude_reference=task == 0))
    return Dataset("made-up", "val", "Every picture is ranked.", sources, tuple(made), METRICS)


def draw(number: int, path: Path) -> None:
    """A coloured shape on a pale ground, so that pictures can be told apart."""
    image = Image.new(
        "RGB", (160, 120), tuple(round(255 * c) for c in colorsys.hsv_to_rgb(number / 36, 0.1, 1))
    )
    pen = ImageDraw.Draw(image)
    fill = COLOURS[number % 6]
    if number % 3 == 0:
        pen.ellipse((50, 30, 110, 90), fill)
    elif number % 3 == 1:
        pen.rectangle((50, 30, 110, 90), fill)
    else:
        pen.polygon([(80, 20), (120, 100), (40, 100)], fill)
    image.save(path, quality=90)


def make_lineup() -> Lineup:
    role = Role(
        network="clip-vit-l-14",
        checkpoint=Checkpoint("hf://openai/clip/ViT-L-14.pt", "ab" * 32),
        precision="fp16",
        onnx_sha256="cd" * 32,
        parameters=1234,
        options={"arch": "ViT-L-14-quickgelu"},
        details={"preprocessing": {"size": 224, "kernel": "bicubic"}, "embedding_dimension": 16},
    )
    return Lineup("made-up", "f" * 16, "e" * 16, {"clip_image": role, "clip_text": role}, {"torch": "2.14"})


def make_runs(dataset: Dataset, strengths: dict[str, float], seed: int = 0) -> tuple[list[Chosen], dict]:
    """By label a run whose queries point at their first target with that strength; noise is shared."""
    random = np.random.default_rng(seed)
    names = list(dataset.pictures)
    rows = {name: row for row, name in enumerate(names)}
    gallery = unit(random.normal(size=(len(names), 16)))
    noise = {query.name: random.normal(size=16) for task in dataset.tasks for query in task.queries}
    aims = {
        query.name: rows[query.targets[0]] if query.targets else int(random.integers(len(names)))
        for task in dataset.tasks
        for query in task.queries
    }
    chosen, runs = [], {}
    for label, strength in strengths.items():
        choice = choose(label, dataset.name)
        of_label = []
        for task in dataset.tasks:
            composed = []
            for query in task.queries:
                own = random.normal(size=16)
                vector = unit(strength * gallery[aims[query.name]] + 0.2 * noise[query.name] + 0.06 * own)
                composed.append((make_composed(query, vector, with_caption=choice.recipe.name == "caption"),))
            ranking = rank(task, [made[0].vectors for made in composed], gallery, rows)
            of_label.append(TaskRun(task, tuple(composed), ranking))
        chosen.append(choice)
        runs[label] = tuple(of_label)
    return chosen, runs


def make_composed(query: Query, vector: np.ndarray, *, with_caption: bool) -> ComposedQuery:
    modification = query.modifications[0]
    caption = f"a shape like {query.reference}" if with_caption else ""
    text = f"{caption}, {modification}" if caption else modification
    return ComposedQuery(
        vector[None],
        Linear(),
        Composition(text, caption, modification, "caption-modification", caption_cut=False),
        captions=(Caption(caption, -1.5),) if caption else (),
        background="remove" if caption else None,
        background_reason="asked for" if caption else "",
    )


def make(
    folder: Path,
    strengths: dict[str, float] | None = None,
    *,
    seed: int = 0,
    dataset: Dataset | None = None,
    **shape: int | bool,
) -> tuple[Dataset, RunReport]:
    """A data set in `folder` and the report of its evaluation."""
    dataset = dataset or make_dataset(folder, **shape)
    chosen, runs = make_runs(dataset, strengths or {"text": 0.02, "caption": 0.25}, seed)
    report = make_report(
        dataset,
        make_lineup(),
        chosen,
        runs,
        command=["tercet", "evaluate", "made-up"],
        started=STARTED,
        seconds=12.5,
        seeds={"captions": 3},
    )
    return dataset, report


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
