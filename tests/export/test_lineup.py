"""Lineups: what is written, that it is all or nothing, what is kept, and what is refused."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError

from tercet.errors import CheckpointError, LineupError, TercetError, ValidationError
from tercet.lineup import parse_lineup
from tercet_export import lineup as lineups
from tercet_export import repository
from tercet_export.lineup import Choice, encoder_fingerprint, export_lineup, read_lineup
from tests.export import parity
from tests.tiny import write_tiny_lineup

READERS = ("decode_image", "tokenize_text", "detokenize_caption", "describe_lineup")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def exported(tiny_repository: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the tiny repository and of the lineup it was made from."""
    shutil.copytree(tiny_repository, tmp_path / "model_repository")
    return write_tiny_lineup(tmp_path / "tiny"), tmp_path / "model_repository"


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        pytest.fail("a role was exported again")

    monkeypatch.setattr(lineups, "export_network", refuse)


def test_repository_holds_everything(tiny_repository: Path) -> None:
    manifests = [(tiny_repository / model / "1" / "lineup.json").read_text() for model in READERS]
    assert len(set(manifests)) == 1
    manifest = parse_lineup(manifests[0])
    assert manifest.name == "tiny"
    assert (manifest.context_length, manifest.embedding_dimension) == (77, 32)
    for role, entry in manifest.roles.items():
        graph = tiny_repository / role / "1" / "model.onnx"
        assert lineups.checkpoints.sha256(graph) == entry.onnx_sha256
        assert len(entry.checkpoint.sha256) == 64
    assert manifest.roles["background_remover"].details["preprocessing"]["tensor"] == "scene"
    assert (tiny_repository / "tokenize_text" / "1" / "tokenizer.json").is_file()
    assert (tiny_repository / "detokenize_caption" / "1" / "tokenizer.json").is_file()
    assert [path.name for path in tiny_repository.parent.glob(".*")] == []


def test_hand_written_files_are_copied(tiny_repository: Path) -> None:
    ours = contents(repository.HAND_WRITTEN)
    theirs = contents(tiny_repository)
    hand_written = {name for name in ours if name.endswith((".pbtxt", ".py"))}
    assert hand_written
    assert all(theirs[name] == ours[name] for name in hand_written)
    assert all((folder / "1").is_dir() for folder in tiny_repository.iterdir())


def test_second_export_keeps_what_is_there(exported: tuple[Path, Path], no_export: None) -> None:
    lineup, target = exported
    before, old = contents(target), repository.read_manifest(target)
    new = export_lineup(lineup, target)
    after = contents(target)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if not name.endswith("lineup.json"))
    assert new == repository.read_manifest(target)
    # Meanwhile the checkout may have got another commit.
    assert {**new, "versions": None} == {**old, "versions": None}


def test_changed_role_alone_is_exported_again(exported: tuple[Path, Path]) -> None:
    lineup, target = exported
    old = repository.read_manifest(target)
    lineup.write_text(lineup.read_text() + "\n")
    weights = lineup.parent / "pic2word.safetensors"
    tensors = lineups.checkpoints.read(weights).tensors()
    lineups.checkpoints.safetensors.torch.save_file({n: t * 2 for n, t in tensors.items()}, weights)
    done = {}
    new = export_lineup(
        lineup, target, after=lambda progress: done.update({progress.role: progress.exported is not None})
    )
    assert [role for role, again in done.items() if again] == ["image_to_token"]
    assert new["fingerprint"] != old["fingerprint"]
    assert new["encoder_fingerprint"] == old["encoder_fingerprint"]


def test_damaged_graph_is_exported_again(exported: tuple[Path, Path]) -> None:
    lineup, target = exported
    graph = target / "image_to_token" / "1" / "model.onnx"
    before = graph.read_bytes()
    graph.write_bytes(before[:-1])
    export_lineup(lineup, target)
    assert (
        lineups.checkpoints.sha256(graph)
        == repository.read_manifest(target)["roles"]["image_to_token"]["onnx_sha256"]
    )
    assert len(graph.read_bytes()) > len(before) - 1


