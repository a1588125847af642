"""Greedy and beam search as one loop inside the exported graph, for any captioner that can decode one token.

A captioner gives its cached step and preallocated caches; the search keeps the hypotheses, by the rules of
the official generator that `SearchOptions.rules` names. The loop is `torch.while_loop`: one ONNX `Loop`,
which stops when every row of the batch has ended. Outside an export the same functions run as plain Python.

Beams never move a cache. Each beam owns one slot at every position; what it attends to is a mask over all the
slots of its row, which names for each position the slot that its hypothesis came through.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from tercet_export.networks.rules import GREEDY, MICROSOFT, NEVER, Progress, Rules

KeysValues = tuple[Tensor, Tensor]
Caches = tuple[KeysValues, ...]
"""Keys and values (B, heads, R, d) of each decoder layer; R = `cache_rows(options)`."""


class Now(NamedTuple):
    """Where the N tokens stand that a step decodes: the K beams, or the words of a prompt side by side."""

    position: Tensor
    """I64 []: the place in the decoder's sequence, 0 the start token's; [N] for a prompt."""
    rows: Tensor
    """I64 [N]: the rows of the caches that their keys and values belong in; see `store`."""
    visible: Tensor
    """Bool [B, N, R]: the rows that each of them attends to, its own among them."""


Step = Callable[[Tensor, Now, Caches], tuple[Tensor, Caches]]
"""One token further: (token_ids i64 [B, N], now, caches) -> (logits f32 [B, N, vocabulary], caches)."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        start: id the decoder begins with; not part of the result.
        end: id that ends a caption, and fills the rest of its row.
        max_tokens: length L of the result, which may be full without an end.
        beams: hypotheses kept per picture; 1 is greedy search, by the same rules for every network.
        length_penalty: exponent of the rules' divisor, for beams.
        rules: the official generator to follow.
        min_tokens: how many tokens come before the first end, at least.
        no_repeat_ngram: no run of so many tokens occurs twice, start and prompt included; 0 allows all.
        prompt: ids forced after the start. They are not part of the result and count neither in its length
            nor in `max_tokens`, `min_tokens` or the score.
        never: ids never chosen.
        sort: find the likeliest token by sorting. On a GPU that is many times as fast as the largest of a
            vocabulary (measured: docs/gpu.md); on processors, OpenVINO's above all, it is slower.
    """

    start: int
    end: int
    max_tokens: int
    beams: int = 1
    length_penalty: float = 0.6
    rules: Rules = MICROSOFT
    min_tokens: int = 0
    no_repeat_ngram: int = 0
    prompt: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    sort: bool = False

    @property
    def steps(self) -> int:
        """Tokens decided on: `max_tokens`, and the end that some rules force after them."""
        return self.max_tokens + (self.beams > 1 and self.rules.last == "end")

    @property
    def positions(self) -> int:
        """How long the decoder's sequence may become, the start and the prompt included."""
        return len(self.prompt) + self.steps

    @property
    def cache_rows(self) -> int:
        """R: one row for each token before the last of the prompt, then K for each position."""
        return len(self.prompt) + self.steps * self.beams


