"""A gallery's embeddings on disk: built in resumable steps from a folder or list, searched memory-mapped."""

from tercet.index.build import BuildProgress, IndexReport, build_index
from tercet.index.gallery import GalleryIndex
from tercet.index.sources import SkippedPicture

__all__ = ["BuildProgress", "GalleryIndex", "IndexReport", "SkippedPicture", "build_index"]