@pytest.mark.parametrize("fault", ["checkpoint", "tokenizer", "validation", "disk", "interrupt"])
def test_failure_leaves_the_repository_as_it_was(
    fault: str, exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lineup, target = exported
    before = contents(target)
    error: type[BaseException] = TercetError
    if fault == "checkpoint":
        (lineup.parent / "pic2word.safetensors").write_bytes(b"nothing")
    elif fault == "tokenizer":
        (lineup.parent / "merges.txt").write_text("a b\n")
    elif fault == "validation":
        (lineup.parent / "pic2word.safetensors").rename(lineup.parent / "old.safetensors")
        tensors = lineups.checkpoints.read(lineup.parent / "old.safetensors").tensors()
        changed = {name: tensor * 2 for name, tensor in tensors.items()}
        lineups.checkpoints.safetensors.torch.save_file(changed, lineup.parent / "pic2word.safetensors")

        def refuse(*arguments: object) -> None:
            raise ValidationError("differs")

        monkeypatch.setattr("tercet_export.export.validate", refuse)
    else:
        error = LineupError if fault == "disk" else KeyboardInterrupt
        replace, calls = repository.os.replace, []

        def fail_late(source: Path, destination: Path) -> None:
            calls.append(source)
            if len(calls) == 9:
                raise OSError("no space left") if fault == "disk" else KeyboardInterrupt
            replace(source, destination)

        monkeypatch.setattr(repository.os, "replace", fail_late)
    with pytest.raises(error):
        export_lineup(lineup, target)
    assert contents(target) == before
    assert not list(target.parent.glob(".*"))


def test_role_left_out_loses_its_weights(exported: tuple[Path, Path], no_export: None) -> None:
    lineup, target = exported
    head, _, _ = lineup.read_text().partition("[image_to_token]")
    lineup.write_text(head)
    export_lineup(lineup, target)
    assert not (target / "image_to_token" / "1" / "model.onnx").exists()
    assert (target / "image_to_token" / "config.pbtxt").exists()
    assert (target / "clip_text" / "1" / "model.onnx").exists()
    before, _, after = head.partition("[captioner]")
    lineup.write_text(before + "[clip_image]" + after.partition("[clip_image]")[2])
    export_lineup(lineup, target)
    assert not (target / "detokenize_caption" / "1" / "tokenizer.json").exists()
    assert (target / "tokenize_text" / "1" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name = ", "not TOML"),
        ("[captioner]\nnetwork='git-base'\ncheckpoint='x'", "name: field required"),
        ("name = 'x'", "fills no role"),
        ("name = 'x'\n[captioner]\nnetwork='git-base'", "captioner.checkpoint: field required"),
        (
            "name = 'x'\n[captioner]\nnetwork='isnet'\ncheckpoint='x'",
            "fills background_remover",
        ),
        ("name = 'x'\n[captioner]\nnetwork='gti'\ncheckpoint='x'", "no network 'gti'"),
        ("name = 'x'\n[captionr]\nnetwork='git-base'\ncheckpoint='x'", "captionr: extra"),
        ("name = 'x'\n[captioner]\nnetwork='git-base'\ncheckpoint='x'\nbeams='many'", "captioner.beams"),
    ],
)
def test_wrong_lineups(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(TercetError, match=fault):
        read_lineup(tmp_path / "x.toml")


def test_unknown_lineup_lists_the_known() -> None:
    with pytest.raises(LineupError, match=r"demo, .*small.*\.toml"):
        read_lineup("dmeo")


def test_pinned_checkpoint_must_match(exported: tuple[Path, Path]) -> None:
    lineup, target = exported
    lineup.write_text(lineup.read_text() + f'sha256 = "{"0" * 64}"\n')
    with pytest.raises(LineupError, match="has SHA-256"):
        export_lineup(lineup, target)


def test_encoders_of_different_checkpoints_are_refused() -> None:
    image = {"checkpoint": {"sha256": "a"}, "embedding_dimension": 4}
    text = {"checkpoint": {"sha256": "b"}, "embedding_dimension": 4, "token_width": 8}
    mapper = {"feature_width": 5, "token_width": 8}
    with pytest.raises(LineupError, match="different checkpoints"):
        lineups.check_consistent({"clip_image": image, "clip_text": text})
    with pytest.raises(LineupError, match="maps 5 features"):
        lineups.check_consistent({"clip_image": image, "image_to_token": mapper})
    with pytest.raises(LineupError, match="8 wide"):
        lineups.check_consistent({"clip_text": {**text, "token_width": 9}, "image_to_token": mapper})
    siglip = {**text, "arch": "ViT-B-16-SigLIP", "tokenizer": {"placeholder": None}}
    with pytest.raises(LineupError, match=r"no pseudo-words \(ViT-B-16-SigLIP is no CLIP\)"):
        lineups.check_consistent({"clip_text": siglip, "image_to_token": mapper})


def test_encoder_fingerprint_names_what_embeddings_depend_on(tiny_repository: Path) -> None:
    roles = repository.read_manifest(tiny_repository)["roles"]
    own = encoder_fingerprint(roles)

    def changed(role: str, **fields: object) -> str:
        return encoder_fingerprint({**roles, role: {**roles[role], **fields}})

    sha256 = roles["clip_image"]["checkpoint"]["sha256"]
    assert changed("clip_image", checkpoint={"source": "elsewhere", "sha256": sha256}) == own
    assert changed("clip_image", onnx_sha256="other", exporter="other", versions={}) == own
    assert changed("captioner", network="other") == own
    assert changed("clip_text", checkpoint={"source": "", "sha256": "other"}) != own
    assert changed("clip_text", tokenizer={}) != own
    assert changed("clip_image", preprocessing={}) != own
    assert changed("clip_image", precision="fp16") != own


def test_demo_lineup_names_its_own_files() -> None:
    lineup, base = read_lineup("demo")
    for choice in lineup.choices().values():
        for name in (choice.checkpoint, choice.arch, choice.tokenizer):
            assert name is None or not name.startswith(("/", "hf://"))
    assert base == lineups.LINEUPS


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_small_lineup_from_random_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lineup as it is, with random weights of the official shapes in place of the hub's files."""
    import safetensors.torch

    files = {
        "NimaBoscarino/IS-Net_DIS-general-use/isnet-general-use.pth": ("isnet", parity.by_shape),
        "microsoft/git-base-coco/model.safetensors": ("git_base_coco_hf_hub_layout", parity.by_shape),
        "timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors": ("clip_b32", parity.clip),
    }

    def download(repository: str, file: str) -> str:
        path = tmp_path / repository / file
        if f"{repository}/{file}" == "microsoft/git-base-coco/vocab.txt":
            path.write_text("\n".join(f"word{n}" for n in range(30522)))
        elif f"{repository}/{file}" not in files:
            raise EntryNotFoundError(file)
        elif not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = parity.state_dict(*files[f"{repository}/{file}"])
            save = safetensors.torch.save_file if path.suffix == ".safetensors" else torch.save
            save(tensors, path)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    manifest = export_lineup("small", tmp_path / "model_repository")
    assert set(manifest["roles"]) == {"background_remover", "captioner", "clip_image", "clip_text"}
    assert manifest["roles"]["background_remover"]["preprocessing"]["size"] == 1024
    assert manifest["roles"]["clip_text"]["context_length"] == 77


def test_missing_checkpoint_is_named_before_anything_is_exported(
    exported: tuple[Path, Path], no_export: None
) -> None:
    lineup, target = exported
    (lineup.parent / "git.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"git\.safetensors"):
        export_lineup(lineup, target)


def test_manifest_is_json_that_anyone_reads(tiny_repository: Path) -> None:
    manifest = json.loads((tiny_repository / "describe_lineup" / "1" / "lineup.json").read_text())
    assert manifest["format"] == 1
    assert manifest["versions"].keys() >= {"tercet", "torch", "onnx", "onnxruntime", "commit"}


def test_a_lineup_extends_another(tmp_path: Path) -> None:
    below = write_tiny_lineup(tmp_path / "tiny")
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nextends = "tiny/tiny.toml"\n'
        '[captioner]\nnetwork = "git-large"\ncheckpoint = "own.pt"\n'
    )
    mine, base = read_lineup(tmp_path / "mine.toml")
    tiny, _ = read_lineup(below)
    assert (mine.name, base) == ("mine", tmp_path)
    assert mine.captioner is not None
    # A section is replaced whole: nothing of the other captioner is left.
    assert mine.captioner == Choice(network="git-large", checkpoint="own.pt")
    assert mine.clip_text is not None
    assert tiny.clip_text is not None
    for key in ("checkpoint", "tokenizer", "arch"):  # still the files beside the lineup that names them
        assert getattr(mine.clip_text, key) == str(tmp_path / "tiny" / getattr(tiny.clip_text, key))


def test_what_cannot_be_extended_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('name = "a"\nextends = "b.toml"\n')
    with pytest.raises(LineupError, match=r"extends 'b\.toml', which is neither one of .*demo, .* file"):
        read_lineup(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text('name = "b"\nextends = "a.toml"\n')
    with pytest.raises(LineupError, match=r"a\.toml extends itself, by way of a\.toml, b\.toml"):
        read_lineup(tmp_path / "a.toml")


def test_a_checkpoint_that_nobody_may_fetch_has_a_home(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\n[image_to_token]\nnetwork = "pic2word"\n'
        'checkpoint = "pic2word.pt"\nhome = "a drive"\n'
    )
    with pytest.raises(CheckpointError, match=r"no checkpoint .*pic2word\.pt\. Get it from a drive"):
        export_lineup(tmp_path / "mine.toml", tmp_path / "model_repository")
