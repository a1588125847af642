"""LitServe around transformers, with the settings of its own benchmark on processors
(tests/parity_fastapi/ls-server.py of Lightning-AI/LitServe): batches of 8, 10 ms, two workers, the fast
queue, pictures decoded by a pool of threads in `batch`.
"""

import argparse
import base64
import os
from concurrent.futures import ThreadPoolExecutor

import litserve
from clip_encoder import BATCH, ImageEncoder, TextEncoder, encoded, open_picture


class Images(litserve.LitAPI):
    """POST /image {"image": base64 of a file}."""

    def setup(self, device: str) -> None:
        """In each worker."""
        self.encoder = ImageEncoder()
        self.pool = ThreadPoolExecutor(os.cpu_count())

    def decode_request(self, request: dict) -> str:
        """The field as it is: decoding is left to the pool."""
        return request["image"]

    def batch(self, inputs: list) -> list:
        """Decode side by side."""
        return list(self.pool.map(lambda item: open_picture(base64.b64decode(item)), inputs))

    def predict(self, inputs: list) -> list:
        """A batch of pictures."""
        return list(self.encoder(inputs))

    def unbatch(self, output: list) -> list:
        """One by one."""
        return output

    def encode_response(self, output: object) -> dict:
        """One answer."""
        return {"embedding": encoded(output)}


class Texts(litserve.LitAPI):
    """POST /text {"text": ...}."""

    def setup(self, device: str) -> None:
        """In each worker."""
        self.encoder = TextEncoder()

    def decode_request(self, request: dict) -> str:
        """The field."""
        return request["text"]

    def predict(self, inputs: list) -> list:
        """A batch of texts."""
        return list(self.encoder(inputs))

    def encode_response(self, output: object) -> dict:
        """One answer."""
        return {"embedding": encoded(output)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    port = parser.parse_args().port
    apis = [
        kind(max_batch_size=BATCH, batch_timeout=0.01, api_path=path)
        for kind, path in ((Images, "/image"), (Texts, "/text"))
    ]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=2, timeout=120, fast_queue=True)
    server.run(
        host="127.0.0.1", port=port, log_level="warning", num_api_servers=1, generate_client_file=False
    )
