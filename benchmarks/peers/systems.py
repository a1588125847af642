"""The servers that are compared: how each is started, asked and read, with the settings its own documentation
gives for this use.
"""

import base64
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.peers.http import Post

__all__ = ["PEERS", "SERVERS", "Peer"]

SERVERS = Path(__file__).parent / "servers"
TRANSFORMERS = "transformers (bf16 where the processor has it)"


@dataclass(frozen=True)
class Peer:
    """A server to compare with.

    `command` makes the command line from the environment's `bin`, the folder of weights and a port, to run in
    `servers/`; `ready` is the path that answers 200 once it can be asked; `image` and `text` make a request
    of a file and of a text; `embedding` reads an answer. `threads` is what each of its processes computes
    with, `settings` what the page says of it.
    """

    command: Callable[[Path, Path, int], Sequence[str | Path]]
    ready: str
    image: Callable[[bytes], Post]
    text: Callable[[str], Post]
    embedding: Callable[[bytes], np.ndarray]
    threads: int
    settings: str
    environment: Mapping[str, str] = field(default_factory=dict)


def of_json(path: str, content: object) -> Post:
    """A request in JSON."""
    return Post(path, json.dumps(content).encode())


def base64_of(file: bytes) -> str:
    """A file as JSON can hold it."""
    return base64.b64encode(file).decode()


def multipart(path: str, name: str, file: bytes) -> Post:
    """One file in a form."""
    border = uuid.uuid4().hex
    head = f'--{border}\r\nContent-Disposition: form-data; name="{name}"; filename="picture.jpg"\r\n'
    body = f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + file + f"\r\n--{border}--\r\n".encode()
    return Post(path, body, f"multipart/form-data; boundary={border}")


def read_base64(answer: bytes) -> np.ndarray:
    """What `encoded` of servers/clip_encoder.py wrote."""
    return np.frombuffer(base64.b64decode(json.loads(answer)["embedding"]), np.float32)


def infinity(modality: str, content: str) -> Post:
    """Infinity's form of OpenAI's embeddings, with the encoding that its documentation calls the fast one."""
    return of_json(
        "/embeddings",
        {"model": "clip", "input": [content], "modality": modality, "encoding_format": "base64"},
    )


PEERS: dict[str, Peer] = {
    "infinity": Peer(
        command=lambda programs, weights, port: (
            programs / "infinity_emb",
            *("v2", "--model-id", weights, "--served-model-name", "clip", "--engine", "torch"),
            *("--device", "cpu", "--batch-size", "16", "--no-bettertransformer", "--no-model-warmup"),
            *("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"),
        ),
        ready="/health",
        image=lambda file: infinity("image", f"data:image/jpeg;base64,{base64_of(file)}"),
        text=lambda text: infinity("text", text),
        embedding=lambda answer: np.frombuffer(
            base64.b64decode(json.loads(answer)["data"][0]["embedding"]), np.float32
        ),
        threads=2,
        settings="`infinity_emb v2`, engine torch (its only one for CLIP), which computes in fp32 on "
        "processors, 2 threads, batches to 16, embeddings in base64",
        environment={"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"},
    ),
    "litserve": Peer(
        command=lambda programs, _, port: (programs / "python", "lit.py", "--port", str(port)),
        ready="/health",
        image=lambda file: of_json("/image", {"image": base64_of(file)}),
        text=lambda text: of_json("/text", {"text": text}),
        embedding=read_base64,
        threads=1,
        settings=f"{TRANSFORMERS}, 2 workers an endpoint of 1 thread, batches to 8 within 10 ms, fast queue: "
        "as in its own benchmark on processors",
    ),
    "bentoml": Peer(
        command=lambda programs, _, port: (
            programs / "bentoml",
            *("serve", "bento:Clip", "--host", "127.0.0.1", "--port", str(port)),
        ),
        ready="/readyz",
        image=lambda file: multipart("/images", "items", file),
        text=lambda text: of_json("/texts", {"items": [text]}),
        embedding=lambda answer: np.array(json.loads(answer)[0], np.float32),
        threads=1,
        settings=f"{TRANSFORMERS}, a worker a core of 1 thread, adaptive batching to 16",
        environment={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    "fastapi": Peer(
        command=lambda programs, _, port: (
            programs / "uvicorn",
            *("plain_fastapi:app", "--host", "127.0.0.1", "--port", str(port)),
            *("--workers", "2", "--log-level", "warning", "--no-access-log"),
        ),
        ready="/health",
        image=lambda file: Post("/image", file, "image/jpeg"),
        text=lambda text: of_json("/text", {"text": text}),
        embedding=read_base64,
        threads=1,
        settings=f"{TRANSFORMERS}, 2 uvicorn workers of 1 thread, no batching",
    ),
}
