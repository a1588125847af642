"""Builds the `tokenizer.json` that the server reads (Hugging Face `tokenizers` form) from a network's own
vocabulary.

`clip-bpe`: CLIP's byte-pair encoding from a merges file; `wordpiece`: BERT's, from `vocab.txt`;
`sentencepiece`: SigLIP's and SigLIP 2's, from a `tokenizer.json` alone; `ofa-bpe`: GPT-2's under OFA's ids,
to read captions. The others may come as a ready `tokenizer.json` too. Cleaning texts and framing their tokens
as open_clip does it is the server's part, by what the manifest says, and no rule of this file format.
"""

import gzip
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Sequence, Split

from tercet.errors import LineupError
from tercet_export import checkpoints

END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"

# CLIP's words, for lower-cased text. Its own pattern ignores case, by which U+017F (long s) counts as s and
# U+0345 as nothing; and it names the special tokens, which are left out here: a user who types one gets
# its characters and not its id.
CLIP_WORDS = r"'[s\x{17F}]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# OFA's first ids; its words follow, then codes of pictures and bins of places, which no vocabulary file has.
OFA_HOMES = (
    "vocab.json of hf://OFA-Sys/ofa-base, or dict.txt and encoder.json of utils/BPE in github.com/OFA-Sys/OFA"
)
OFA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
OFA_MORE = (*(f"<code_{n}>" for n in range(8192)), *(f"<bin_{n}>" for n in range(1000)))


def build(details: dict[str, Any], source: str | None, base: Path) -> Tokenizer:
    """The tokenizer that a role's `details["tokenizer"]` describes, from `source`.

    `source` is a file relative to `base` or `hf://...`; None is open_clip's own merges file, for `clip-bpe`.
    LineupError where it does not have the network's ids.
    """
    kind = details["kind"]
    if kind not in BUILDERS:
        raise LineupError(f"there is no tokenizer of kind {kind!r}: the known ones are {', '.join(BUILDERS)}")
    if source is None and kind != "clip-bpe":
        raise LineupError(
            f'a {kind} tokenizer has no default vocabulary: write tokenizer = "..." in the lineup'
        )
    path = default_merges() if source is None else find(source, base)
    try:
        if path.suffix == ".json" and kind != "ofa-bpe":
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = BUILDERS[kind](path, details)
    except LineupError:
        raise
    except Exception as error:
        raise LineupError(f"tokenizer {path} cannot be used: {error}") from error
    # A file may bring the settings of whoever saved it, which would pad or cut the ids.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    check(tokenizer, details, path)
    return tokenizer


def check(tokenizer: Tokenizer, details: Mapping[str, Any], path: Path) -> None:
    """LineupError where texts could get ids that the network does not have, or end with another token."""
    size, wanted = tokenizer.get_vocab_size(), details.get("vocabulary")
    cure = "give the vocabulary that it was trained with"
    if wanted is not None and size > wanted:
        # SigLIP's multilingual vocabulary is larger than its network: by tokens with punctuation, of which
        # its cleaning leaves none.
        more = [token for token, number in tokenizer.get_vocab().items() if number >= wanted]
        cleaned = details.get("clean") == "canonicalize"
        if not cleaned or not all(set(token) & set(string.punctuation) for token in more):
            raise LineupError(f"tokenizer {path} has {size} tokens and the network {wanted}: {cure}")
    if (wanted_end := details.get("end_token")) is not None:
        end = tokenizer.id_to_token(details["end"])
        if end != wanted_end:
            raise LineupError(
                f"tokenizer {path} has {end!r} as token {details['end']}, and the network's texts end with "
                f"{wanted_end!r}: {cure}"
            )


def default_source(details: Mapping[str, Any], source: str, checkpoint: Path) -> str | None:
    """Where the tokenizer is when the lineup names none, for `build`; None where nothing is known.

    `source` is the checkpoint as the lineup names it, `checkpoint` its file. Of the hub: its repository. Of
    this machine: the tokenizer.json beside it (OFA's vocab.json or dict.txt too), else what is published.
    CLIP's own comes with open_clip.
    """
    if details["kind"] == "clip-bpe":
        return None
    if source.startswith("hf://"):
        return "/".join(source.split("/")[:4])
    names = ("tokenizer.json", "vocab.json", "dict.txt")[: 3 if details["kind"] == "ofa-bpe" else 1]
    beside = [checkpoint.absolute().parent / name for name in names]
    return next((str(path) for path in beside if path.is_file()), details.get("published"))


