"""Greedy and beam search as one loop inside the exported graph, for any captioner that can decode one token.

A captioner gives its cached step and preallocated caches; the search keeps the hypotheses. The loop is
`torch.while_loop`: one ONNX `Loop`, which stops when every row of the batch has ended. Outside an export the
same functions run as plain Python.

Beams never move a cache. Each beam owns one slot at every position; what it attends to is a mask over all the
slots of its row, which names for each position the slot that its hypothesis came through.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

Caches = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, Tensor, Caches], tuple[Tensor, Caches]]
"""One token further, for K beams and L = max_tokens: (token_ids i64 [B, K], position i64 [], visible bool
[B, K, L * K], caches) -> (logits f32 [B, K, vocabulary], caches). The keys and values of beam k at a position
belong in row position * K + k of the caches (`store`); `visible` already counts the current token in."""

NEVER = torch.finfo(torch.float32).min / 4  # a score no hypothesis reaches; infinities would breed NaN


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        start: id the decoder begins with; not part of the result.
        end: id that ends a caption, and fills the rest of its row.
        max_tokens: length L of the result. Greedy search may fill it without an end, beam search
            always ends within it.
        beams: hypotheses kept per picture; 1 is greedy search.
        length_penalty: exponent of GNMT's penalty ((5 + length) / 6), for beams.
    """

    start: int
    end: int
    max_tokens: int
    beams: int = 1
    length_penalty: float = 0.6


def search(step: Step, caches: Caches, batch: int, options: SearchOptions) -> tuple[Tensor, Tensor]:
    """Captions for `batch` pictures.

    Returns:
        token_ids: i64 [batch, max_tokens], without the start, filled with the end after the first.
        score: f32 [batch, 1]. Greedy: the mean log-probability of the tokens, the end included. Beams: the
            sum of the log-probabilities divided by the length penalty.
    """
    return (greedy if options.beams == 1 else beam_search)(step, caches, batch, options)


def greedy(step: Step, caches: Caches, batch: int, options: SearchOptions) -> tuple[Tensor, Tensor]:
    """The likeliest token at each step; see `search`."""
    length, end = options.max_tokens, options.end
    device = caches[0].device

    def unfinished(position: Tensor, last: Tensor, ended: Tensor, *_: Tensor) -> Tensor:
        return (position < length) & ~ended.all()

    def body(
        position: Tensor, last: Tensor, ended: Tensor, token_ids: Tensor, total: Tensor, *caches: Tensor
    ) -> tuple[Tensor, ...]:
        positions = torch.arange(length, device=last.device)
        visible = (positions <= position).expand(last.shape[0], 1, length)
        logits, caches = step(last, position, visible, caches)
        best, token = logits[:, 0].log_softmax(dim=-1).max(dim=-1, keepdim=True)  # (B, 1)
        token = token.masked_fill(ended, end)
        total = total + best.masked_fill(ended, 0.0)
        token_ids = torch.where(positions == position, token, token_ids)
        return position + 1, token, ended | (token == end), token_ids, total, *caches

    state = (
        torch.zeros((), dtype=torch.int64, device=device),
        torch.full((batch, 1), options.start, device=device),
        torch.zeros((batch, 1), dtype=torch.bool, device=device),
        torch.full((batch, length), end, device=device),
        torch.zeros((batch, 1), device=device),
        *caches,
    )
    _, _, _, token_ids, total, *_ = run(unfinished, body, state)
    words = (token_ids != end).sum(dim=-1, keepdim=True)
    return token_ids, total / (words + 1).clamp(max=length)


