"""Every data set in miniature, evaluated by the command line on a real Triton, against brute force.

The calculation shares nothing with the evaluation but the client that embeds: queries, answers and galleries
are those of the miniature, scores are sorted in a list, and the metrics are written out once more.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tercet import Client
from tercet.evaluation.datasets import DATASETS, load_dataset
from tercet.server import EmbeddedServer
from tests.evaluation.command import Run
from tests.evaluation.miniatures import Miniature, Part, Truth


def average_precision(ranks: list[int], targets: int, k: int) -> float:
    hits = [rank in ranks for rank in range(1, k + 1)]
    total = sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit)
    return total / min(targets, k)


def recall(ranks: list[int], targets: int, k: int) -> float:
    return float(bool(ranks) and min(ranks) <= k)


def share(ranks: list[int], targets: int, k: int) -> float:
    return sum(rank <= k for rank in ranks) / (targets + 1e-5)


# By data set: metrics of the right answers' ranks, and of the main answer's alone.
OF_ALL: dict[str, dict[str, tuple[Callable[[list[int], int, int], float], int]]] = {
    "circo": {f"mAP@{k}": (average_precision, k) for k in (5, 10, 25, 50)},
    "imagenet-r": {f"recall@{k}": (share, k) for k in (10, 50)},
    "world": {f"recall@{k}": (recall, k) for k in (1, 5, 10, 50)} | {"mAP@10": (average_precision, 10)},
}
OF_MAIN: dict[str, dict[str, int]] = {
    "cirr": {f"recall@{k}": k for k in (1, 5, 10, 50)},
    "fashioniq": {f"recall@{k}": k for k in (10, 50)},
    "circo": {f"recall@{k}": k for k in (5, 10, 25, 50)},
    "genecis": {f"recall@{k}": k for k in (1, 2, 3)},
    "coco": {f"recall@{k}": k for k in (1, 5, 10)},
}
SUBSET = {f"recall_subset@{k}": k for k in (1, 2, 3)}


def ranked(scores: dict[str, float], salt: str) -> list[str]:
    def order(name: str) -> tuple[float, bytes]:
        return -scores[name], hashlib.sha256(f"{salt}\0{name}".encode()).digest()

    return sorted(scores, key=order)


class BruteForce:
    """Embeds pictures one by one and ranks by sorting."""

    def __init__(self, mini: Miniature, part: Part, client: Client) -> None:
        loaded = load_dataset(mini.name, mini.root, **mini.options)
        self.client, self.part = client, part
        # What loaders cut or paint is tested elsewhere, against calculations of its own.
        self.pictures = {
            name: part.files[name] if source.treatment is None else source.encoded()
            for name, source in loaded.pictures.items()
        }
        self.vectors: dict[str, np.ndarray] = {}

    def picture(self, name: str) -> np.ndarray:
        if name not in self.vectors:
            self.vectors[name] = self.client.embed_images(self.pictures[name]).astype(np.float64)
        return self.vectors[name]

    def rank(self, query: Truth, embedding: np.ndarray, names: Sequence[str], salt: str = "") -> list[str]:
        taken = {query.reference} if self.part.exclude_reference else set()
        return ranked(
            {name: float(self.picture(name) @ embedding) for name in names if name not in taken}, salt
        )

    def numbers(self, name: str, embeddings: list[np.ndarray]) -> dict[str, dict[str, float]]:
        """By task and metric, in 0..1."""
        by_task: dict[str, dict[str, list[float]]] = {}
        for query, embedding in zip(self.part.queries, embeddings, strict=True):
            gallery = self.part.galleries[query.task] if query.candidates is None else query.candidates
            order = self.rank(
                query, embedding, sorted(gallery), "" if query.candidates is None else query.name
            )
            ranks = [order.index(target) + 1 for target in query.targets if target in order]
            found = {
                metric: function(ranks, len(query.targets), k)
                for metric, (function, k) in OF_ALL.get(name, {}).items()
            }
            for metric, k in OF_MAIN.get(name, {}).items():
                found[metric] = float(query.targets[0] in order[:k])
            if query.subset:
                within = self.rank(query, embedding, sorted(query.subset))
                found |= {metric: float(query.targets[0] in within[:k]) for metric, k in SUBSET.items()}
            for metric, value in found.items():
                by_task.setdefault(query.task, {}).setdefault(metric, []).append(value)
        return {
            task: {metric: float(np.mean(values)) for metric, values in of_task.items()}
            for task, of_task in by_task.items()
        }


def embeddings_of(way: str, brute: BruteForce, template: str) -> list[np.ndarray]:
    """The queries' unit vectors, each wording by itself and then averaged."""
    client, embeddings = brute.client, []
    for query in brute.part.queries:
        vectors = []
        for modification in query.modifications:
            if way == "sum":
                text = client.embed_texts(template.format(modification=modification))
                vector = text.astype(np.float64) + brute.picture(query.reference)
            elif way == "pic2word":
                prompt = template.format(modification=modification)
                token = client.pseudo_tokens(brute.pictures[query.reference])
                vector = client.embed_texts(prompt, pseudo_tokens=token).astype(np.float64)
            else:
                composed = client.compose_queries(
                    brute.pictures[query.reference],
                    modification,
                    background="remove",
                    template=template,
                )
                vector = composed.embedding.astype(np.float64)
            vectors.append(vector / np.linalg.norm(vector))
        mean = np.mean(vectors, axis=0)
        embeddings.append((mean / np.linalg.norm(mean)).astype(np.float32).astype(np.float64))
    return embeddings


