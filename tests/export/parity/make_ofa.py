"""What the official OFA makes of pictures, with weights that follow from names: ofa_{tiny,base,large}.npz.

Needs this project's environment and, in a folder of their own that PYTHONPATH names (pip install --no-deps
--target FOLDER): modelscope==1.40.2 modelscope_hub addict einops requests urllib3 idna certifi
charset_normalizer. Run: python -m tests.export.parity.make_ofa tiny base large
"""

import io
import sys
import types
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from tercet_export.networks.ofa import ARCHITECTURES, OFAConfig
from tests.export import parity
from tests.tiny_ofa import OFA_SIZES, ofa_weights

PICTURES = {"tiny": 8, "base": 4, "large": 3}
PREFIX = (0, 11, 7, 19, 5, 8)  # ids whose logits are kept


@cache
def modelscope() -> types.SimpleNamespace:
    """The official classes, without the package's imports, which need fairseq for other models."""
    import modelscope

    name = "modelscope.models.multi_modal.ofa"
    package = types.ModuleType(name)
    package.__path__ = [str(Path(modelscope.__file__).parent / "models" / "multi_modal" / "ofa")]
    sys.modules[name] = package
    for part in ("fairseq", "fairseq.modules"):  # a vision transformer asks for it, which OFA has not
        sys.modules[part] = types.ModuleType(part)
    sys.modules["fairseq.modules"].LayerNorm = torch.nn.LayerNorm  # type: ignore[attr-defined]
    from modelscope.models.multi_modal.ofa.configuration_ofa import OFAConfig as Config
    from modelscope.models.multi_modal.ofa.generate.sequence_generator import SequenceGenerator
    from modelscope.models.multi_modal.ofa.modeling_ofa import OFAModel
    from modelscope.models.multi_modal.ofa.resnet import ResNet

    Config.forced_bos_token_id = None
    return types.SimpleNamespace(Config=Config, Generator=SequenceGenerator, Model=OFAModel, ResNet=ResNet)


@torch.no_grad()
def official(config: OFAConfig, rule: parity.Rule) -> torch.nn.Module:
    """The official network with these sizes, and weights by a rule."""
    classes = modelscope()
    settings = classes.Config(
        vocab_size=config.vocabulary,
        max_position_embeddings=config.max_positions,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        encoder_ffn_dim=config.feedforward,
        decoder_ffn_dim=config.feedforward,
        encoder_attention_heads=config.heads,
        decoder_attention_heads=config.heads,
        d_model=config.width,
        token_bucket_size=config.token_bucket,
        image_bucket_size=config.image_bucket,
        resnet_type="resnet152" if config.resnet == (3, 8, 36) else "resnet101",
    )
    network = classes.Model(settings).eval()
    if config.resnet not in ((3, 4, 23), (3, 8, 36)):
        network.encoder.embed_images = classes.ResNet(list(config.resnet)).eval()
    for name, tensor in network.state_dict().items():
        tensor.copy_(rule(name, tuple(tensor.shape)))
    return network


class Tokenizer:
    """What the generator asks of a tokenizer."""

    pad_token_id, unk_token_id, bos_token_id, eos_token_id = 1, 3, 0, 2

    def __init__(self, size: int) -> None:
        self.size = size

    def get_vocab(self) -> dict[str, int]:
        """As many words as the network has."""
        return {str(number): number for number in range(self.size)}

    def get_added_vocab(self) -> dict[str, int]:
        """None."""
        return {}


def generate(
    network: torch.nn.Module, config: OFAConfig, pixels: Tensor, beams: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids i64 [B, L], filled with the end, and scores f32 [B, 1] of the official search."""
    generator = modelscope().Generator(
        Tokenizer(config.vocabulary),
        beam_size=beams,
        max_len_b=config.max_tokens,
        min_len=1,
        no_repeat_ngram_size=3,
    )
    found: Sequence[Any] = generator.generate([network], {"net_input": inputs(config, pixels)})
    ids = np.full((len(pixels), config.max_tokens), config.end)
    for row, hypotheses in enumerate(found):
        tokens = hypotheses[0]["tokens"][: config.max_tokens].tolist()
        ids[row, : len(tokens)] = tokens
    return ids, np.array([[float(hypotheses[0]["score"])] for hypotheses in found], np.float32)


def inputs(config: OFAConfig, pixels: Tensor) -> dict[str, Tensor]:
    """The encoder's inputs, the prompt with each picture."""
    return {
        "input_ids": torch.tensor(config.prompt).repeat(len(pixels), 1),
        "patch_images": pixels,
        "patch_masks": torch.ones(len(pixels), dtype=torch.bool),
    }


def pictures(count: int, size: int) -> list[bytes]:
    """JPEG files of other sides than the network's."""
    rng = np.random.default_rng(7)
    files = []
    for number in range(count):
        tint = rng.integers(0, 256, 3)
        mixed = 0.5 * tint + 0.5 * rng.integers(0, 256, (4 + number, 5, 3))
        coarse = Image.fromarray(mixed.astype(np.uint8))
        file = io.BytesIO()
        kernel = (Image.Resampling.BICUBIC, Image.Resampling.NEAREST)[number % 2]
        coarse.resize((size + 30 + 9 * number, size + 17), kernel).save(file, "JPEG", quality=60)
        files.append(file.getvalue())
    return files


def preprocessed(files: list[bytes], size: int) -> Tensor:
    """As `patch_resize_transform` of OFA's data/mm_data/caption_dataset.py."""
    bicubic = transforms.InterpolationMode.BICUBIC
    transform = transforms.Compose(
        [
            transforms.Resize((size, size), interpolation=bicubic),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]),
        ]
    )
    return torch.stack([transform(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


@torch.inference_mode()
def make(size: str) -> None:
    """Write ofa_SIZE.npz."""
    config, rule = OFA_SIZES, parity.ofa
    if size == "tiny":
        weights = ofa_weights()
        rule = lambda name, shape: weights[name]  # noqa: E731
    else:
        config = ARCHITECTURES[f"ofa-{size}"]
    files = pictures(PICTURES[size], config.image_size)
    network = official(config, rule)
    pixels = preprocessed(files, config.image_size)
    made: dict[str, np.ndarray] = {
        f"picture_{number}": np.frombuffer(file, np.uint8) for number, file in enumerate(files)
    }
    encoded = network.encoder(**inputs(config, pixels[:1]))
    made["encoded"] = encoded.last_hidden_state[0, ::13, ::7].numpy()
    logits = network.decoder(
        input_ids=torch.tensor([PREFIX]),
        encoder_hidden_states=encoded.last_hidden_state,
        src_pos_embed=encoded.position_embedding,
    ).last_hidden_state[0]  # (T, vocabulary), in spite of its name
    top = logits.topk(20, dim=-1)
    made |= {"logits": top.values.numpy(), "logits_ids": top.indices.numpy()}
    made["ids"], made["score"] = generate(network, config, pixels, beams=5)
    if size == "tiny":
        made["greedy_ids"], _ = generate(network, config, pixels, beams=1)
    for name in ("ids", "score"):
        print(size, name, made[name].tolist())
    np.savez_compressed(parity.FOLDER / f"ofa_{size}.npz", **made)


if __name__ == "__main__":
    for chosen in sys.argv[1:]:
        make(chosen)
