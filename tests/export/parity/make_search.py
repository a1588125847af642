"""What the official generators of OFA (fairseq's) and mPLUG make of toy decoders: writes search.npz.

Needs modelscope==1.40.2 unpacked (pip download --no-deps, unzip) and this project's environment. Run:
python -m tests.export.parity.make_search FOLDER, where FOLDER holds `modelscope/models/multi_modal`.
"""

import importlib.util
import math
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.export import parity
from tests.export.toy import Case, ToyDecoder, official_cases

PARTS = "modelscope.models.multi_modal.ofa.generate"


def official(folder: Path, name: str, file: str) -> types.ModuleType:
    """One file of the package as a module, without what the package itself imports."""
    spec = importlib.util.spec_from_file_location(name, folder / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Output(dict):  # type: ignore[type-arg]
    """A model's output as transformers gives it: by name, by number and as attributes."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]  # type: ignore[no-any-return]

    def __getitem__(self, key: str | int) -> Tensor:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)  # type: ignore[no-any-return]


class Encoder(torch.nn.Module):
    """Gives each picture's number on, as its only feature."""

    def forward(self, input_ids: Tensor, **_: object) -> Output:
        features = input_ids[:, :1, None].double()
        return Output(
            last_hidden_state=features,
            padding_mask=torch.zeros_like(input_ids[:, :1], dtype=torch.bool),
            position_embedding=features,
        )


class Decoder(torch.nn.Module):
    """The toy, for what either generator hands it."""

    def __init__(self, toy: ToyDecoder) -> None:
        super().__init__()
        self.toy = toy

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor, **_: object) -> Output:
        rows = encoder_hidden_states[:, 0, 0].long()
        return Output(logits=self.toy.logits(rows, input_ids)[:, None])


class Fairseq(torch.nn.Module):
    """The parts of OFA's model that the generator asks for."""

    padding_idx = 1

    def __init__(self, toy: ToyDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder(toy)

    def get_normalized_probs(self, output: tuple[Tensor, ...], **_: object) -> Tensor:
        return output[0].log_softmax(dim=-1)

    def reorder_incremental_state(self, *_: object) -> None:
        pass


class Tokenizer:
    """Ids as fairseq's dictionaries have them."""

    bos_token_id, pad_token_id, eos_token_id, unk_token_id = 0, 1, 2, 3

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return {str(number): number for number in range(self.vocabulary)}

    def get_added_vocab(self) -> dict[str, int]:
        return {}


def by_fairseq(case: Case, module: types.ModuleType) -> list[tuple[list[int], float]]:
    options = case.options
    generator = module.SequenceGenerator(
        Tokenizer(case.vocabulary),
        beam_size=options.beams,
        max_len_b=options.max_tokens,
        min_len=options.min_tokens,
        len_penalty=options.length_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram,
    )
    rows = torch.arange(case.batch)[:, None]
    module.EnsembleModel.reorder_encoder_out = lambda self, outs, order: [
        Output({name: tensor.index_select(0, order) for name, tensor in out.items()}) for out in outs
    ]
    module.EnsembleModel.reorder_incremental_state = lambda *_: None
    found = generator.generate([Fairseq(case.decoder())], {"net_input": {"input_ids": rows}})
    return [(best[0]["tokens"].tolist(), float(best[0]["score"])) for best in found]


def by_mplug(case: Case, module: types.ModuleType) -> list[tuple[list[int], float]]:
    options = case.options
    args = types.SimpleNamespace(
        beam_size=options.beams, min_length=options.min_tokens, max_length=options.max_tokens
    )
    generator = module.TextGenerator(args, Decoder(case.decoder()))
    generator.start_token, generator.end_token = options.start, options.end
    features = torch.arange(case.batch)[:, None, None].double()
    ids, scores = generator.translate_batch((features, torch.ones(case.batch, 1)))
    return [(row[0][1:].tolist(), float(score[0])) for row, score in zip(ids, scores, strict=True)]


def main(folder: Path) -> None:
    """Run every case by its official generator."""
    for name in (PARTS, *(PARTS.rsplit(".", cut)[0] for cut in range(1, 5))):
        sys.modules[name] = types.ModuleType(name)
    generate = folder / "modelscope/models/multi_modal/ofa/generate"
    for file in ("token_generation_constraints", "search", "ngram_repeat_block"):
        setattr(sys.modules[PARTS], file, official(generate, f"{PARTS}.{file}", f"{file}.py"))
    fairseq = official(generate, f"{PARTS}.sequence_generator", "sequence_generator.py")
    mplug = official(folder / "modelscope/models/multi_modal/mplug", "predictor", "predictor.py")
    arrays: dict[str, np.ndarray] = {}
    for case in official_cases():
        found = by_fairseq(case, fairseq) if case.name.startswith("fairseq") else by_mplug(case, mplug)
        longest = case.options.max_tokens + 1
        ids = np.full((case.batch, longest), -1)
        for row, (tokens, _) in zip(ids, found, strict=True):
            row[: len(tokens)] = tokens
        arrays[case.name] = ids.astype(np.int16)
        arrays[f"{case.name}_score"] = np.array([score for _, score in found], np.float32)
    assert all(math.isfinite(score) for name in arrays if name.endswith("_score") for score in arrays[name])
    np.savez_compressed(parity.FOLDER / "search.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