USUAL = {
    "sum": "{modification}",
    "pic2word": "a photo of * , {modification}",
    "caption": "{caption}, {modification}",
}

# What the data sets' own papers ask with, where it is not the usual template.
TEMPLATES: dict[str, dict[str, str]] = {
    "coco": {
        "sum": "a photo of {modification}",
        "pic2word": "a photo of * and {modification}",
        "caption": "a photo of {caption} and {modification}",
    },
    "imagenet-r": {
        "sum": "a {modification} of",
        "pic2word": "a {modification} of *",
        "caption": "a {modification} of {caption}",
    },
    "fashioniq": {"caption": "{caption} that {modification}"},
}


@pytest.mark.parametrize("name", DATASETS)
def test_numbers_equal_a_brute_force_calculation(
    name: str,
    miniature: Callable[..., Miniature],
    server: EmbeddedServer,
    client: Client,
    run: Run,
    tmp_path: Path,
) -> None:
    mini = miniature(name)
    ways = {"sum": "sum", "pic2word": "pic2word", "caption": "caption background=remove"}
    compositions = [argument for label in ways.values() for argument in ("-c", label)]
    code, output, errors = run(
        "evaluate", name, "--data", mini.root, "--server", server.grpc_address, "--in-flight", "1",
        "--cache", tmp_path / "cache", "-o", tmp_path / "report", *compositions,
    )  # fmt: skip
    assert code == 0, errors
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    brute = BruteForce(mini, mini.parts["val" if "val" in mini.parts else "test"], client)
    for (way, label), evaluation in zip(ways.items(), report["compositions"], strict=True):
        assert evaluation["label"] == label
        template = (USUAL | TEMPLATES.get(name, {}))[way]
        wanted = brute.numbers(name, embeddings_of(way, brute, template))
        numbers = evaluation["numbers"]
        for task, of_task in wanted.items():
            found = {metric: number["value"] for metric, number in numbers["tasks"][task].items()}
            assert found == pytest.approx(of_task, abs=1e-9), (way, task)
        overall = {metric: number["value"] for metric, number in numbers["overall"].items()}
        means = {metric: np.mean([of_task[metric] for of_task in wanted.values()]) for metric in overall}
        assert overall == pytest.approx(means, abs=1e-9)
    assert "R@" in output or "mAP@" in output
    assert (tmp_path / "report" / "index.html").exists()
