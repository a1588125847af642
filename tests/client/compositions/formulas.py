"""What each composition should score, written out anew from single captions and embeddings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tercet.compositions.needs import RewriteNeed, Rewritten
from tercet.compositions.views import view_of
from tercet.pictures import encode_picture

MODIFICATION = "in blue, on a beach"


def make_picture(seed: int = 0) -> bytes:
    """A picture with something in its middle, so that its views differ, encoded."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60))
    ImageDraw.Draw(image).ellipse((25, 15, 60, 50), fill=(200, 30, 30))
    return encode_picture(image, "a picture")


def rewrite(need: RewriteNeed) -> Rewritten:
    """Stands in for a language model."""
    return Rewritten(f"{need.caption} now {need.modification}")


class Parts:
    """A reference's captions and embeddings, in float64, one request each."""

    def __init__(self, client: Any, picture: bytes) -> None:
        self.client, self.picture = client, picture

    def text(self, text: str) -> np.ndarray:
        return self.client.embed_texts(text).astype(np.float64)

    def text_with_word(self, text: str) -> np.ndarray:
        word = self.client.pseudo_tokens(self.picture)
        return self.client.embed_texts(text, pseudo_tokens=word).astype(np.float64)

    @property
    def image(self) -> np.ndarray:
        return self.client.embed_images(self.picture).astype(np.float64)

    def caption(self, background: str = "remove", view: int = 0, seed: int = 0) -> str:
        return self.client.caption(view_of(self.picture, view, seed), background=background).text


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt(np.sum(vector**2))


def on_the_arc(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    """Turned from `start` towards `end` by that share of the angle between them."""
    across = unit(end - np.sum(start * end) * start)
    angle = share * np.arctan2(np.sum(across * end), np.sum(start * end))
    return np.cos(angle) * start + np.sin(angle) * across


def increment(edited: np.ndarray, original: np.ndarray, negative: float, positive: float) -> np.ndarray:
    better = edited - original
    return edited + np.where(better < 0, negative * better, positive * better)


@dataclass(frozen=True)
class Case:
    """`formula` gives the scores of a gallery, [N, D] to [N], up to a factor."""

    composition: str
    formula: Callable[[Parts, np.ndarray], np.ndarray]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Names the case among the tests."""
        return " ".join([self.composition, *(f"{key}={value}" for key, value in self.settings.items())])


M = MODIFICATION

CASES = [
    Case("text", lambda p, g: g @ p.text(M)),
    Case("text", lambda p, g: g @ p.text(f"a photo of {M}"), {"template": "a photo of {modification}"}),
    Case("image", lambda p, g: g @ p.image),
    Case("sum", lambda p, g: 0.5 * (g @ p.text(M)) + 0.5 * (g @ p.image)),
    Case("sum", lambda p, g: 0.8 * (g @ p.text(M)) + 0.2 * (g @ p.image), {"text_weight": 0.8}),
    Case("sum", lambda p, g: g @ p.text(M), {"text_weight": 1}),
    Case("slerp", lambda p, g: g @ on_the_arc(p.image, p.text(M), 0.8)),
    Case("slerp", lambda p, g: g @ on_the_arc(p.image, p.text(M), 0.3), {"slerp_alpha": 0.3}),
    Case("slerp", lambda p, g: g @ p.image, {"slerp_alpha": 0}),
    Case("product", lambda p, g: np.clip(g @ p.text(M), 0, None) * np.clip(g @ p.image, 0, None)),
    Case(
        "product",
        lambda p, g: np.clip(g @ p.text(M) + 0.1, 0, None) * np.clip(g @ p.image + 0.4, 0, None),
        {"text_floor": -0.1, "image_floor": -0.4},
    ),
    Case("pic2word", lambda p, g: g @ p.text_with_word(f"a photo of * , {M}")),
    Case("pic2word", lambda p, g: g @ p.text_with_word(f"a photo of * that {M}"), {"template": "searle"}),
    Case(
        "pic2word",
        lambda p, g: 0.55 * (g @ p.text_with_word(f"a {M} of *")) + 0.45 * (g @ p.text(M)),
        {"template": "a {modification} of *", "modification_share": 0.45},
    ),
    Case("caption", lambda p, g: g @ p.text(f"{p.caption()}, {M}")),
    Case("caption", lambda p, g: g @ p.text(f"{p.caption('keep')}, {M}"), {"background": "keep"}),
    Case(
        "caption", lambda p, g: g @ p.text(f"a photo of {p.caption()} that {M}"), {"template": "photo-that"}
    ),
    Case(
        "caption",
        lambda p, g: sum(g @ p.text(f"{p.caption(view=view, seed=5)}, {M}") for view in range(3)),
        {"captions": 3, "seed": 5},
    ),
    Case(
        "caption",
        lambda p, g: 0.7 * (g @ p.text(f"{p.caption()}, {M}")) + 0.3 * (g @ p.text(M)),
        {"modification_share": 0.3},
    ),
    Case(
        "caption",
        lambda p, g: increment(g @ p.text(f"{p.caption()}, {M}"), g @ p.text(p.caption()), 1.0, 0.22),
        {"increment": True},
    ),
    Case(
        "caption",
        lambda p, g: increment(
            g
            @ unit(
                0.9 * unit(sum(p.text(f"{p.caption('keep', view)}, {M}") for view in range(2)))
                + 0.1 * p.text(M)
            ),
            g @ unit(sum(p.text(p.caption("keep", view)) for view in range(2))),
            2.1,
            0.22,
        ),
        {"captions": 2, "background": "keep", "modification_share": 0.1, "increment_negative": 2.1},
    ),
    Case("caption+pic2word", lambda p, g: g @ p.text_with_word(f"a photo of * , {p.caption()}, {M}")),
    Case(
        "blend",
        lambda p, g: (
            0.5 * (g @ p.text(f"{p.caption()}, {M}"))
            + 0.2 * (g @ p.text_with_word(f"a photo of * , {M}"))
            + 0.2 * (g @ p.text(M))
            + 0.1 * (g @ p.image)
        ),
    ),
    Case(
        "blend",
        lambda p, g: (
            0.4 * (sum(g @ p.text(f"{p.caption('keep', view)}, {M}") for view in range(2)) / 2)
            + 0.7 * (g @ p.image)
        ),
        {
            "caption_weight": 0.4,
            "pic2word_weight": 0,
            "text_weight": 0,
            "image_weight": 0.7,
            "captions": 2,
            "background": "keep",
        },
    ),
    Case("rewrite", lambda p, g: g @ p.text(f"{p.caption()} now {M}"), {"llm_model": "some-model"}),
    Case(
        "rewrite",
        lambda p, g: increment(g @ p.text(f"{p.caption()} now {M}"), g @ p.text(p.caption()), 1.0, 0.5),
        {"llm_model": "some-model", "increment_positive": 0.5},
    ),
]
