"""The demo's training: its parts do what they say, and all of it runs from nothing to files that load."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.model import CLIP
from torch.nn import functional as F

from tercet_export.registry import Options, network
from tercet_training import train_clip, train_git, train_isnet
from tercet_training.evaluate_demo import load_networks, rank_targets
from tercet_training.labels import ASPECTS, AspectHead, label_scenes
from tercet_training.loop import Schedule, batches, fit, orthogonalise, shift
from tercet_training.pictures import open_pictures, render_pictures, sample_scenes, see
from tercet_training.texts import clip_tokenizer, cut_merges, encode_for_clip, world_words
from tercet_training.train_demo import DESTINATION, LIMIT, QUICK, train_demo
from tercet_training.world import Gallery, Query, caption, render

SEEDS = st.integers(0, 2**32)


def ignore(task: str, done: int, total: int, note: str) -> None:
    """A report for nobody."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_is_trained_scored_and_saved(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    report = train_demo(output, seed=5, plan=QUICK, cache=None, threads=2)
    networks = load_networks(output)
    assert json.loads((output / "training.json").read_text()) == json.loads(json.dumps(report))
    assert set(report["scores"]) == {"masks", "captions", "recall"}
    assert "Pic2Word" in report["scores"]["recall"]
    assert networks.clip.vocab_size == clip_tokenizer((output / "merges.txt").read_text()).vocab_size
    assert networks.git.config.vocabulary == len(networks.lines)
    trained = {file.name: file.read_bytes() for file in output.glob("*.safetensors")}
    (output / "pic2word.safetensors").unlink()
    again = train_demo(output, seed=7, plan=QUICK, cache=None, threads=2, only="pic2word")
    assert {file.name: file.read_bytes() for file in output.glob("*.safetensors")} == trained
    assert (again["seed"], again["scores"]) == (5, report["scores"])
    assert again["minutes"].keys() == report["minutes"].keys()


def test_the_committed_networks_are_what_this_code_builds() -> None:
    """Names, shapes and vocabularies of the lineup's files fit the architectures here."""
    networks = load_networks(DESTINATION)
    assert json.loads((DESTINATION / "clip.json").read_text()) == train_clip.config(networks.clip.vocab_size)
    assert networks.git.config == train_git.config(len(networks.lines))
    assert networks.merges == cut_merges(world_words())
    assert sum(file.stat().st_size for file in DESTINATION.glob("*.safetensors")) < LIMIT
    image = network("clip-image").load(
        DESTINATION / "clip.safetensors", Options(str(DESTINATION / "clip.json"))
    )
    mapper = network("pic2word").load(DESTINATION / "pic2word.safetensors")
    assert mapper.details is not None
    assert image.details is not None
    assert mapper.details["clip_digest"] == image.details["clip_digest"], "train-demo --only pic2word"


def test_rendered_pictures_are_found_again(tmp_path: Path) -> None:
    scenes = sample_scenes(3, 5)
    first = render_pictures(scenes, tmp_path)
    changed = [file.stat().st_mtime_ns for file in sorted(tmp_path.rglob("*.npy"))]
    again = render_pictures(scenes, tmp_path)
    assert changed == [file.stat().st_mtime_ns for file in sorted(tmp_path.rglob("*.npy"))]
    for name in ("view", "scene", "mask"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    with pytest.raises(FileNotFoundError):
        open_pictures(sample_scenes(4, 5), tmp_path)


def test_scenes_are_seen_as_isnet_is_served() -> None:
    """Bilinear without antialiasing, truncated: the official preprocessing, written with integers."""
    (scene,) = sample_scenes(8, 1)
    picture = torch.from_numpy(np.array(render(scene))).permute(2, 0, 1)[None].float()
    official = F.interpolate(picture, (64, 64), mode="bilinear", align_corners=False).to(torch.uint8)
    assert np.array_equal(see(scene)[1], official[0].permute(1, 2, 0).numpy())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(2, 24), st.integers(2, 24), SEEDS)
