"""The search against the official generators, and against plain Python, on decoders of a few numbers."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput

from tercet_export.export import quiet
from tercet_export.networks.rules import FAIRSEQ, MICROSOFT, MPLUG, TRANSFORMERS
from tercet_export.networks.search import SearchOptions, row_positions
from tests.export import parity, plain_search
from tests.export.toy import Case, ToyDecoder, official_cases

RULES = {"microsoft": MICROSOFT, "fairseq": FAIRSEQ, "mplug": MPLUG, "transformers": TRANSFORMERS}


@st.composite
def searches(draw: st.DrawFn) -> tuple[ToyDecoder, SearchOptions]:
    """A toy and a search that any of the rules can make; twice as many words as beams, and more."""
    beams = draw(st.integers(1, 5))
    vocabulary = 2 * beams + draw(st.integers(12, 30))
    start, end, never, *prompt = draw(
        st.lists(st.integers(0, vocabulary - 1), min_size=3, max_size=6, unique=True)
    )
    options = SearchOptions(
        start=start,
        end=end,
        max_tokens=draw(st.integers(1, 9)),
        beams=beams,
        length_penalty=draw(st.sampled_from([0.0, 0.6, 1.0, 1.5])),
        min_tokens=draw(st.integers(0, 4)),
        no_repeat_ngram=draw(st.sampled_from([0, 0, 2, 3])),
        prompt=tuple(prompt),
        never=draw(st.sampled_from([(), (never,)])),
    )
    seed, batch = draw(st.integers(0, 2**31)), draw(st.integers(1, 4))
    # Where choices are not sharp, it shows when a search stops.
    sharpness = draw(st.sampled_from([0.3, 0.6, 1.0, 2.0]))
    decoder = ToyDecoder(seed, batch, vocabulary, end, draw(st.floats(-1, 4)), sharpness)
    return decoder, replace(options, min_tokens=min(options.min_tokens, options.max_tokens))


def compare(decoder: ToyDecoder, options: SearchOptions, expected: list[plain_search.Found]) -> None:
    found_ids, found_scores = decoder.search(options)
    for (words, score), ids, found in zip(expected, found_ids, found_scores, strict=True):
        assert ids == plain_search.filled(words, options)
        assert math.isclose(found, score, rel_tol=1e-5, abs_tol=1e-5)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60, deadline=None)
@given(search=searches())
def test_equals_plain_search(name: str, search: tuple[ToyDecoder, SearchOptions]) -> None:
    decoder, options = search
    options = replace(options, rules=RULES[name])
    plain = plain_search.greedy if options.beams == 1 else plain_search.PLAIN[name]
    rows = range(len(decoder.pictures))
    compare(decoder, options, [plain(decoder.next_log_probs(row), options) for row in rows])


@pytest.mark.parametrize("case", list(official_cases()), ids=lambda case: case.name)
def test_equals_the_official_generator(case: Case) -> None:
    """fairseq's as OFA carries it and mPLUG's, run once by parity/make_search.py."""
    official = parity.expected("search")
    answers = [
        ([int(token) for token in row if token >= 0], float(score))
        for row, score in zip(official[case.name], official[f"{case.name}_score"], strict=True)
    ]
    compare(case.decoder(), case.options, answers)


def test_official_answers_are_of_every_kind() -> None:
    official = parity.expected("search")
    kinds = set()
    for case in official_cases():
        for row in official[case.name]:
            words = [int(token) for token in row if token >= 0]
            ends = [place for place, token in enumerate(words) if token == case.options.end]
            rules = case.name.partition("_")[0]
            kinds.add((rules, "never" if not ends else "forced" if ends[0] == len(row) - 1 else "ended"))
            if len(ends) > 1:
                kinds.add((rules, "went on"))
    assert kinds == {
        ("fairseq", "ended"),
        ("fairseq", "forced"),
        ("mplug", "ended"),
        ("mplug", "never"),
        ("mplug", "went on"),
    }


class InTransformers(transformers.PreTrainedModel, transformers.GenerationMixin):
    """The toy under transformers' own `generate`, without a cache."""

    config_class = transformers.PreTrainedConfig

    def __init__(self, toy: ToyDecoder) -> None:
        super().__init__(transformers.PreTrainedConfig())
        self.toy = toy
        self.parameter = torch.nn.Parameter(torch.zeros(()))

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, rows: Tensor, **_: object
    ) -> dict[str, Tensor]:
        return {"input_ids": input_ids, "rows": rows}

    def forward(self, input_ids: Tensor, rows: Tensor, **_: object) -> CausalLMOutput:
        return CausalLMOutput(logits=self.toy.logits(rows, input_ids)[:, None])


