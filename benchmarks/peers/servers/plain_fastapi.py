"""FastAPI around transformers, without batching: `uvicorn plain_fastapi:app --workers 2`, a worker a core.

One picture or text is computed at a time in each worker, the others wait: many at once would only contend for
the core.
"""

from threading import Lock

from clip_encoder import ImageEncoder, TextEncoder, encoded, open_picture
from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

app = FastAPI()
images, texts = ImageEncoder(), TextEncoder()
computing = Lock()


class Text(BaseModel):
    """What is sent to /text."""

    text: str


def embed_image(file: bytes) -> dict[str, str]:
    """Decode outside of the lock, compute inside."""
    picture = open_picture(file)
    with computing:
        return {"embedding": encoded(images([picture])[0])}


@app.get("/health")
def health() -> str:
    """Answers once the networks are loaded."""
    return "ok"


@app.post("/image")
async def image(request: Request) -> dict[str, str]:
    """The body is the file."""
    return await run_in_threadpool(embed_image, await request.body())


@app.post("/text")
def text(content: Text) -> dict[str, str]:
    """A text in JSON."""
    with computing:
        return {"embedding": encoded(texts([content.text])[0])}
