"""Captions compared: a search may fall either way of a tie, and no other way."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tercet.errors import ValidationError
from tercet_export import gate
from tercet_export.captions import score_captions
from tercet_export.networks.captioner import Captioner
from tercet_export.registry import Loaded, Options, network
from tercet_export.roles import ROLES
from tercet_export.validate import compare_with_network, reference
from tests.tiny import git_weights, write_tiny_lineup

ROLE = ROLES["captioner"]
Change = Callable[[dict[str, np.ndarray]], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_lineup(tmp_path_factory.mktemp("captions")).parent


def load(folder: Path, beams: int, twins: tuple[int, int] | None = None) -> Loaded:
    """The tiny GIT; two of its words may be alike, so that every choice between them is a tie."""
    weights = git_weights()
    if twins:
        for name in ("textual.embedding.words.weight", "textual.output.weight", "textual.output.bias"):
            weights[name][twins[1]] = weights[name][twins[0]]
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    options = Options(arch=str(folder / "git.json"), beams=beams)
    return network("git-base").load(folder / "weights.safetensors", options)


def search_results(loaded: Loaded, batch: int = 5) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    inputs = ROLE.example_inputs(loaded.sizes, loaded.details or {}, batch)
    return inputs, reference(loaded, ROLE, inputs)


def commonest_word(ids: np.ndarray, end: int = 102) -> int:
    words, counts = np.unique(ids[ids != end], return_counts=True)
    return int(words[np.argmax(counts)])


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_the_network_scores_its_own_captions_as_its_search_does(beams: int, folder: Path) -> None:
    loaded = load(folder, beams)
    inputs, expected = search_results(loaded)
    scored = score_captions(
        loaded.graph, torch.from_numpy(inputs["foreground"]), torch.from_numpy(expected["token_ids"])
    )
    np.testing.assert_allclose(scored.score.numpy(), expected["score"], atol=1e-5)


def checked(loaded: Loaded, change: Change) -> dict[str, float]:
    """Validation of a graph that answers as the network does, but for `change`."""

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        results = reference(loaded, ROLE, inputs)
        change(results)
        return list(results.values())

    return compare_with_network(lambda: run, loaded, ROLE)


@pytest.mark.parametrize("beams", [1, 2])
def test_either_of_two_equal_words(beams: int, folder: Path) -> None:
    _, expected = search_results(load(folder, beams))
    word = commonest_word(expected["token_ids"])
    other = next(w for w in range(104, 120) if w != word)
    loaded = load(folder, beams, (word, other))

    def swap(results: dict[str, np.ndarray]) -> None:
        ids = results["token_ids"]
        results["token_ids"] = np.where(ids == word, other, np.where(ids == other, word, ids))

    before = search_results(loaded)[1]["token_ids"]
    assert np.isin(before, (word, other)).any()
    assert checked(loaded, swap)["token_ids"] == 0


def test_another_word_is_refused(folder: Path) -> None:
    def change(results: dict[str, np.ndarray]) -> None:
        results["token_ids"][0, 0] = 104 if results["token_ids"][0, 0] != 104 else 105

    with pytest.raises(ValidationError, match="token_ids"):
        checked(load(folder, 2), change)


def test_a_tie_with_a_wrong_score_is_refused(folder: Path) -> None:
    _, expected = search_results(load(folder, 1))
    word = commonest_word(expected["token_ids"])
    other = next(w for w in range(104, 120) if w != word)

    def change(results: dict[str, np.ndarray]) -> None:
        ids = results["token_ids"]
        results["token_ids"] = np.where(ids == word, other, np.where(ids == other, word, ids))
        results["score"] = results["score"] + np.float32(0.1)

    with pytest.raises(ValidationError, match="score"):
        checked(load(folder, 1, (word, other)), change)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_ids_that_are_no_words_are_refused(token: int, folder: Path) -> None:
    def change(results: dict[str, np.ndarray]) -> None:
        results["token_ids"][:, 0] = token

    with pytest.raises(ValidationError, match="token_ids"):
        checked(load(folder, 1), change)


def gated(loaded: Loaded, found: dict[str, np.ndarray], inputs: dict, expected: dict) -> dict[str, float]:
    return gate.captions(loaded, inputs["foreground"], found, expected)


def true_scores(loaded: Loaded, inputs: dict, token_ids: np.ndarray) -> np.ndarray:
    assert isinstance(loaded.graph, Captioner)
    pictures = torch.from_numpy(inputs["foreground"])
    return score_captions(loaded.graph, pictures, torch.from_numpy(token_ids)).score.numpy()


def test_gate_takes_other_captions_whose_scores_are_true(folder: Path) -> None:
    """fp16 found other captions, and knows how likely they are."""
    loaded = load(folder, 2)
    inputs, expected = search_results(loaded, 8)
    ids = np.roll(expected["token_ids"], 1, axis=0)
    assert (ids != expected["token_ids"]).any(axis=1).mean() > 0.05
    found = {"token_ids": ids, "score": true_scores(loaded, inputs, ids)}
    assert gated(loaded, found, inputs, expected)["score"] < 1e-5


def test_gate_refuses_other_captions_whose_scores_are_wrong(folder: Path) -> None:
    loaded = load(folder, 2)
    inputs, expected = search_results(loaded, 8)
    ids = np.roll(expected["token_ids"], 1, axis=0)
    found = {"token_ids": ids, "score": true_scores(loaded, inputs, ids) + 1}
    with pytest.raises(ValidationError, match=r"captions are others.*precision fp32"):
        gated(loaded, found, inputs, expected)


def test_gate_takes_the_same_captions(folder: Path) -> None:
    loaded = load(folder, 2)
    inputs, expected = search_results(loaded, 8)
    assert gated(loaded, expected, inputs, expected)["token_ids"] == 0
