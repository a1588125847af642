"""Each family of networks on a real Triton, exchanged by the lineup alone: it answers what torch computes."""

import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tercet.client import Client
from tercet.server import EmbeddedServer
from tercet_export.lineup import Choice, export_lineup, read_lineup
from tercet_export.registry import Options, network, networks
from tests.serving.python_models import REPOSITORY, python_model
from tests.serving.test_ensembles import picture
from tests.tiny import write_tiny_lineup
from tests.tiny_blip import write_blip
from tests.tiny_inspyrenet import write_inspyrenet
from tests.tiny_mplug import write_mplug
from tests.tiny_ofa import write_ofa
from tests.tiny_pic2word import write_phi

# The section of a lineup that exchanges one network of the tiny lineup, and what writes its files.
Family = tuple[str, str, Callable[[Path], Any], str]
FAMILIES: dict[str, Family] = {
    "inspyrenet": (
        "background_remover",
        "inspyrenet",
        write_inspyrenet,
        'checkpoint = "inspyrenet.safetensors"\narch = "inspyrenet.json"',
    ),
    "blip": (
        "captioner",
        "blip-base",
        write_blip,
        'checkpoint = "blip.safetensors"\narch = "blip.json"\ntokenizer = "vocab.txt"\nbeams = 2',
    ),
    "ofa": (
        "captioner",
        "ofa-base",
        write_ofa,
        'checkpoint = "ofa.safetensors"\narch = "ofa.json"\ntokenizer = "ofa-vocab/vocab.json"',
    ),
    "mplug": (
        "captioner",
        "mplug-base",
        write_mplug,
        'checkpoint = "mplug.safetensors"\narch = "mplug.json"\ntokenizer = "vocab.txt"',
    ),
    "searle": (
        "image_to_token",
        "searle",
        lambda folder: write_phi(folder / "searle.pt"),
        'checkpoint = "searle.pt"',
    ),
}
# These are in the tiny lineup, which every other test serves, or share a family's code.
SERVED_ELSEWHERE = {"isnet", "clip-image", "clip-text", "git-base", "git-large", "pic2word", "lincir"}
SAME_CODE = {"blip-large", "mplug-large", "ofa-tiny", "ofa-medium", "ofa-large"}

unserved = set(networks()) - SERVED_ELSEWHERE - SAME_CODE - {name for _, name, *_ in FAMILIES.values()}
if unserved:
    raise AssertionError(f"no test serves {', '.join(sorted(unserved))}")


def in_torch(choice: Choice, base: Path, *inputs: np.ndarray) -> list[np.ndarray]:
    """What the network of a lineup's section gives, computed by torch."""
    given = {field.name: getattr(choice, field.name) for field in fields(Options)}
    arch = str(base / choice.arch) if choice.arch else None
    graph = network(choice.network).load(base / choice.checkpoint, Options(**{**given, "arch": arch})).graph
    with torch.inference_mode():
        return [tensor.numpy() for tensor in graph(*map(torch.from_numpy, inputs))]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lineup_exchanges_it(family: str, tiny_repository: Path, tmp_path: Path) -> None:
    role, name, write, rest = FAMILIES[family]
    base = write_tiny_lineup(tmp_path / "tiny").parent
    write(base)
    (base / "other.toml").write_text(
        f'name = "{family}"\nextends = "tiny.toml"\n[{role}]\nnetwork = "{name}"\n{rest}\n'
    )
    repository = tmp_path / "model_repository"
    shutil.copytree(tiny_repository, repository)
    manifest = export_lineup(base / "other.toml", repository)
    assert {path.name for path in repository.iterdir()} == {path.name for path in REPOSITORY.iterdir()}

    files = [picture(seed, width=90 + 7 * seed) for seed in range(3)]  # PNG files
    geometry = python_model("decode_image", "geometry")
    wanted = ("scene", "view", "view_box", "pixels")
    decoded = geometry.prepare(files, wanted, geometry.read_geometries(manifest))
    lineup = read_lineup(base / "other.toml")[0]
    with EmbeddedServer(repository) as server, Client(server.grpc_address) as client:
        assert client.lineup().roles[role].network == name
        answers = client.caption(files)
        embeddings, pseudo_tokens = client.embed_images(files), client.pseudo_tokens(files)

    sections = lineup.choices()
    scenes = [decoded[key] for key in ("scene", "view", "view_box")]
    foreground, mask = in_torch(sections["background_remover"], base, *scenes)
    seen = np.stack([answer.foreground for answer in answers])
    assert np.abs(seen.astype(int) - foreground).max() <= 1
    np.testing.assert_allclose(np.stack([answer.mask for answer in answers]), mask, atol=1e-4)
    assert mask.std() > 0.01

    token_ids, score = in_torch(sections["captioner"], base, seen)
    captions = python_model("detokenize_caption", "captions")
    vocabulary = captions.load_vocabulary(repository / "detokenize_caption" / "1")
    assert [answer.text for answer in answers] == captions.detokenize(token_ids, vocabulary)
    assert all(answer.text for answer in answers)
    np.testing.assert_allclose([answer.score for answer in answers], score[:, 0], atol=1e-4)

    embedding, features = in_torch(sections["clip_image"], base, decoded["pixels"])
    np.testing.assert_allclose(embeddings, embedding, atol=1e-5)
    (words,) = in_torch(sections["image_to_token"], base, features)
    np.testing.assert_allclose(pseudo_tokens, words, atol=1e-4)