def find(source: str, base: Path) -> Path:
    """The local vocabulary file; of a hub repository the first of the usual ones where none is named."""
    if source.startswith("hf://") and source.count("/") == 3:
        return checkpoints.hub_file(source.removeprefix("hf://"), "tokenizer.json", "vocab.txt", "vocab.json")
    return checkpoints.resolve(source, base)


def default_merges() -> Path:
    """The merges file of CLIP that open_clip carries."""
    from open_clip.tokenizer import default_bpe

    return Path(default_bpe())


def byte_symbols() -> list[str]:
    """The 256 printable characters that stand for bytes, in the order of CLIP's ids.

    Printable Latin-1 characters stand for themselves and come first; the other bytes follow as U+0100
    onwards.
    """
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in own] + [chr(256 + n) for n in range(256 - len(own))]


def clip_bpe(path: Path, details: dict[str, Any]) -> Tokenizer:
    """CLIP's encoding with as many of the file's merges as the network's vocabulary has room for.

    Ids: 256 bytes, 256 bytes that end a word, one for each merge, start, end.
    """
    content = path.read_bytes()
    text = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    headers = ('"bpe_simple_vocab', "#version")
    lines = [line for line in text.decode("utf-8").split("\n") if line and not line.startswith(headers)]
    alphabet = byte_symbols()
    room = details["vocabulary"] - 2 * len(alphabet) - 2
    if not 0 <= room <= len(lines):
        raise LineupError(
            f"{path} has {len(lines)} merges; a vocabulary of {details['vocabulary']} tokens takes {room}"
        )
    merges = [(first, second) for first, second in (line.split() for line in lines[:room])]
    tokens = [*alphabet, *(symbol + END_OF_WORD for symbol in alphabet), *map("".join, merges), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, end_of_word_suffix=END_OF_WORD))
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def wordpiece(path: Path, details: dict[str, Any]) -> Tokenizer:
    """BERT's uncased WordPiece; a token's line in `vocab.txt` is its id, an empty line an id not used."""
    words = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    vocabulary = {word: number for number, word in enumerate(words) if word}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder(prefix="##", cleanup=True)
    tokenizer.add_special_tokens([token for token in BERT_SPECIALS if token in vocabulary])
    return tokenizer


def sentencepiece(path: Path, details: dict[str, Any]) -> Tokenizer:
    """Refuses any file: SentencePiece's own cannot be read here, and the hub has it converted."""
    raise LineupError(
        f"{path} is no tokenizer.json, which this network's tokenizer must come as: take the one of the hub "
        f"({details.get('published', 'hf://timm/ViT-B-16-SigLIP')}), or make one with transformers, "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )


def ofa_bpe(path: Path, details: dict[str, Any]) -> Tokenizer:
    """GPT-2's byte-pair encoding under OFA's ids, without merges: captions are only read.

    From the hub's `vocab.json` or a `tokenizer.json`, or from fairseq's `dict.txt` with `encoder.json` beside
    it. As fairseq prints them, unknown words, codes and bins are text.
    """
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        if "model" in content:
            added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
            content = content["model"]["vocab"] | added
        vocabulary: dict[str, int] = content
    else:
        vocabulary = fairseq_words(path)
    if [vocabulary.get(token) for token in OFA_SPECIALS] != list(range(len(OFA_SPECIALS))):
        raise LineupError(
            f"{path} is no vocabulary of OFA, in which {', '.join(OFA_SPECIALS)} come first: give {OFA_HOMES}"
        )
    if details["vocabulary"] - len(vocabulary) == len(OFA_MORE):
        vocabulary |= {token: number for number, token in enumerate(OFA_MORE, len(vocabulary))}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([token for token in OFA_SPECIALS if token != "<unk>"])
    return tokenizer


def fairseq_words(path: Path) -> dict[str, int]:
    """OFA's ids from `dict.txt`: a line is a number of GPT-2's, which `encoder.json` says in words."""
    beside = path.parent / "encoder.json"
    if not beside.is_file():
        raise LineupError(
            f"{path} holds numbers, whose words are in encoder.json, which is not beside it: give {OFA_HOMES}"
        )
    words = {str(number): word for word, number in json.loads(beside.read_text(encoding="utf-8")).items()}
    lines = path.read_text(encoding="utf-8").split("\n")
    symbols = [line.rpartition(" ")[0] for line in lines if line]
    tokens = [*OFA_SPECIALS, *(words.get(symbol, symbol) for symbol in symbols), "<mask>"]
    return {token: number for number, token in enumerate(tokens)}


BUILDERS = {
    "clip-bpe": clip_bpe,
    "wordpiece": wordpiece,
    "sentencepiece": sentencepiece,
    "ofa-bpe": ofa_bpe,
}