def test_orthogonalised_matrices_have_singular_values_near_one(
    n: int, rows: int, columns: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(n, rows, columns, generator=generator)))
    assert float(values.max()) < 1.3
    # The five steps lift all but the least values, which are many in no matrix but a nearly singular one.
    assert float(values[:, : min(rows, columns) // 2 + 1].min()) > 0.3


def test_muon_and_adamw_learn() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    x = torch.randn(256, 8)
    truth = x[:, :1] * x[:, 1:2]

    def loss() -> torch.Tensor:
        return F.mse_loss(network(x), truth)

    before = float(loss().detach())
    schedule = Schedule(steps=600, batch=256, learning_rate=2e-2)
    fit("test", network, schedule, lambda: [loss()], ignore, muon=[network[0].weight])
    assert float(loss().detach()) < before / 4


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(1, 30), st.integers(1, 30))
def test_an_epoch_of_batches_repeats_nothing(seed: int, batch: int, more: int) -> None:
    count = batch + more
    drawn = batches(np.random.default_rng(seed), count, batch)
    epoch = np.concatenate([next(drawn) for _ in range(count // batch)])
    assert len(set(epoch.tolist())) == len(epoch)
    with pytest.raises(ValueError, match="more than"):
        next(batches(np.random.default_rng(seed), batch - 1, batch))


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_masks_move_with_their_pictures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 256, (3, 12, 12), np.uint8)
    pixels, moved = shift(rng, np.repeat(masks[..., None], 3, axis=3), masks)
    assert pixels.shape == (3, 12, 12, 3)
    assert np.array_equal(pixels[..., 1], moved)


def test_cut_outs_are_the_view_over_white() -> None:
    view = np.array([[[[10, 20, 30], [10, 20, 30], [10, 20, 30]]]], np.uint8)
    mask = np.array([[[0, 255, 51]]], np.uint8)
    assert train_git.cut_out(view, mask).tolist() == [[[[255] * 3, [10, 20, 30], [206, 208, 210]]]]


def test_labels_are_read_from_scenes() -> None:
    scenes = sample_scenes(1, 50)
    for scene, row in zip(scenes, label_scenes(scenes), strict=True):
        said = dict(
            zip(ASPECTS, (names[n] for names, n in zip(ASPECTS.values(), row, strict=True)), strict=True)
        )
        assert said["shape"] in caption(scene)
        assert said["background"] == scene.background
        assert (said["companion_shape"] == "none") == (scene.subject.companion is None)


def test_cut_outs_teach_nothing_about_backgrounds() -> None:
    labels = torch.from_numpy(label_scenes(sample_scenes(1, 8)))
    other = labels.clone()
    other[4:, -2:] = (other[4:, -2:] + 1) % 4
    head, features = AspectHead(16), torch.randn(8, 16)
    assert head.loss(features, labels, whole=4) == head.loss(features, other, whole=4)
    assert head.loss(features, labels, whole=8) != head.loss(features, other, whole=8)


def test_short_texts_are_embedded_as_open_clip_embeds_them() -> None:
    merges = cut_merges(world_words())
    tokenizer = clip_tokenizer(merges)
    network = CLIP(**train_clip.config(tokenizer.vocab_size)).eval()
    said = [caption(scene) for scene in sample_scenes(2, 4)]
    with torch.no_grad():
        official = network.encode_text(tokenizer(said), normalize=True)
        ours = train_clip.encode_text(network, torch.from_numpy(encode_for_clip(tokenizer, said)))
    assert torch.allclose(ours, official, atol=1e-6)


def test_masks_are_scored() -> None:
    truth = np.zeros((1, 4, 4), np.uint8)
    truth[0, :2] = 255
    half = truth.copy()
    half[0, 0] = 0
    assert train_isnet.score_masks(truth, truth) == {
        "mean_absolute_error": 0.0,
        "intersection_over_union": 1.0,
    }
    assert train_isnet.score_masks(half, truth) == {
        "mean_absolute_error": 0.25,
        "intersection_over_union": 0.5,
    }


def test_the_reference_is_no_candidate_and_the_best_target_counts() -> None:
    candidates = np.eye(4, dtype=np.float32)
    query = np.array([[0.9, 0.5, 0.3, 0.1]], np.float32)
    gallery = Gallery(sample_scenes(1, 4), [Query(0, "in blue", frozenset({2, 3}), "attribute")])
    assert rank_targets(gallery, query, candidates).tolist() == [2]
