"""Tokenizers built for the server agree with the libraries that the networks were trained with."""

import json
import unicodedata
from pathlib import Path

import open_clip
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Tokenizer
from transformers import BertTokenizer

from tercet.errors import LineupError
from tercet_export import vocabulary
from tests.serving.python_models import python_model
from tests.tiny import VOCABULARY
from tests.tiny_siglip import TOKENIZERS

CLIP = {"kind": "clip-bpe", "vocabulary": 49408}
SIGLIP = {
    "kind": "sentencepiece",
    "clean": "canonicalize",
    "end": 1,
    "end_token": "</s>",
    "published": "hf://timm/ViT-B-16-SigLIP",
}
THEIRS = SimpleTokenizer()
OURS = vocabulary.build(CLIP, None, Path())
clean = python_model("tokenize_text", "tokens").lower


@given(
    st.text(st.characters(exclude_categories=("Cs", "Cn")))
    | st.text(
        st.sampled_from("abcdefghij's\u017ftrevmldK 0123<|>!?.,;:-_*&é漢😀\u200b\u0301\u0345½²&amp;\n\t")
    )
)
@example("it's I'M we'\u017f don't they'll I'd've")
@example("a photo of * , in blue")
@example("caf\u00e9 cafe\u0301 na\u00efve \u00c3\u00a9 &lt;b&gt; 3D 12/07")
def test_clip_tokens_are_open_clips(text: str) -> None:
    cleaned = clean(text)
    # Not: letters newer than the tokenizers library, and open_clip's specials, which users may not write.
    assume(all(unicodedata.category(character) != "Cn" for character in cleaned))
    assume("<start_of_text>" not in cleaned)
    assume("<end_of_text>" not in cleaned)
    assert OURS.encode(cleaned, add_special_tokens=False).ids == THEIRS.encode(text)


@pytest.mark.parametrize("special", ["<|startoftext|>", "<|endoftext|>", "<start_of_text>", "<end_of_text>"])
def test_specials_in_a_text_are_characters(special: str) -> None:
    encoding = OURS.encode(f"a {special} b")
    assert max(encoding.ids) < 49406
    assert "".join(encoding.tokens).replace("</w>", "") == f"a{special}b"


def test_whole_tensor_is_open_clips() -> None:
    text = "a photo of a red dress"
    ids = [49406, *OURS.encode(text).ids, 49407]
    assert open_clip.tokenize([text])[0, : len(ids)].tolist() == ids


def test_fewer_merges_make_a_smaller_vocabulary_of_the_same_kind(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("#version: 0.2\ni n\nin g</w>\nt h\n")
    tokenizer = vocabulary.build({"kind": "clip-bpe", "vocabulary": 517}, "merges.txt", tmp_path)
    assert tokenizer.get_vocab_size() == 517
    assert tokenizer.encode("thing").tokens == ["th", "ing</w>"]
    assert tokenizer.get_vocab()["<|endoftext|>"] == 516
    with pytest.raises(LineupError, match=r"3 merges; a vocabulary of 600 tokens takes 86"):
        vocabulary.build({"kind": "clip-bpe", "vocabulary": 600}, "merges.txt", tmp_path)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY, "##s", "##ing", "!", "'"]) + "\n")
    return tmp_path


def test_wordpiece_decodes_as_bert_does(words: Path) -> None:
    ours = vocabulary.build({"kind": "wordpiece"}, "vocab.txt", words)
    theirs = BertTokenizer.from_pretrained(words)
    for text in ("two red circles on the beach!", "A SMALL green squareing", "unheard of"):
        ids = ours.encode(text).ids
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode([101, 104, 106, 102, 0]) == "a red"


def test_ready_tokenizer_file_is_taken(words: Path) -> None:
    vocabulary.build({"kind": "wordpiece"}, "vocab.txt", words).save(str(words / "tokenizer.json"))
    tokenizer = vocabulary.build({"kind": "wordpiece"}, "tokenizer.json", words)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.decode([104, 106]) == "a red"


