"""Every composition against a real Triton with small random networks."""

from collections.abc import Iterator

import numpy as np
import pytest

from tercet import Client, TextError
from tercet.compositions.scoring import Linear
from tercet.server import EmbeddedServer
from tests.client.compositions.formulas import CASES, MODIFICATION, Case, Parts, make_picture, rewrite

PICTURES = [make_picture(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def rewriting(server: EmbeddedServer) -> Iterator[Client]:
    """A client of the shared server with a stand-in for the language model."""
    with Client(server.grpc_address, rewriter=rewrite) as connected:
        yield connected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_query_scores_by_its_formula(rewriting: Client, case: Case) -> None:
    dimension = rewriting.lineup().embedding_dimension
    gallery = np.random.default_rng(0).standard_normal((300, dimension))
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    # A mask of random networks may be empty or full, and the rule would keep the background.
    reads_background = case.composition in ("caption", "caption+pic2word", "blend", "rewrite")
    settings = ({"background": "remove"} if reads_background else {}) | case.settings
    queries = rewriting.compose_queries(
        PICTURES, [MODIFICATION] * 2, composition=case.composition, settings=settings
    )
    for picture, query in zip(PICTURES, queries, strict=True):
        found = query.scoring.combine(query.vectors.astype(np.float64) @ gallery.T)
        expected = case.formula(Parts(rewriting, picture), gallery)
        if isinstance(query.scoring, Linear):
            expected = expected * (np.linalg.norm(found) / np.linalg.norm(expected))
        # Batches of another size may sum in another order.
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)


def test_the_rule_sees_the_masks_coverage(client: Client) -> None:
    query = client.compose_queries(PICTURES[0], MODIFICATION)
    removed = client.caption(PICTURES[0], background="remove")
    assert removed.mask is not None
    assert removed.coverage == pytest.approx(float(removed.mask.mean()), abs=1e-6)
    useful = 0.01 <= removed.coverage <= 0.95
    assert query.background == ("remove" if useful else "keep")
    if not useful:
        assert "the mask is" in query.background_reason


def test_a_star_is_a_word_and_the_pseudo_word_is_the_templates(client: Client) -> None:
    with pytest.raises(TextError, match=r"has a \* of its own"):
        client.compose_queries(
            PICTURES[0], "a * toy", composition="pic2word", template="a {modification} of *"
        )
    first, second = (
        client.compose_queries(picture, "with a * on it", composition="pic2word") for picture in PICTURES
    )
    assert np.abs(first.embedding - second.embedding).max() > 1e-4
