"""Searches for one picture in plain Python, with whole histories and no cache: what each generator does.

Each gives the caption's ids, its end included where it has one, and its score.
"""

from collections.abc import Callable, Iterator

from tercet_export.networks.search import SearchOptions
from tests.export.toy import NextLogProbs

Found = tuple[list[int], float]
History = list[int]


def allowed(following: list[float], history: History, options: SearchOptions) -> Iterator[tuple[int, float]]:
    """The tokens that may come after a history, with their log-probabilities."""
    size = options.no_repeat_ngram
    runs = (
        {tuple(history[place : place + size]) for place in range(len(history) - size + 1)} if size else set()
    )
    known = len(history) - 1 - len(options.prompt)
    for token, gained in enumerate(following):
        early = token == options.end and known < options.min_tokens
        repeats = size and tuple([*history, token][-size:]) in runs
        if not (early or repeats or token in options.never):
            yield token, gained


def ranked(
    alive: list[tuple[float, History]], log_probs: NextLogProbs, options: SearchOptions
) -> list[tuple[float, History, int]]:
    """Every continuation of every beam, best first."""
    candidates = [
        (total + gained, history, token)
        for total, history in alive
        for token, gained in allowed(log_probs(history), history, options)
    ]
    return sorted(candidates, key=lambda candidate: -candidate[0])


def greedy(log_probs: NextLogProbs, options: SearchOptions) -> Found:
    """The likeliest token each time; the mean of the log-probabilities."""
    led = [options.start, *options.prompt]
    history, gained = list(led), []
    while len(gained) < options.max_tokens and history[len(led) :][-1:] != [options.end]:
        following = dict(allowed(log_probs(history), history, options))
        history.append(max(following, key=following.__getitem__))
        gained.append(following[history[-1]])
    return history[len(led) :], sum(gained) / len(gained)


def microsoft(log_probs: NextLogProbs, options: SearchOptions) -> Found:
    """GeneratorWithBeamSearch of GenerativeImage2Text, with max_steps = max_tokens + 1."""
    longest = options.max_tokens + 1
    led = [options.start, *options.prompt]

    def penalised(total: float, length: int) -> float:
        return total / ((5 + length) / 6) ** options.length_penalty

    alive, hypotheses = [(0.0, led)], []
    for length in range(1, longest):
        candidates = ranked(alive, log_probs, options)[: 2 * options.beams]
        if hypotheses and max(hypotheses)[0] >= penalised(candidates[0][0], longest - 1):
            break
        alive = []
        for total, history, token in candidates:
            if token == options.end or length + 1 == longest:
                hypotheses.append((penalised(total, length), history[len(led) :]))
            else:
                alive.append((total, [*history, token]))
            if len(alive) == options.beams:
                break
    score, words = max(hypotheses)
    return words, score


def fairseq(log_probs: NextLogProbs, options: SearchOptions) -> Found:
    """SequenceGenerator of fairseq: K hypotheses and it is done; after max_tokens only the end may come."""
    led = [options.start, *options.prompt]
    alive, hypotheses = [(0.0, led)], []
    for position in range(options.max_tokens + 1):
        candidates = ranked(alive, log_probs, options)
        if position == options.max_tokens:
            candidates = [candidate for candidate in candidates if candidate[2] == options.end]
        candidates = candidates[: 2 * options.beams]
        for total, history, token in candidates[: options.beams]:
            if token == options.end and len(hypotheses) < options.beams:
                words = [*history[len(led) :], token]
                hypotheses.append((total / (position + 1) ** options.length_penalty, words))
        if len(hypotheses) == options.beams:
            break
        going = [(total, [*history, token]) for total, history, token in candidates if token != options.end]
        alive = going[: options.beams]
    score, words = max(hypotheses, key=lambda hypothesis: hypothesis[0])
    return words, score


def mplug(log_probs: NextLogProbs, options: SearchOptions) -> Found:
    """TextGenerator of mPLUG: K candidates, which go on even when they have ended, until the best has."""
    led = [options.start, *options.prompt]
    alive, hypotheses = [(0.0, led)], []
    for position in range(options.max_tokens):
        candidates = ranked(alive, log_probs, options)[: options.beams]
        alive = [(total, [*history, token]) for total, history, token in candidates]
        last = position + 1 == options.max_tokens
        done = last or candidates[0][2] == options.end
        for total, history in alive:
            if done or history[-1] == options.end:
                divisor = ((5 + position + 1) / 6) ** options.length_penalty
                hypotheses.append((total / divisor, history[len(led) :]))
        if done:
            break
    score, words = max(hypotheses, key=lambda hypothesis: hypothesis[0])
    return words, score


def transformers(log_probs: NextLogProbs, options: SearchOptions) -> Found:
    """Beam search of transformers 5, early_stopping=False: K finished ones that beat what goes on."""
    led = [options.start, *options.prompt]
    alive, finished = [(0.0, led)], []
    for position in range(options.max_tokens):
        candidates = ranked(alive, log_probs, options)[: 2 * options.beams]
        divisor = (position + 1) ** options.length_penalty
        last = position + 1 == options.max_tokens
        ended = [last or token == options.end for _, _, token in candidates]
        finished += [
            (total / divisor, [*history[len(led) :], token])
            for (total, history, token), ends in list(zip(candidates, ended, strict=True))[: options.beams]
            if ends
        ]
        finished = sorted(finished, key=lambda hypothesis: -hypothesis[0])[: options.beams]
        alive = [
            (total, [*history, token])
            for (total, history, token), ends in zip(candidates, ended, strict=True)
            if not ends
        ][: options.beams]
        if last or (len(finished) == options.beams and finished[-1][0] >= alive[0][0] / divisor):
            break
    score, words = finished[0]
    return words, score


PLAIN: dict[str, Callable[[NextLogProbs, SearchOptions], Found]] = {
    "microsoft": microsoft,
    "fairseq": fairseq,
    "mplug": mplug,
    "transformers": transformers,
}


def filled(words: list[int], options: SearchOptions) -> list[int]:
    """A row of the result: cut at the first end, and filled with it."""
    words = words[: words.index(options.end)] if options.end in words else words
    return words[: options.max_tokens] + [options.end] * (options.max_tokens - len(words))
