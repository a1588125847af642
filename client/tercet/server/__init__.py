"""The embedded Triton Inference Server: see :class:`EmbeddedServer`."""

from tercet.server.embedded import EmbeddedServer

__all__ = ["EmbeddedServer"]
