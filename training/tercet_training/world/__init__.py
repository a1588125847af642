"""The synthetic picture world: scenes, their pictures and captions, and composed queries with known answers.

NumPy and Pillow only. Everything follows from seeds.
"""

from tercet_training.world.captions import caption
from tercet_training.world.queries import Gallery, Query, make_gallery
from tercet_training.world.rendering import mask, render
from tercet_training.world.scenes import Companion, Scene, Subject, Thing, sample_scene

__all__ = [
    "Companion",
    "Gallery",
    "Query",
    "Scene",
    "Subject",
    "Thing",
    "caption",
    "make_gallery",
    "mask",
    "render",
    "sample_scene",
]
