"""Scores of several vectors, and blends of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.composition import Composition
from tercet.compositions.scoring import ComposedQuery, Increment, Linear, Product, Scoring, blend, unit
from tercet.errors import InputError
from tercet.messages import Caption

SIMILARITIES = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=20)


@given(SIMILARITIES, st.floats(-1, 1), st.floats(-1, 1))
def test_a_product_is_of_what_lies_above_the_floors(
    pairs: list[tuple[float, float]], text_floor: float, image_floor: float
) -> None:
    scores = Product(text_floor, image_floor).combine(np.array(pairs).T)
    for (text, image), score in zip(pairs, scores, strict=True):
        both = text > text_floor and image > image_floor
        assert score == ((text - text_floor) * (image - image_floor) if both else 0)


@given(SIMILARITIES, st.floats(0, 10), st.floats(0, 10))
def test_an_increment_rewards_and_penalises(
    pairs: list[tuple[float, float]], negative: float, positive: float
) -> None:
    scores = Increment(negative, positive).combine(np.array(pairs).T)
    for (edited, original), score in zip(pairs, scores, strict=True):
        factor = positive if edited > original else negative
        assert score == pytest.approx(edited + factor * (edited - original), abs=1e-12)


@given(
    SIMILARITIES,
    st.sampled_from([Linear(), Product(0.1, -0.2), Increment(2.1, 0.13)]),
    st.floats(0, 0.5),
)
def test_scores_rise_or_fall_with_each_similarity_as_the_search_supposes(
    pairs: list[tuple[float, float]], scoring: Scoring, step: float
) -> None:
    similarities = np.array(pairs).T[: scoring.vectors]
    for place in range(scoring.vectors):
        changes = scoring.combine(similarities + step * np.eye(scoring.vectors)[place][:, None])
        changes = changes - scoring.combine(similarities)
        assert (changes >= -1e-12).all() or (changes <= 1e-12).all()


@pytest.mark.parametrize("scoring", [Linear(), Product(0.1, 0.1), Increment(1.0, 0.2)])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_candidates_are_the_last_axis_and_the_type_stays(scoring: Scoring, kind: type) -> None:
    similarities = np.random.default_rng(0).uniform(-1, 1, (4, scoring.vectors, 7)).astype(kind)
    scores = scoring.combine(similarities)
    assert (scores.shape, scores.dtype) == ((4, 7), kind)
    for number in range(4):
        np.testing.assert_array_equal(scores[number], scoring.combine(similarities[number]))


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_a_blends_similarities_are_the_blended_similarities(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = [unit(vector) for vector in rng.standard_normal((count, 12))]
    weights = rng.uniform(0.1, 1, count).tolist()
    candidates = rng.standard_normal((30, 12))
    expected = sum(weight * (candidates @ vector) for weight, vector in zip(weights, vectors, strict=True))
    made = blend(vectors, weights)
    assert made.dtype == np.float32
    assert np.linalg.norm(made) == pytest.approx(1, abs=1e-6)
    length = np.linalg.norm(sum(weight * vector for weight, vector in zip(weights, vectors, strict=True)))
    np.testing.assert_allclose(candidates @ made * length, expected, atol=1e-5)


def test_one_part_of_a_blend_stays_as_it_is_to_the_bit() -> None:
    one, other = unit(np.array([0.1, 0.2, 0.3])), unit(np.array([3.0, 2.0, 1.0]))
    assert blend([one], [0.3]) is one
    assert blend([one, other], [0.0, 0.7]) is other


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.0, 0.0]])
def test_vectors_without_a_common_direction_are_refused(weights: list[float]) -> None:
    one = np.array([1, 0], np.float32)
    with pytest.raises(InputError, match="cancel each other; change the weights"):
        blend([one, -one], weights)


def test_a_query_gives_its_first_vector_and_caption() -> None:
    vectors = np.eye(3, dtype=np.float32)[:2]
    composition = Composition("a dog, in blue", "a dog", "in blue", "caption-modification", caption_cut=True)
    captions = (Caption("a dog", -1.0), Caption("a wolf", -2.0))
    query = ComposedQuery(vectors, Product(), composition, captions=captions)
    np.testing.assert_array_equal(query.embedding, vectors[0])
    assert query.caption is captions[0]
    assert query.caption_cut
    assert ComposedQuery(vectors, Product(), composition).caption is None