def search(step: Step, caches: Caches, batch: int, options: SearchOptions) -> tuple[Tensor, Tensor]:
    """Captions for `batch` pictures; `caches` as `empty_caches` makes them.

    Returns:
        token_ids: i64 [batch, max_tokens], without the start, filled with the end after the first.
        score: f32 [batch, 1]. The sum of the log-probabilities, the end's included, over the rules' divisor;
            with one beam their mean.
    """
    if options.beams == 1:
        options = replace(options, rules=GREEDY, length_penalty=1.0)
    caches = read_prompt(step, caches, batch, options)
    length, end, beams, rules, steps = (
        options.max_tokens,
        options.end,
        options.beams,
        options.rules,
        options.steps,
    )
    device = caches[0][0].device
    ranked = rules.candidates * beams

    def divisor(tokens: Tensor | int) -> Tensor | float:
        return rules.divisor(tokens, options.length_penalty)

    def unfinished(position: Tensor, done: Tensor, *_: Tensor) -> Tensor:
        return (position < steps) & ~done.all()

    def body(
        position: Tensor,  # of the token to decide on, 0 the first of the result
        done: Tensor,  # (B, 1)
        scores: Tensor,  # (B, K), summed log-probabilities
        last: Tensor,  # (B, K), the tokens to decode
        token_ids: Tensor,  # (B, K, L), the hypotheses so far, filled with the end
        slots: Tensor,  # (B, K, steps), the slot of each position that a hypothesis came through
        finished: Tensor,  # (B, K), the scores of the best that have ended, best first
        best_ids: Tensor,  # (B, L)
        *flat: Tensor,
    ) -> tuple[Tensor, ...]:
        positions = torch.arange(length, device=last.device)
        each_step = torch.arange(steps, device=last.device)
        each_beam = torch.arange(beams, device=last.device)
        slots = torch.where(each_step == position, each_beam[:, None], slots)
        visible = (slots[..., None] == each_beam) & (each_step <= position)[:, None]  # (B, K, steps, K)
        now = Now(
            len(options.prompt) + position,
            len(options.prompt) + position * beams + each_beam,
            see_prompt(visible.flatten(2), options),
        )
        logits, caches = step(last, now, pairs(flat))
        log_probs = allowed(logits.log_softmax(dim=-1), token_ids, position, options)

        vocabulary = logits.shape[-1]
        candidate, index = best(
            (log_probs + scores[..., None]).flatten(1), ranked, options.sort
        )  # (B, C), best first
        parent, token = index // vocabulary, index % vocabulary
        ends = (token == end) | (position == steps - 1)
        among_first = torch.arange(ranked, device=last.device) < beams
        taken = ends & among_first & ~done & (candidate > NEVER / 2)
        ended = torch.where(taken, candidate / divisor(position + 1), NEVER)
        score, which = ended.max(dim=-1, keepdim=True)  # (B, 1)
        ids = take_beams(token_ids, parent.gather(1, which))[:, 0]
        word = token.gather(1, which)
        if rules.last == "cut":
            word = word.masked_fill(position == steps - 1, end)
        ids = torch.where(positions == position, word, ids)
        best_ids = torch.where(score > finished[:, :1], ids, best_ids)
        finished = torch.cat([finished, ended], dim=1).topk(beams, dim=-1).values

        order = torch.arange(ranked, device=last.device)
        if rules.candidates > 1:
            order = order + ranked * ends
        kept = (
            order.expand(ends.shape).topk(beams, dim=-1, largest=False).indices
        )  # those that go on, in order
        parent, last, scores = parent.gather(1, kept), token.gather(1, kept), candidate.gather(1, kept)
        token_ids = torch.where(positions == position, last[..., None], take_beams(token_ids, parent))
        slots = take_beams(slots, parent)
        going = scores[:, :1]
        progress = Progress(finished, going / divisor(position + 1), going / divisor(length), ends[:, :1])
        done = done | rules.done(progress)
        return position + 1, done, scores, last, token_ids, slots, finished, best_ids, *flatten(caches)

    first_only = torch.full((beams,), NEVER, device=device)
    first_only[0] = 0.0
    state = (
        torch.zeros((), dtype=torch.int64, device=device),
        torch.zeros((batch, 1), dtype=torch.bool, device=device),
        first_only.expand(batch, beams).clone(),
        torch.full((batch, beams), (options.start, *options.prompt)[-1], device=device),
        torch.full((batch, beams, length), end, device=device),
        torch.zeros((batch, beams, steps), dtype=torch.int64, device=device),
        torch.full((batch, beams), NEVER, device=device),
        torch.full((batch, length), end, device=device),
        *flatten(caches),
    )
    _, _, _, _, _, _, finished, best_ids, *_ = run(unfinished, body, state)
    after_end = (best_ids == end).cumsum(dim=-1) > 0
    return best_ids.masked_fill(after_end, end), finished[:, :1]


def read_prompt(step: Step, caches: Caches, batch: int, options: SearchOptions) -> Caches:
    """The caches with the start and all of the prompt but its last token, which the loop decodes."""
    if not options.prompt:
        return caches
    device = caches[0][0].device
    words = torch.tensor((options.start, *options.prompt)[:-1], device=device)
    places = torch.arange(len(words), device=device)
    rows = torch.arange(options.cache_rows, device=device)
    visible = (rows <= places[:, None]).expand(batch, -1, -1)
    return step(words.expand(batch, -1), Now(places, places, visible), caches)[1]


def see_prompt(visible: Tensor, options: SearchOptions) -> Tensor:
    """Visible (B, K, steps * K) -> (B, K, R): the prompt is visible to all."""
    if not options.prompt:
        return visible
    prompt = torch.ones_like(visible[..., :1]).expand(-1, -1, len(options.prompt))
    return torch.cat([prompt, visible], dim=-1)


def allowed(log_probs: Tensor, token_ids: Tensor, position: Tensor, options: SearchOptions) -> Tensor:
    """Log-probabilities (B, K, vocabulary) with NEVER where the options forbid a token."""
    words = torch.arange(log_probs.shape[-1], device=log_probs.device)
    is_end = words == options.end
    forbidden = []
    if options.min_tokens:
        forbidden.append(is_end & (position < options.min_tokens))
    if options.steps > options.max_tokens:
        forbidden.append(~is_end & (position == options.max_tokens))
    forbidden += [words == token for token in options.never]
    for mask in forbidden:
        log_probs = log_probs.masked_fill(mask, NEVER)
    if options.no_repeat_ngram:
        log_probs = without_repeats(log_probs, token_ids, position, options)
    return log_probs


