"""A decoder of a few numbers, with a cache and without, for comparing searches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tercet_export.networks.rules import FAIRSEQ, MPLUG
from tercet_export.networks.search import Caches, Now, SearchOptions, empty_caches, search, store

NextLogProbs = Callable[[list[int]], list[float]]


class ToyDecoder(torch.nn.Module):
    """Next-token logits from the order-dependent sum of what a picture's tokens left behind, in float64.

    With a cache (`step`) and without one (`logits`), by different code. `calls` counts steps.
    """

    words: Tensor
    positions: Tensor
    pictures: Tensor
    output: Tensor
    bias: Tensor

    def __init__(
        self, seed: int, batch: int, vocabulary: int, end: int, end_bias: float, sharpness: float = 2.0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.width = 6
        self.register_buffer("words", normal(vocabulary, self.width))
        self.register_buffer("positions", normal(64, self.width))
        self.register_buffer("pictures", normal(batch, self.width))
        self.register_buffer("output", sharpness * normal(self.width, vocabulary))
        self.register_buffer("bias", torch.zeros(vocabulary, dtype=torch.float64))
        self.bias[end] = end_bias
        self.calls = 0

    def step(self, pictures: Tensor, token_ids: Tensor, now: Now, caches: Caches) -> tuple[Tensor, Caches]:
        """As `search.Step`, for pictures (B, width)."""
        if not torch.compiler.is_compiling():
            self.calls += 1
        positions = torch.nn.functional.embedding(now.position, self.positions)
        left = torch.tanh(self.words[token_ids] + positions + pictures[:, None])
        cache = store(caches[0], now, (left[:, None], left[:, None]))  # one head
        total = now.visible.to(left.dtype) @ cache[0][:, 0] + self.words[token_ids]
        return torch.sin(total) @ self.output + self.bias, (cache,)

    def logits(self, rows: Tensor, histories: Tensor) -> Tensor:
        """What follows histories (N, T) of pictures number `rows` (N) -> (N, vocabulary)."""
        positions = self.positions[: histories.shape[1]]
        left = torch.tanh(self.words[histories] + positions + self.pictures[rows][:, None])
        return torch.sin(left.sum(dim=1) + self.words[histories[:, -1]]) @ self.output + self.bias

    def next_log_probs(self, row: int) -> NextLogProbs:
        """The log-probabilities of what follows a history of one picture."""

        def log_probs(history: list[int]) -> list[float]:
            followed = self.logits(torch.tensor([row]), torch.tensor([history]))
            return followed[0].log_softmax(-1).tolist()

        return log_probs

    def forward(self, pictures: Tensor, options: SearchOptions) -> tuple[Tensor, Tensor]:
        """The search for pictures (B, width)."""
        batch = pictures.shape[0]

        def step(token_ids: Tensor, now: Now, caches: Caches) -> tuple[Tensor, Caches]:
            return self.step(pictures, token_ids, now, caches)

        return search(step, empty_caches(1, pictures[:, None, None], options), batch, options)

    def search(self, options: SearchOptions) -> tuple[list[list[int]], list[float]]:
        """Ids and scores for its own pictures."""
        token_ids, score = self(self.pictures, options)
        assert token_ids.dtype == torch.int64
        assert token_ids.shape == (len(self.pictures), options.max_tokens)
        return token_ids.tolist(), score[:, 0].tolist()


@dataclass(frozen=True)
class Case:
    """A toy and a search, by a few numbers; `decoder` and `options` make them."""

    name: str
    seed: int
    batch: int
    vocabulary: int
    end_bias: float
    options: SearchOptions = field(repr=False)

    def decoder(self) -> ToyDecoder:
        """The toy."""
        return ToyDecoder(self.seed, self.batch, self.vocabulary, self.options.end, self.end_bias)


def official_cases() -> Iterator[Case]:
    """The searches whose official answers are kept in parity/search.npz (see parity/make_search.py)."""
    generator = torch.Generator().manual_seed(0)

    def choose(*options: float) -> float:
        return options[int(torch.randint(len(options), (), generator=generator))]

    for number in range(120):
        fairseq = number % 2 == 0
        beams = int(choose(2, 3, 5))
        longest = int(choose(1, 4, 8, 12))
        options = SearchOptions(
            start=0,
            end=2,
            max_tokens=longest,
            beams=beams,
            length_penalty=choose(0.6, 1.0, 2.0) if fairseq else 0.6,
            rules=FAIRSEQ if fairseq else MPLUG,
            min_tokens=min(int(choose(1, 1, 3) if fairseq else choose(0, 1, 3)), longest),
            no_repeat_ngram=int(choose(0, 2, 3)) if fairseq else 0,
            never=(1,) if fairseq else (),
        )
        yield Case(
            name=f"{'fairseq' if fairseq else 'mplug'}_{number}",
            seed=number,
            batch=int(choose(1, 2, 4)),
            vocabulary=int(choose(beams + 4, 2 * beams + 5, 30)),
            end_bias=choose(-2.0, 2.0, 4.0, 6.0),
            options=options,
        )