@pytest.mark.parametrize(
    ("details", "source", "cure"),
    [
        ({"kind": "soundex"}, None, "wordpiece, sentencepiece"),
        ({"kind": "sentencepiece"}, None, 'tokenizer = "'),
        ({"kind": "sentencepiece"}, "spiece.model", "no tokenizer.json.*save_pretrained"),
        ({**SIGLIP, "end_token": "<eos>"}, "unigram.json", r"'</s>' as token 1, .*end with '<eos>'"),
        (SIGLIP, "wordpiece.json", r"'\[unused0\]' as token 1"),
        ({"kind": "sentencepiece", "vocabulary": 50, "end": 1}, "wordpiece.json", "network 50"),
        ({"kind": "wordpiece"}, None, 'tokenizer = "'),
        ({"kind": "wordpiece", "vocabulary": 50}, "vocab.txt", "trained with"),
        ({"kind": "wordpiece"}, "broken.json", "cannot be used"),
    ],
)
def test_wrong_vocabularies(details: dict, source: str | None, cure: str, words: Path) -> None:
    (words / "broken.json").write_text("{")
    (words / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>")
    TOKENIZERS["SigLIP"][0].save(str(words / "unigram.json"))
    vocabulary.build({"kind": "wordpiece"}, "vocab.txt", words).save(str(words / "wordpiece.json"))
    with pytest.raises(LineupError, match=cure):
        vocabulary.build(details, source, words)


def test_settings_that_a_tokenizer_file_was_saved_with_do_not_count(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(TOKENIZERS["SigLIP"][0].to_str())
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    built = vocabulary.build(SIGLIP, "tokenizer.json", tmp_path)
    assert built.encode("red star sky wall", add_special_tokens=False).ids == [6, 11, 18, 19]


def test_tokens_that_cleaning_makes_impossible_may_exceed_the_network(tmp_path: Path) -> None:
    """As the hundred `<extra_id_N>` of the multilingual SigLIP's vocabulary do."""
    size = TOKENIZERS["SigLIP"][0].get_vocab_size()
    tokenizer = Tokenizer.from_str(TOKENIZERS["SigLIP"][0].to_str())
    tokenizer.add_tokens(["<extra_id_0>", "<extra_id_1>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    details = {**SIGLIP, "vocabulary": size}
    assert vocabulary.build(details, "tokenizer.json", tmp_path).get_vocab_size() == size + 2
    with pytest.raises(LineupError, match=f"{size + 2} tokens and the network {size}"):
        vocabulary.build({**details, "clean": "lower"}, "tokenizer.json", tmp_path)
    tokenizer.add_tokens(["word"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(LineupError, match=f"{size + 3} tokens"):
        vocabulary.build(details, "tokenizer.json", tmp_path)


@pytest.mark.parametrize(
    ("details", "source", "beside", "expected"),
    [
        (CLIP, "hf://timm/vit", True, None),
        (CLIP, "weights.pt", True, None),
        (SIGLIP, "hf://timm/ViT-B-16-SigLIP", False, "hf://timm/ViT-B-16-SigLIP"),
        (SIGLIP, "hf://org/net/folder/weights.bin", False, "hf://org/net"),
        ({"kind": "wordpiece"}, "hf://microsoft/git-base-coco", False, "hf://microsoft/git-base-coco"),
        (SIGLIP, "weights.pt", False, "hf://timm/ViT-B-16-SigLIP"),
        (SIGLIP, "weights.pt", True, "BESIDE"),
        ({"kind": "wordpiece"}, "weights.pt", False, None),
    ],
)
def test_tokenizer_of_a_checkpoint_that_names_none(
    details: dict, source: str, beside: bool, expected: str | None, tmp_path: Path
) -> None:
    if beside:
        (tmp_path / "tokenizer.json").write_text("{}")
        expected = expected and str(tmp_path / "tokenizer.json")
    assert vocabulary.default_source(details, source, tmp_path / "weights.pt") == expected


OFA = {"kind": "ofa-bpe", "vocabulary": 12, "start": 0, "end": 2}
OFA_WORDS = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "\u0120dog",
    ".",
    "a",
    "\u0120a",
    "\u00c3",
    "\u00a9",
    "\u0120",
    "<mask>",
]


def fairseq_dictionary(folder: Path) -> Path:
    """dict.txt and encoder.json: GPT-2 numbers its words otherwise."""
    words = OFA_WORDS[4:-1]
    numbers = {word: 7 * place % 50 for place, word in enumerate(words)}
    (folder / "encoder.json").write_text(json.dumps(numbers))
    (folder / "dict.txt").write_text(
        "".join(f"{numbers[word]} {900 - number}\n" for number, word in enumerate(words))
    )
    return folder / "dict.txt"


@pytest.mark.parametrize("home", ["dict.txt", "vocab.json", "tokenizer.json"])
def test_ofa_words_from_every_home(home: str, tmp_path: Path) -> None:
    fairseq_dictionary(tmp_path)
    words = {word: number for number, word in enumerate(OFA_WORDS)}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    vocabulary.build(OFA, "vocab.json", tmp_path).save(str(tmp_path / "tokenizer.json"))
    assert vocabulary.build(OFA, home, tmp_path).get_vocab() == words


def test_ofa_codes_and_bins_follow_the_words(tmp_path: Path) -> None:
    fairseq_dictionary(tmp_path)
    built = vocabulary.build(OFA | {"vocabulary": 12 + 9192}, "dict.txt", tmp_path)
    first = [built.id_to_token(number) for number in (11, 12, 12 + 8191, 12 + 8192, 12 + 9191)]
    assert first == ["<mask>", "<code_0>", "<code_8191>", "<bin_0>", "<bin_999>"]


def test_what_is_no_vocabulary_of_ofa(tmp_path: Path) -> None:
    path = fairseq_dictionary(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    for source in ("vocab.json", "encoder.json"):
        with pytest.raises(LineupError, match=r"no vocabulary of OFA.*hf://OFA-Sys/ofa-base"):
            vocabulary.build(OFA, source, tmp_path)
    (tmp_path / "encoder.json").unlink()
    with pytest.raises(LineupError, match=r"encoder\.json, which is not beside it"):
        vocabulary.build(OFA, path.name, tmp_path)
    with pytest.raises(LineupError, match="no default vocabulary"):
        vocabulary.build(OFA, None, tmp_path)


def test_ofa_words_beside_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "caption_base_best.pt"
    details = OFA | {"published": "hf://OFA-Sys/ofa-base"}
    assert vocabulary.default_source(details, checkpoint.name, checkpoint) == "hf://OFA-Sys/ofa-base"
    path = fairseq_dictionary(tmp_path)
    assert vocabulary.default_source(details, checkpoint.name, checkpoint) == str(path)