def beam_search(step: Step, caches: Caches, batch: int, options: SearchOptions) -> tuple[Tensor, Tensor]:
    """Beam search as `GeneratorWithBeamSearch` of microsoft/GenerativeImage2Text (layers/decoder.py) does it.

    Twice as many candidates as beams are ranked. One that ends becomes a hypothesis unless the beams are
    filled by candidates above it that go on; at the last position every candidate ends, whatever its
    token. A hypothesis scores its summed log-probabilities, the last token's included, over ((5 + n) /
    6) ** length_penalty; n counts the start but not the end. A row is done when its best hypothesis
    beats what its best candidate would score at full length. See `search`.
    """
    length, end, beams = options.max_tokens, options.end, options.beams
    device = caches[0].device

    def penalty(words: Tensor | int) -> Tensor | float:
        return ((5 + words) / 6) ** options.length_penalty

    def unfinished(position: Tensor, done: Tensor, *_: Tensor) -> Tensor:
        return (position < length) & ~done.all()

    def body(
        position: Tensor,
        done: Tensor,  # (B, 1)
        scores: Tensor,  # (B, K), summed log-probabilities
        last: Tensor,  # (B, K), the tokens to decode
        token_ids: Tensor,  # (B, K, L), the hypotheses so far, filled with the end
        slots: Tensor,  # (B, K, L), the slot of each position that a hypothesis came through
        best_score: Tensor,  # (B, 1)
        best_ids: Tensor,  # (B, L)
        *caches: Tensor,
    ) -> tuple[Tensor, ...]:
        positions = torch.arange(length, device=last.device)
        each_beam = torch.arange(beams, device=last.device)
        slots = torch.where(positions == position, each_beam[:, None], slots)
        visible = (slots[..., None] == each_beam) & (positions <= position)[:, None]  # (B, K, L, K)
        logits, caches = step(last, position, visible.flatten(2), caches)

        vocabulary = logits.shape[-1]
        totals = (logits.log_softmax(dim=-1) + scores[..., None]).flatten(1)
        candidate, index = totals.topk(2 * beams, dim=-1)  # (B, 2 K), best first
        parent, token = index // vocabulary, index % vocabulary
        done = done | (best_score >= candidate[:, :1] / penalty(length))

        ends = (token == end) | (position == length - 1)
        going = (~ends).long()
        ranked_in = going.cumsum(dim=-1) - going < beams
        finished = torch.where(ends & ranked_in & ~done, candidate / penalty(position + 1), NEVER)
        score, which = finished.max(dim=-1, keepdim=True)  # (B, 1)
        ids = take_beams(token_ids, parent.gather(1, which))[:, 0]
        better = score > best_score
        best_score = torch.where(better, score, best_score)
        best_ids = torch.where(better, ids, best_ids)

        order = torch.arange(2 * beams, device=last.device) + 2 * beams * ends
        kept = order.topk(beams, dim=-1, largest=False).indices  # the first that go on, in order
        parent, last, scores = parent.gather(1, kept), token.gather(1, kept), candidate.gather(1, kept)
        token_ids = torch.where(positions == position, last[..., None], take_beams(token_ids, parent))
        slots = take_beams(slots, parent)
        return position + 1, done, scores, last, token_ids, slots, best_score, best_ids, *caches

    first_only = torch.full((beams,), -1e9, device=device)
    first_only[0] = 0.0
    state = (
        torch.zeros((), dtype=torch.int64, device=device),
        torch.zeros((batch, 1), dtype=torch.bool, device=device),
        first_only.expand(batch, beams).clone(),
        torch.full((batch, beams), options.start, device=device),
        torch.full((batch, beams, length), end, device=device),
        torch.zeros((batch, beams, length), dtype=torch.int64, device=device),
        torch.full((batch, 1), NEVER, device=device),
        torch.full((batch, length), end, device=device),
        *caches,
    )
    _, _, _, _, _, _, best_score, best_ids, *_ = run(unfinished, body, state)
    return best_ids, best_score


def empty_cache(like: Tensor, options: SearchOptions) -> Tensor:
    """Room for a whole search's keys or values: `like` (B, heads, any, d) -> zeros (B, heads, L * K, d)."""
    batch, heads, _, width = like.shape
    rows = options.max_tokens * options.beams
    return torch.zeros((batch, heads, rows, width), dtype=like.dtype, device=like.device)


def store(cache: Tensor, position: Tensor, new: Tensor) -> Tensor:
    """The cache (B, heads, L * K, d) with `new` (B, heads, K, d) at a position.

    Whole rows by three indices become a ScatterND in the cache's own layout. Measured against index_copy (two
    transposes a token), scatter (element by element) and where: two to four times as fast in ONNX Runtime.
    """
    batch, heads, beams, _ = new.shape
    rows = position * beams + torch.arange(beams, device=new.device)
    of_batch = torch.arange(batch, device=new.device)[:, None, None]
    of_head = torch.arange(heads, device=new.device)[:, None]
    return cache.index_put((of_batch, of_head, rows), new)


def take_beams(x: Tensor, beam: Tensor) -> Tensor:
    """Rows of x (B, K, L) by beam number (B, N) -> (B, N, L)."""
    return x.gather(1, beam[..., None].expand(-1, -1, x.shape[-1]))


def run(
    condition: Callable[..., Tensor], body: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """`while_loop` in an export; elsewhere a plain loop, since `while_loop` would compile the body first."""
    if torch.compiler.is_compiling():
        return while_loop(condition, body, state)
    while condition(*state):
        state = body(*state)
    return state
