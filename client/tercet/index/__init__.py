"""A gallery's embeddings on disk: built in resumable steps from a folder or list, searched memory-mapped."""

from tercet.index.build import BuildProgress, IndexReport, build_index
from tercet.index.gallery import GalleryIndex
from tercet.index.kinds import Choice, Kind, choose_kind
from tercet.index.sources import SkippedPicture

__all__ = [
    "BuildProgress",
    "Choice",
    "GalleryIndex",
    "IndexReport",
    "Kind",
    "SkippedPicture",
    "build_index",
    "choose_kind",
]
