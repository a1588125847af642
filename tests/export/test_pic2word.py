"""Mapping networks: official checkpoints of Pic2Word, SEARLE and LinCIR; Pic2Word whole on a real Triton."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from tercet.client import Client
from tercet.errors import CheckpointError, LineupError
from tercet.server import EmbeddedServer
from tercet_export.export import export_network
from tercet_export.lineup import check_consistent, export_lineup
from tercet_export.networks.clip import build, find_architecture
from tercet_export.registry import network
from tests.export import parity
from tests.export.parity.make_phi import SIZES
from tests.serving.test_ensembles import Asker

ARCH = "ViT-L-14-quickgelu"

LINEUP = f"""
name = "pic2word"

[clip_image]
network = "clip-image"
checkpoint = "pic2word.pt"
arch = "{ARCH}"

[clip_text]
network = "clip-text"
checkpoint = "pic2word.pt"
arch = "{ARCH}"

[image_to_token]
network = "pic2word"
checkpoint = "pic2word.pt"
"""


def mapping_network() -> dict[str, torch.Tensor]:
    """`state_dict_img2text` of the parity checkpoint, without the CLIP beside it."""
    names = parity.names_and_shapes("pic2word_im2text")
    return {f"module.{name}": parity.by_shape(f"img2text.{name}", shape) for name, shape in names.items()}


@pytest.mark.parametrize("layout", ["official", "not parallel", "alone", "numpy scalars"])
def test_pic2word_equals_the_official_network(layout: str, tmp_path: Path) -> None:
    tensors = mapping_network()
    bare = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    optimizer = {"state": {}, "param_groups": [{"lr": np.float64(1e-4), "betas": (0.9, 0.98)}]}
    content: dict[str, Any] = {
        "official": {"epoch": 30, "name": "run", "state_dict_img2text": tensors, "optimizer": optimizer},
        "not parallel": {"epoch": 30, "state_dict_img2text": bare},
        "alone": bare,
        "numpy scalars": {"epoch": np.int64(3), "loss": np.float32(0.5), "state_dict_img2text": tensors},
    }[layout]
    torch.save(content, tmp_path / "pic2word.pt")
    exported = export_network(network("pic2word"), tmp_path / "pic2word.pt", tmp_path / "model.onnx")
    assert exported.parameters == network("pic2word").parameters
    assert exported.loaded.details == {"feature_width": 768, "token_width": 768}
    wanted = parity.expected("pic2word")
    with torch.inference_mode():
        (words,) = exported.loaded.graph(torch.from_numpy(wanted["input"]))
    np.testing.assert_allclose(words, wanted["output"], atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["searle", "lincir"])
def test_phi_equals_the_official_network(name: str, size: str, tmp_path: Path) -> None:
    content = parity.phi(*SIZES[size])
    torch.save(content if name == "searle" else content["Phi"], tmp_path / "phi.pt")
    loaded = network(name).load(tmp_path / "phi.pt")
    assert loaded.sizes == {"D": SIZES[size][0], "W": SIZES[size][2]}
    if size == "l14":
        assert sum(p.numel() for p in loaded.graph.parameters()) == network(name).parameters
    wanted = parity.expected("phi")
    with torch.inference_mode():
        (words,) = loaded.graph(torch.from_numpy(wanted[f"{size}_input"]))
    np.testing.assert_allclose(words, wanted[f"{size}_output"], atol=1e-5)


def test_a_mapper_is_told_from_another(tmp_path: Path) -> None:
    torch.save(parity.phi(16, 32, 16), tmp_path / "phi.pt")
    torch.save({"state_dict_img2text": mapping_network()}, tmp_path / "pic2word.pt")
    with pytest.raises(CheckpointError, match="looks like a checkpoint of SEARLE's and LinCIR's"):
        network("pic2word").load(tmp_path / "phi.pt")
    with pytest.raises(CheckpointError, match="looks like a checkpoint of Pic2Word's mapping network"):
        network("searle").load(tmp_path / "pic2word.pt")
    torch.save(parity.phi(16, 32, 16)["Phi"], tmp_path / "phi.pt")
    with pytest.raises(CheckpointError, match="looks like a checkpoint of SEARLE's and LinCIR's"):
        network("pic2word").load(tmp_path / "phi.pt")


def test_another_size_of_clip_is_refused() -> None:
    b32 = {"embedding_dimension": 512, "token_width": 512}
    l14 = {"feature_width": 768, "token_width": 768}
    with pytest.raises(
        LineupError, match="maps 768 features, clip_image gives 512: take the CLIP that it was"
    ):
        check_consistent({"clip_image": b32, "image_to_token": l14})
    with pytest.raises(LineupError, match="makes pseudo-words 768 wide, clip_text takes 512"):
        check_consistent({"clip_text": b32, "image_to_token": l14})


def picture(seed: int) -> bytes:
    """An encoded picture, smooth and not square."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((300 + 20 * seed, 260), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_triton_gives_the_official_composed_embedding(tmp_path: Path) -> None:
    """The whole official checkpoint serves all three roles; each row's `*` is where its own text has it."""
    (tmp_path / "lineup.toml").write_text(LINEUP)
    torch.save(parity.pic2word(), tmp_path / "pic2word.pt")
    repository = tmp_path / "model_repository"
    manifest = export_lineup(tmp_path / "lineup.toml", repository)
    digests = [manifest["roles"][role]["clip_digest"] for role in ("clip_image", "image_to_token")]
    assert digests[0] == digests[1]

    wanted = parity.expected("pic2word")
    tokenizer = open_clip.get_tokenizer(ARCH)
    ids = torch.from_numpy(wanted["text"])
    texts = [tokenizer.decode(row[(row > 0) & (row < 49406)].tolist()).strip() for row in ids]
    assert torch.equal(tokenizer(texts), ids.long())
    files = [picture(seed) for seed in range(2)]
    with EmbeddedServer(repository) as server, Client(server.grpc_address) as client:
        ask = Asker(server)
        words = ask("image_to_token", features=wanted["input"])["pseudo_token"]
        embeddings = ask(
            "embed_text_with_token", text=[text.encode() for text in texts], pseudo_token=wanted["output"]
        )["embedding"]
        alone = client.embed_texts(texts, pseudo_tokens=wanted["output"])
        seen = client.pseudo_tokens(files)
    np.testing.assert_allclose(words, wanted["output"], atol=1e-5)
    np.testing.assert_allclose(embeddings, wanted["composed_norm"], atol=1e-5)
    np.testing.assert_allclose(alone, wanted["composed_norm"], atol=1e-5)

    theirs = build(find_architecture(ARCH, tmp_path / "pic2word.pt")).eval()
    state = torch.load(tmp_path / "pic2word.pt", weights_only=True, mmap=True)
    theirs.load_state_dict(
        {name.removeprefix("module."): tensor for name, tensor in state["state_dict"].items()}
    )
    see = open_clip.image_transform(theirs.visual.image_size, is_train=False)
    pixels = torch.stack([see(Image.open(io.BytesIO(file))) for file in files])
    with torch.inference_mode():
        (official,) = network("pic2word").load(tmp_path / "pic2word.pt").graph(theirs.encode_image(pixels))
    np.testing.assert_allclose(seen, official, atol=1e-3)
    assert np.abs(seen[0] - seen[1]).max() > 0.05
