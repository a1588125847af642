"""What the official mPLUG makes of encoded pictures, filled with deterministic weights: writes mplug_*.npz,
and the names and shapes of the large one, mplug_large.json.

Needs modelscope==1.40.2 unpacked (pip download --no-deps, unzip) and this project's environment. Run:
python -m tests.export.parity.make_mplug FOLDER tiny|base|large, where FOLDER holds `modelscope`.
"""

import io
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from torchvision import transforms

from tercet_export.networks.captioner import CLIP_MEAN, CLIP_STD
from tercet_export.networks.mplug import MPLUG_BASE, MPLUG_LARGE, OTHER_PARTS, MPLUGConfig
from tests.export import parity
from tests.tiny_mplug import MPLUG_SIZES, mplug_weights, official_weights

CONFIGS = {"tiny": MPLUG_SIZES, "base": MPLUG_BASE, "large": MPLUG_LARGE}
PICTURES = {"tiny": 8, "base": 4, "large": 3}
TOP = 20  # logits kept of each position


def official(folder: Path) -> Any:
    """The module `modeling_mplug`, without what its packages import, and fit for transformers 5."""
    for name in ("modelscope", "modelscope.models", "modelscope.models.multi_modal", "modelscope.utils"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder / name.replace(".", "/"))]
    from modelscope.models.multi_modal.mplug import modeling_mplug

    base = transformers.PreTrainedModel
    base.all_tied_weights_keys = {}
    base.get_head_mask = lambda self, mask, layers, *_: [None] * layers
    base.invert_attention_mask = lambda self, mask: (1.0 - mask[:, None, None, :].float()) * -1e9
    transformers.PretrainedConfig.use_return_dict = True
    return modeling_mplug


def build(modeling: Any, config: MPLUGConfig) -> Any:
    """The official captioning network with the sizes of `config`, without weights."""
    text = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": config.text_width,
        "intermediate_size": config.text_feedforward,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": config.max_positions,
        "num_attention_heads": config.text_heads,
        "num_hidden_layers": config.text_layers,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": config.vocabulary,
        "encoder_width": config.text_width,
        "add_cross_attention": False,
        "use_cache": False,
        "text_encoder_layers": config.text_layers // 2,
        "fusion_layers": config.text_layers // 2,
        "text_decode_layers": config.text_layers,
        "stride_layer": 6,
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config_bert.json").write_text(json.dumps(text))
        special = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        Path(folder, "vocab.txt").write_text("\n".join(special) + "\n")
        whole = modeling.MPlugConfig(
            task="image-captioning",
            image_res=config.image_size,
            vision_width=config.vision_width,
            clip_name="ViT-B-16" if config.patch_size == 16 else "ViT-L-14",
            clip_embed_dim=config.vision_projection,
            clip_image_resolution=96,  # what CLIP's own positions are for, which are replaced
            clip_vision_layers=config.vision_layers,
            clip_vision_width=config.vision_width,
            clip_vision_patch_size=config.patch_size,
            clip_transformer_width=config.vision_projection,
            clip_transformer_heads=max(1, config.vision_projection // 64),
            clip_transformer_layers=12 if config.vision_width > 700 else 1,
            min_length=config.min_tokens,
            max_length=config.max_tokens,
            beam_size=5,
        )
        whole.model_dir = folder
        with torch.device("meta"):
            network = modeling.MPlugForImageCaption(whole).eval()
    visual = network.visual_encoder.visual
    visual.transformer.use_grad_ckp = False
    patches = (config.image_size // config.patch_size) ** 2
    visual.positional_embedding = torch.nn.Parameter(
        torch.zeros(1 + patches, config.vision_width, device="meta")
    )
    return network


def pictures(count: int) -> list[bytes]:
    """Encoded pictures of several shapes and formats."""
    rng = np.random.default_rng(3)
    files = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (3 + number, 4, 3), dtype=np.uint8))
        file = io.BytesIO()
        picture = coarse.resize((520 - 60 * number, 300 + 50 * number), Image.Resampling.BICUBIC)
        picture.save(file, "WEBP" if number == 1 else "JPEG", quality=80)
        files.append(file.getvalue())
    return files


