"""What a captioner's own network gives for captions that something else found: so two searches are compared.

A search decides between words. Where two of them are as good as equally likely, the least rounding decides,
and all that follows may be another caption: a difference between ids says nothing yet.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tercet_export.networks.captioner import Captioner
from tercet_export.networks.rules import GREEDY
from tercet_export.networks.search import Now, read_prompt


class Scored(NamedTuple):
    """What a network gives for B captions that its search decides on in S steps."""

    log_probs: Tensor
    """F32 (B, S): of each token, given those before it."""
    length: Tensor
    """I64 (B, 1): how many tokens count, the end included."""
    score: Tensor
    """F32 (B, 1): as the search would score the caption."""
    divisor: Tensor
    """F32 (B, 1): what the score is the sum of `length` log-probabilities over."""


@torch.inference_mode()
def score_captions(captioner: Captioner, foreground: Tensor, token_ids: Tensor) -> Scored:
    """Decode captions i64 (B, L) of pictures u8 (B, V, V, 3), token by token as the search would.

    Rules that cut the last token leave an end in its place. The search takes the likeliest there, so that one
    is counted.
    """
    options = captioner.options
    rules, exponent = options.rules, options.length_penalty
    if options.beams == 1:
        rules, exponent = GREEDY, 1.0
    batch, steps, first = len(foreground), options.steps, len(options.prompt)
    step, empty = captioner.decoder(foreground)
    caches = read_prompt(step, empty, batch, options)
    last = torch.full((batch, 1), (options.start, *options.prompt)[-1])
    ends = torch.full((batch, steps - token_ids.shape[1]), options.end)
    wanted = torch.cat([token_ids, ends], dim=1)  # (B, S)
    log_probs = torch.zeros(wanted.shape)
    rows = torch.arange(options.cache_rows)
    seen = rows < first
    for position in range(steps):
        row = first + position * options.beams
        seen = seen | (rows == row)
        now = Now(torch.tensor(first + position), rows[row : row + 1], seen.expand(batch, 1, -1))
        logits, caches = step(last, now, caches)
        given = logits[:, 0].log_softmax(dim=-1)  # (B, vocabulary)
        last = wanted[:, position : position + 1]
        chosen = given.gather(1, last)
        if rules.last == "cut" and position == steps - 1:
            chosen = given.max(dim=-1, keepdim=True).values
        log_probs[:, position : position + 1] = chosen
    words = ((wanted == options.end).cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
    length = (words + 1).clamp(max=steps)  # (B, 1)
    divisor = torch.as_tensor(rules.divisor(length, exponent), dtype=torch.float32)
    counted = torch.arange(steps) < length
    return Scored(log_probs, length, (log_probs * counted).sum(dim=1, keepdim=True) / divisor, divisor)