def by_transformers(
    decoder: ToyDecoder, options: SearchOptions
) -> tuple[list[list[int]], list[float] | None]:
    """What follows start and prompt, and the scores, which greedy search has not."""
    led = torch.tensor([options.start, *options.prompt])
    batch = len(decoder.pictures)
    answer = InTransformers(decoder).generate(
        led.expand(batch, -1),
        rows=torch.arange(batch),
        num_beams=options.beams,
        max_length=len(led) + options.max_tokens,
        min_length=len(led) + options.min_tokens,
        length_penalty=options.length_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram,
        suppress_tokens=list(options.never) or None,
        early_stopping=False,
        eos_token_id=options.end,
        pad_token_id=options.end,
        do_sample=False,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = answer.sequences_scores.tolist() if options.beams > 1 else None
    return answer.sequences[:, len(led) :].tolist(), scores


@settings(max_examples=60, deadline=None, derandomize=True)  # in float32: near ties must not come and go
@given(search=searches())
def test_equals_transformers(search: tuple[ToyDecoder, SearchOptions]) -> None:
    decoder, options = search
    options = replace(options, rules=TRANSFORMERS)
    expected_ids, expected_scores = by_transformers(decoder, options)
    found_ids, found_scores = decoder.search(options)
    assert found_ids == [plain_search.filled(words, options) for words in expected_ids]
    if expected_scores is not None:
        np.testing.assert_allclose(found_scores, expected_scores, rtol=1e-5, atol=1e-5)


class Graph(torch.nn.Module):
    """A toy's search as a graph with one input."""

    def __init__(self, toy: ToyDecoder, options: SearchOptions) -> None:
        super().__init__()
        self.toy, self.options = toy, options

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        return self.toy(pictures, self.options)


@pytest.mark.parametrize("name", [*RULES, "greedy"])
def test_in_an_exported_graph(name: str, tmp_path: Path) -> None:
    """Everything at once, in ONNX Runtime, at batches that were not traced."""
    rules = RULES.get(name, TRANSFORMERS)
    options = SearchOptions(
        start=0,
        end=5,
        max_tokens=8,
        beams=1 if name == "greedy" else 3,
        rules=rules,
        min_tokens=2,
        no_repeat_ngram=2,
        prompt=(7, 9),
        never=(1,),
    )
    toy = ToyDecoder(seed=2, batch=9, vocabulary=24, end=5, end_bias=4.5)
    toy.float()
    path = tmp_path / "search.onnx"
    with quiet():
        torch.onnx.export(
            Graph(toy, options).eval(),
            (toy.pictures[:2],),
            path,
            dynamo=True,
            dynamic_shapes={"pictures": {0: torch.export.Dim("batch")}},
            input_names=["pictures"],
            verbose=False,
        )
    assert [node.op_type for node in onnx.load(path).graph.node].count("Loop") == 1
    session = onnxruntime.InferenceSession(path)
    wanted = 0
    for first, last in ((0, 1), (1, 4), (0, 9)):
        pictures = toy.pictures[first:last]
        token_ids, score = session.run(None, {"pictures": pictures.numpy()})
        expected_ids, expected_score = toy(pictures, options)
        np.testing.assert_array_equal(token_ids, expected_ids)
        np.testing.assert_allclose(score, expected_score, atol=1e-5)
        wanted += len({tuple(row) for row in token_ids.tolist()})
    assert wanted > 6


@pytest.mark.parametrize("name", [*RULES, "greedy"])
def test_stops_when_every_row_has_ended(name: str) -> None:
    decoder = ToyDecoder(seed=1, batch=3, vocabulary=20, end=5, end_bias=40.0)
    beams = 1 if name == "greedy" else 4
    options = SearchOptions(0, 5, max_tokens=30, beams=beams, rules=RULES.get(name, MICROSOFT))
    found_ids, _ = decoder.search(options)
    assert found_ids == [[5] * 30] * 3
    # The first step has one candidate that ends; fairseq and transformers wait for as many as beams.
    assert decoder.calls <= {"greedy": 1, "microsoft": 1, "mplug": 1}.get(name, 2)


@pytest.mark.parametrize("name", RULES)
def test_an_end_that_is_never_likely(name: str) -> None:
    decoder = ToyDecoder(seed=4, batch=2, vocabulary=20, end=5, end_bias=-60.0)
    options = SearchOptions(0, 5, max_tokens=6, beams=3, length_penalty=1.0, rules=RULES[name])
    found_ids, scores = decoder.search(options)
    full = 5 if name == "microsoft" else 6  # whose last token gives way to the end
    assert all(5 not in row[:full] for row in found_ids)
    assert decoder.calls == (7 if name == "fairseq" else 6)
    # fairseq's caption pays for the end that is forced.
    assert all((score < -5) == (name == "fairseq") for score in scores)


@pytest.mark.parametrize("name", [*RULES, "greedy"])
def test_equally_likely_words(name: str) -> None:
    """Twins of every word: whichever is taken, the score is the plain search's, and twins apart the words."""
    decoder = ToyDecoder(seed=6, batch=3, vocabulary=12, end=5, end_bias=3.0)
    twins = torch.arange(24) % 12
    for tensor in ("words", "bias"):
        setattr(decoder, tensor, getattr(decoder, tensor)[twins])
    decoder.output = decoder.output[:, twins]
    decoder.bias[17] = -60.0  # one end only
    beams = 1 if name == "greedy" else 2
    options = SearchOptions(0, 5, max_tokens=5, beams=beams, rules=RULES.get(name, MICROSOFT))
    plain = plain_search.greedy if name == "greedy" else plain_search.PLAIN[name]
    found_ids, found_scores = decoder.search(options)
    assert found_ids == decoder.search(options)[0]
    for row in range(3):
        words, score = plain(decoder.next_log_probs(row), options)
        assert math.isclose(found_scores[row], score, rel_tol=1e-6)
        assert len(found_ids[row]) == 5
        if name == "greedy":  # beams hold twins, and lose others for them, one way or the other
            assert [token % 12 for token in found_ids[row]] == plain_search.filled(words, options)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("vocabulary", [3, 4, 6])
def test_more_beams_than_words(name: str, vocabulary: int) -> None:
    """Beams that nothing leads to neither win nor break a search."""
    for seed in range(8):
        decoder = ToyDecoder(seed, 2, vocabulary, end=2, end_bias=0.0)
        options = SearchOptions(
            0, 2, max_tokens=4, beams=5, length_penalty=1.0, rules=RULES[name], min_tokens=1, never=(1,)
        )
        rows = range(2)
        plain = plain_search.PLAIN[name]
        compare(decoder, options, [plain(decoder.next_log_probs(row), options) for row in rows])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("beams", [1, 4])
def test_a_row_does_not_change_its_neighbours(name: str, beams: int) -> None:
    options = SearchOptions(0, 5, max_tokens=12, beams=beams, rules=RULES[name])
    together, _ = ToyDecoder(seed=5, batch=4, vocabulary=20, end=5, end_bias=2.0).search(options)
    assert len({row.index(5) if 5 in row else 12 for row in together}) > 1
    for row in range(4):
        alone = ToyDecoder(seed=5, batch=4, vocabulary=20, end=5, end_bias=2.0)
        alone.pictures = alone.pictures[row : row + 1]
        assert alone.search(options)[0] == together[row : row + 1]


def test_rows_of_the_cache_know_their_positions() -> None:
    options = SearchOptions(0, 5, max_tokens=2, beams=3, rules=FAIRSEQ, prompt=(8, 9))
    assert row_positions(options).tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert (options.steps, options.positions, options.cache_rows) == (3, 5, 11)