def without_repeats(log_probs: Tensor, token_ids: Tensor, position: Tensor, options: SearchOptions) -> Tensor:
    """NEVER for each token that would complete a run of `no_repeat_ngram` tokens which is there already."""
    size = options.no_repeat_ngram
    # One by one: a tensor made of numbers inside the loop cannot be exported.
    before = [torch.full_like(token_ids[..., :1], token) for token in (options.start, *options.prompt)]
    history = torch.cat([*before, token_ids], dim=-1)  # (B, K, H)
    if history.shape[-1] < size:
        return log_probs
    known = len(before) + position  # tokens of the history that are decided
    runs = history.unfold(-1, size, 1)  # (B, K, W, size)
    places = torch.arange(runs.shape[2], device=token_ids.device)
    recent = (known - size + 1 + torch.arange(size - 1, device=token_ids.device)).clamp(min=0)
    same = (runs[..., :-1] == history[..., recent].unsqueeze(2)).all(dim=-1)  # (B, K, W)
    same = same & (places + size <= known)
    # A token may end several runs of which one matches: all of them then write the same.
    ends = runs[..., -1]
    repeated = ((ends[..., None] == ends[..., None, :]) & same[..., None, :]).any(dim=-1)
    return log_probs.scatter(-1, ends, log_probs.gather(-1, ends).masked_fill(repeated, NEVER))


def best(x: Tensor, count: int, sort: bool) -> tuple[Tensor, Tensor]:
    """The largest `count` of each row and their places, best first; of equals the first if one is asked."""
    if count == 1 and not sort:
        # `max` would do, but OpenVINO sorts for its place: a tenth of a token's time, in bf16.
        largest = x.amax(dim=-1, keepdim=True)
        places = torch.arange(x.shape[-1], device=x.device)
        return largest, torch.where(x == largest, places, x.shape[-1] - 1).amin(dim=-1, keepdim=True)
    return x.topk(count, dim=-1)


def empty_caches(layers: int, like: Tensor, options: SearchOptions) -> Caches:
    """Room for a whole search: `like` is any layer's keys or values (B, heads, any, d)."""
    batch, heads, _, width = like.shape
    shape = (batch, heads, options.cache_rows, width)

    def empty() -> Tensor:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    return tuple((empty(), empty()) for _ in range(layers))


def store(cache: KeysValues, now: Now, new: KeysValues) -> KeysValues:
    """One layer's keys and values (B, heads, R, d) with the new tokens' (B, heads, N, d) in their rows."""
    keys, values = (put_rows(old, now.rows, rows) for old, rows in zip(cache, new, strict=True))
    return keys, values


def put_rows(cache: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    """Cache (B, heads, R, d) with `new` (B, heads, N, d) in `rows` (N).

    Whole rows by three indices become a ScatterND in the cache's own layout. Measured against index_copy (two
    transposes a token), scatter (element by element) and where: two to four times as fast in ONNX Runtime.
    It copies the cache once, for what a Loop hands on cannot be written in place: 3.0 to 3.5 % of the loop's
    time, measured with BERT's 12 layers, 3 beams of 16 tokens and 5 of 25, batches 1 and 8, on one core.
    """
    batch, heads, _, _ = new.shape
    of_batch = torch.arange(batch, device=new.device)[:, None, None]
    of_head = torch.arange(heads, device=new.device)[:, None]
    return cache.index_put((of_batch, of_head, rows), new)


def row_positions(options: SearchOptions, device: torch.device | None = None) -> Tensor:
    """I64 [R]: the place in the decoder's sequence that each cache row belongs to, for relative positions."""
    rows = torch.arange(options.cache_rows, device=device)
    prompt = len(options.prompt)
    return torch.where(rows < prompt, rows, prompt + (rows - prompt) // options.beams)


def take_beams(x: Tensor, beam: Tensor) -> Tensor:
    """Rows of x (B, K, L) by beam number (B, N) -> (B, N, L)."""
    return x.gather(1, beam[..., None].expand(-1, -1, x.shape[-1]))


def flatten(caches: Caches) -> tuple[Tensor, ...]:
    """The tensors of the caches in one tuple."""
    return tuple(tensor for cache in caches for tensor in cache)


def pairs(tensors: tuple[Tensor, ...]) -> Caches:
    """`flatten` undone."""
    return tuple(zip(tensors[::2], tensors[1::2], strict=True))


def run(
    condition: Callable[..., Tensor], body: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """`while_loop` in an export; elsewhere a plain loop, since `while_loop` would compile the body first."""
    if torch.compiler.is_compiling():
        return while_loop(condition, body, state)
    while condition(*state):
        state = body(*state)
    return state