def preprocess(files: list[bytes], size: int) -> Tensor:
    """As `MPlugPreprocessor` of modelscope/preprocessors/multi_modal.py."""
    transform = transforms.Compose(
        [
            transforms.Resize((size, size), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(mean=CLIP_MEAN, std=CLIP_STD),
        ]
    )
    return torch.stack([transform(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def generate(network: Any, tokens: Tensor, beams: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, L] without the start, filled with the end, and scores [B, 1] of the official TextGenerator."""
    generator = network.beam_generator
    generator.beam_size = beams
    found, scores = generator.translate_batch([tokens, torch.ones(tokens.shape[:2], dtype=torch.long)])
    ids = np.full((len(found), generator.max_length), generator.end_token, np.int16)
    for row, hypotheses in zip(ids, found, strict=True):
        words = hypotheses[0][1:].tolist()
        row[: len(words)] = words
    return ids, np.array([[float(score[0])] for score in scores], np.float32)


def resized_positions(network: Any) -> dict[str, np.ndarray]:
    """Position embeddings of a CLIP of other pictures, and what the official code makes of them."""
    from modelscope.models.multi_modal.mplug.clip import clip

    torch.manual_seed(0)
    before = clip.load_from_config(network.config).visual.positional_embedding
    torch.manual_seed(0)
    after = network._initialize_clip(network.config).visual.positional_embedding.weight[0]
    return {"positions_96": before.numpy(), "positions_64": after.numpy()}


@torch.inference_mode()
def main(folder: Path, name: str) -> None:
    """Run one size."""
    config = CONFIGS[name]
    network = build(official(folder), config)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    if name == "large":
        (parity.FOLDER / "mplug_large.json").write_text(json.dumps(shapes, separators=(",", ":")))
    if name == "tiny":
        weights = mplug_weights()
    else:
        assert shapes == parity.names_and_shapes(f"mplug_{name}")
        weights = {key: official_weights(key, shapes[key]) for key in shapes if not OTHER_PARTS.match(key)}
    weights["text_decoder.bert.embeddings.position_ids"] = torch.arange(config.max_positions)[None]
    left = network.load_state_dict(weights, strict=False, assign=True)
    assert not left.unexpected_keys
    assert all(OTHER_PARTS.match(key) or key.endswith("predictions.bias") for key in left.missing_keys)

    files = pictures(PICTURES[name])
    tokens = network.visual_encoder.visual(preprocess(files, config.image_size), skip_last_layer=True)
    if network.large:
        tokens = network.visn_layer_norm(network.visn_fc(tokens))
    token_ids, score = generate(network, tokens, beams=5)
    prefix = torch.from_numpy(np.c_[np.full(len(files), config.start), token_ids[:, :6]]).long()
    logits = network.text_decoder(
        prefix, encoder_hidden_states=tokens, encoder_attention_mask=torch.ones(tokens.shape[:2])
    ).logits
    top = logits.topk(TOP, dim=-1)
    arrays = {f"picture_{number}": np.frombuffer(file, np.uint8) for number, file in enumerate(files)}
    arrays |= {
        "tokens": tokens[:, [0, 1, -1], :24].numpy(),
        "prefix": prefix.numpy(),
        "logits_top": top.values.numpy(),
        "logits_top_ids": top.indices.numpy().astype(np.int16),
        "token_ids": token_ids,
        "score": score,
    }
    if name == "tiny":
        arrays["greedy"] = generate(network, tokens, beams=1)[0]
        arrays |= resized_positions(network)
    np.savez_compressed(parity.FOLDER / f"mplug_{name}.npz", **arrays)
    print(token_ids.tolist(), score[:, 0].tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
