"""Tercet as a target: its ensembles over gRPC, and the whole composed query by its client."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tercet.bench.targets import EnsembleTarget, Inputs, requests_for
from tercet.bench.values import Done
from tercet.client import Client
from tercet.errors import TercetError

__all__ = ["ComposedTarget", "embeddings", "ensemble"]


def ensemble(name: str, address: str, inputs: Inputs, timeout: float) -> EnsembleTarget:
    """An ensemble as `tercet bench` asks it."""
    return EnsembleTarget(name, address, requests_for(name, inputs, timeout), timeout)


def embeddings(address: str, pictures: Sequence[bytes], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What Tercet makes of inputs, by ensemble: f32 [N, D]."""
    with Client(address) as client:
        return {
            "embed_image": np.asarray(client.embed_images(list(pictures))),
            "embed_text": np.asarray(client.embed_texts(list(texts))),
        }


class ComposedTarget:
    """`Client.compose_queries` with the background removed, which is what the researcher's script does."""

    def __init__(self, name: str, address: str, inputs: Inputs, clients: int, timeout: float) -> None:
        self.name = name
        self._inputs = inputs
        self._client = Client(address, timeout=timeout, retries=0, remember=0)
        self._pool = ThreadPoolExecutor(clients, "peers-query")

    def send(self, number: int, done: Done) -> None:
        """Ask one query."""
        self._pool.submit(self._ask, number, done)

    def query(self, number: int) -> np.ndarray:
        """The embedding f32 [D] of a query."""
        pictures, texts = self._inputs.pictures, self._inputs.texts
        picture, text = pictures[number % len(pictures)], texts[number % len(texts)]
        return np.asarray(self._client.compose_queries(picture, text, background="remove").embedding)

    def close(self) -> None:
        """Disconnect."""
        self._client.close()
        self._pool.shutdown(cancel_futures=True)

    def _ask(self, number: int, done: Done) -> None:
        failure = None
        try:
            self.query(number)
        except TercetError as error:
            failure = error
        except Exception as error:  # it must not be waited for, whatever befell it
            failure = TercetError(f"{type(error).__name__}: {error}")
        done(failure)
