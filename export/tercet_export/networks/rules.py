"""How the official generators rank, finish and stop, as data for the one beam search of `search.py`.

What they share is the loop itself: the candidates are every beam with every word, ranked by their summed
log-probabilities; one of the first K that ends is a hypothesis, which scores its sum over a divisor of its
length; the best hypothesis is the caption. `Rules` holds all in which they differ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

NEVER = torch.finfo(torch.float32).min / 4  # a score no hypothesis reaches; infinities would breed NaN


class Progress(NamedTuple):
    """What a search knows of each picture after a step, B pictures and K beams."""

    finished: Tensor
    """(B, K): the scores of the best hypotheses, best first; NEVER where there are fewer."""
    going: Tensor
    """(B, 1): what the best candidate that goes on would score if it ended here."""
    going_full: Tensor
    """(B, 1): what it would score if nothing more were lost until the last position."""
    top_ended: Tensor
    """Bool (B, 1): the best candidate of all has ended."""


def gnmt_divisor(length: Tensor | int, exponent: float) -> Tensor | float:
    """((5 + length) / 6) ** exponent, of Wu et al. 2016."""
    return ((5 + length) / 6) ** exponent


def length_divisor(length: Tensor | int, exponent: float) -> Tensor | float:
    """Length ** exponent."""
    return length**exponent


@dataclass(frozen=True)
class Rules:
    """What sets one beam search apart from another.

    Attributes:
        divisor: of a hypothesis's length (its tokens, the end included) and `SearchOptions.length_penalty`.
        done: from `Progress`, bool (B, 1): nothing more is taken in for this picture.
        candidates: how many are ranked for each beam. Two leave K that go on whatever ends. With one, those
            that have ended go on as well, as if they had not.
        last: at the last position "keep" ends every candidate with its token, "cut" ends it without, and
            "end" allows only the end, one position after `max_tokens`.
    """

    divisor: Callable[[Tensor | int, float], Tensor | float]
    done: Callable[[Progress], Tensor]
    candidates: int = 2
    last: Literal["keep", "cut", "end"] = "keep"


MICROSOFT = Rules(
    gnmt_divisor,
    done=lambda progress: progress.finished[:, :1] >= progress.going_full,
    last="cut",
)
"""`GeneratorWithBeamSearch` of microsoft/GenerativeImage2Text (layers/decoder.py), with max_steps =
max_tokens + 1."""

TRANSFORMERS = Rules(
    length_divisor,
    done=lambda progress: progress.finished[:, -1:] >= progress.going,
)
"""`GenerationMixin._beam_search` of transformers 5 with early_stopping=False: done when all of the best K
beat what the best beam would score now."""

FAIRSEQ = Rules(
    length_divisor,
    done=lambda progress: progress.finished[:, -1:] > NEVER / 2,
    last="end",
)
"""fairseq's `SequenceGenerator`, as OFA uses it: done with K hypotheses."""

MPLUG = Rules(
    gnmt_divisor,
    done=lambda progress: progress.top_ended,
    candidates=1,
)
"""`TextGenerator` of mPLUG (ModelScope, models/multi_modal/mplug/predictor.py): done when the best candidate
has ended."""

GREEDY = Rules(
    length_divisor,
    done=lambda progress: progress.top_ended,
    candidates=1,
)
"""The likeliest token at each step, when there is one beam: scored, with exponent 1, by its mean
log-probability."""
