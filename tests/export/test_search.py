"""The search against plain-Python greedy and beam search that keep whole histories and no cache."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tercet_export.networks.search import Caches, Now, SearchOptions, empty_caches, search, store

NextLogProbs = Callable[[list[int]], list[float]]


class ToyDecoder:
    """Next-token logits from the order-dependent sum of what a picture's tokens left behind, in float64.

    With a cache (`step`) and without one (`next_log_probs`), by different code.
    """

    def __init__(self, seed: int, batch: int, vocabulary: int, end: int, end_bias: float) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.batch, self.width = batch, 6
        self.words, self.positions = normal(vocabulary, self.width), normal(64, self.width)
        self.pictures, self.output = normal(batch, self.width), 2 * normal(self.width, vocabulary)
        self.bias = torch.zeros(vocabulary, dtype=torch.float64)
        self.bias[end] = end_bias
        self.calls = 0

    def step(self, token_ids: Tensor, now: Now, caches: Caches) -> tuple[Tensor, Caches]:
        self.calls += 1
        left = torch.tanh(self.words[token_ids] + self.positions[now.position] + self.pictures[:, None])
        cache = store(caches[0], now, (left[:, None], left[:, None]))  # one head
        total = now.visible.double() @ cache[0][:, 0] + self.words[token_ids]
        return torch.sin(total) @ self.output + self.bias, (cache,)

    def next_log_probs(self, row: int) -> NextLogProbs:
        def log_probs(history: list[int]) -> list[float]:
            left = torch.tanh(self.words[history] + self.positions[: len(history)] + self.pictures[row])
            total = left.sum(dim=0) + self.words[history[-1]]
            return (torch.sin(total) @ self.output + self.bias).log_softmax(-1).tolist()

        return log_probs

    def search(self, options: SearchOptions) -> tuple[list[list[int]], list[float]]:
        like = torch.zeros((self.batch, 1, 1, self.width), dtype=torch.float64)
        token_ids, score = search(self.step, empty_caches(1, like, options), self.batch, options)
        assert token_ids.dtype == torch.int64
        assert token_ids.shape == (self.batch, options.max_tokens)
        return token_ids.tolist(), score[:, 0].tolist()


def plain_greedy(log_probs: NextLogProbs, options: SearchOptions) -> tuple[list[int], float]:
    history, gained = [options.start], []
    while len(gained) < options.max_tokens and history[1:][-1:] != [options.end]:
        following = log_probs(history)
        history.append(max(range(len(following)), key=following.__getitem__))
        gained.append(following[history[-1]])
    words = history[1:]
    return words + [options.end] * (options.max_tokens - len(words)), sum(gained) / len(gained)


def plain_beams(log_probs: NextLogProbs, options: SearchOptions) -> tuple[list[int], float]:
    """Microsoft's GeneratorWithBeamSearch for one picture, with max_steps = max_tokens + 1."""
    longest = options.max_tokens + 1

    def penalised(total: float, length: int) -> float:
        return total / ((5 + length) / 6) ** options.length_penalty

    alive, hypotheses = [(0.0, [options.start])], []
    for length in range(1, longest):
        candidates = sorted(
            (
                (total + gained, history, token)
                for total, history in alive
                for token, gained in enumerate(log_probs(history))
            ),
            key=lambda candidate: -candidate[0],
        )[: 2 * options.beams]
        if hypotheses and max(hypotheses)[0] >= penalised(candidates[0][0], longest - 1):
            break
        alive = []
        for total, history, token in candidates:
            if token == options.end or length + 1 == longest:
                hypotheses.append((penalised(total, length), history[1:]))
            else:
                alive.append((total, [*history, token]))
            if len(alive) == options.beams:
                break
    score, words = max(hypotheses)
    return words + [options.end] * (options.max_tokens - len(words)), score


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 4),
    beams=st.integers(1, 5),
    max_tokens=st.integers(1, 9),
    spare=st.integers(1, 20),
    end_bias=st.floats(-2, 5),
    length_penalty=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    data=st.data(),
)
def test_equals_plain_search(
    seed: int,
    batch: int,
    beams: int,
    max_tokens: int,
    spare: int,
    end_bias: float,
    length_penalty: float,
    data: st.DataObject,
) -> None:
    vocabulary = 2 * beams + spare
    end = data.draw(st.integers(0, vocabulary - 1))
    options = SearchOptions(0, end, max_tokens, beams, length_penalty)
    decoder = ToyDecoder(seed, batch, vocabulary, end, end_bias)
    found_ids, found_scores = decoder.search(options)
    plain = plain_greedy if beams == 1 else plain_beams
    for row in range(batch):
        ids, score = plain(decoder.next_log_probs(row), options)
        assert found_ids[row] == ids
        assert math.isclose(found_scores[row], score, rel_tol=1e-6, abs_tol=1e-6)


@pytest.mark.parametrize("beams", [1, 4])
def test_stops_when_every_row_has_ended(beams: int) -> None:
    decoder = ToyDecoder(seed=1, batch=3, vocabulary=20, end=5, end_bias=40.0)
    found_ids, _ = decoder.search(SearchOptions(0, 5, max_tokens=30, beams=beams))
    assert found_ids == [[5] * 30] * 3
    assert decoder.calls <= 2


@pytest.mark.parametrize("beams", [1, 4])
def test_a_row_does_not_change_its_neighbours(beams: int) -> None:
    options = SearchOptions(0, 5, max_tokens=12, beams=beams)
    together, _ = ToyDecoder(seed=3, batch=4, vocabulary=20, end=5, end_bias=2.0).search(options)
    for row in range(4):
        alone = ToyDecoder(seed=3, batch=4, vocabulary=20, end=5, end_bias=2.0)
        alone.pictures, alone.batch = alone.pictures[row : row + 1], 1
        assert alone.search(options)[0] == together[row : row + 1]
