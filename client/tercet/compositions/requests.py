"""Needs as requests to the server's models, and the server's answers to them: what both clients share."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tercet import messages
from tercet.composition import check_text
from tercet.compositions.needs import (
    Answer,
    CaptionNeed,
    EmbeddedText,
    ImageNeed,
    Need,
    PseudoTokenNeed,
    RewriteNeed,
    TextNeed,
)
from tercet.compositions.registry import Recipe, make_settings, recipe_of
from tercet.compositions.settings import BackgroundChoice, Settings, Value
from tercet.compositions.views import view_of
from tercet.errors import InputError
from tercet.lineup import Lineup
from tercet.messages import Request, Tensors
from tercet.pictures import Picture

__all__ = ["Reference", "chosen", "memory_key", "read_answer", "read_reference", "request_of"]


@dataclass(frozen=True, eq=False)
class Reference:
    """A query's picture, read: its name and encoded file, and the name of the query for messages."""

    name: str
    encoded: bytes
    query: str

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the file: its name in an `AnswerMemory`."""
        return hashlib.sha256(self.encoded).hexdigest()


def read_reference(picture: Picture, position: int = 0) -> Reference:
    """Read the picture; PictureError if it cannot be sent."""
    return Reference(*messages.named_picture(picture, position), query=f"query {position}")


def chosen(
    composition: str,
    settings: Settings | Mapping[str, Value] | None,
    background: BackgroundChoice | None,
    template: str | None,
) -> tuple[Recipe, Settings]:
    """The composition and its settings, of the arguments of `Client.compose_queries`.

    Raises:
        InputError, TextError: as `make_settings` does; `background` or `template` is in `settings`, too.
    """
    named = {"background": background, "template": template}
    extra: dict[str, Value] = {name: value for name, value in named.items() if value is not None}
    recipe = recipe_of(composition)
    twice = [name for name in extra if isinstance(settings, Settings) or name in (settings or {})]
    if twice:
        raise InputError(f"{' and '.join(twice)} is in the settings already; set it there alone")
    if isinstance(settings, Settings):
        recipe.check(settings)
        return recipe, settings
    return recipe, make_settings(composition, {**(settings or {}), **extra})


def memory_key(need: Need, reference: Reference | None, lineup: Lineup, foreground: bool) -> str | None:
    """What an `AnswerMemory` calls the answer to a need; None for those that are not worth remembering.

    Captions, embeddings and pseudo-tokens of pictures are dear, texts cheap and mostly new.
    """
    if reference is None or isinstance(need, TextNeed | RewriteNeed):
        return None
    return f"{lineup.fingerprint}|{reference.digest}|{need.key}|{foreground}"


def request_of(
    need: Need,
    reference: Reference | None,
    pseudo_token: NDArray[np.float32] | None = None,
    foreground: bool = False,
) -> Request:
    """What to ask the server; `reference` may be None where `need.of_reference` is False.

    `foreground` fetches the picture that was captioned, too, where it is the whole one without background.

    Raises:
        TypeError: a need that no server answers, or no reference where one is needed.
        PictureError: the picture cannot be read for another view.
    """
    if isinstance(need, TextNeed):
        name = reference.query if reference else "text"
        return messages.embed_text_request(
            name, check_text(need.text, name), pseudo_token if need.pseudo_token else None
        )
    if reference is None or isinstance(need, RewriteNeed):
        raise TypeError(f"{type(need).__name__} cannot be asked of a server like this")
    if isinstance(need, ImageNeed):
        return messages.embed_image_request(reference.name, reference.encoded)
    if isinstance(need, PseudoTokenNeed):
        return messages.pseudo_token_request(reference.name, reference.encoded)
    assert isinstance(need, CaptionNeed)
    shown = view_of(reference.encoded, need.view, need.seed, reference.name)
    wanted = foreground and need.view == 0
    return messages.caption_request(reference.name, shown, need.background, wanted, mask=need.view == 0)


def read_answer(need: Need, tensors: Tensors) -> Answer:
    """The server's answer to `request_of(need)`."""
    if isinstance(need, CaptionNeed):
        return messages.read_caption(tensors)
    if isinstance(need, TextNeed):
        return EmbeddedText(tensors["embedding"][0], int(tensors["token_count"].item()))
    return tensors["embedding" if isinstance(need, ImageNeed) else "pseudo_token"][0]
