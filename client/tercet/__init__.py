"""Composed image retrieval on NVIDIA Triton: search a picture collection with a picture and a sentence.

`tercet.Client` talks to a server, `tercet.index` holds the collection, `tercet.server` runs a server here.
"""

from tercet.async_client import AsyncClient
from tercet.client import Background, Caption, Client, ComposedQuery
from tercet.composition import DEFAULT_TEMPLATE, TEMPLATES, Composition, compose
from tercet.compositions import COMPOSITIONS, Settings, make_settings
from tercet.errors import (
    InferenceError,
    InputError,
    LineupError,
    ModelMissing,
    PictureError,
    RequestTimeout,
    ServerError,
    ServerOverloaded,
    ServerUnreachable,
    TercetError,
    TextError,
)
from tercet.lineup import Lineup
from tercet.pictures import Picture

__all__ = [
    "COMPOSITIONS",
    "DEFAULT_TEMPLATE",
    "TEMPLATES",
    "AsyncClient",
    "Background",
    "Caption",
    "Client",
    "ComposedQuery",
    "Composition",
    "InferenceError",
    "InputError",
    "Lineup",
    "LineupError",
    "ModelMissing",
    "Picture",
    "PictureError",
    "RequestTimeout",
    "ServerError",
    "ServerOverloaded",
    "ServerUnreachable",
    "Settings",
    "TercetError",
    "TextError",
    "compose",
    "make_settings",
]
