"""Augmentation depends on samples, not on batches, and equals torchvision's and Pillow's operations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from alexnet import rng
from alexnet.data.augment import (
    BOX_DRAWS,
    IMAGENET_PCA,
    Augment,
    ColorPCA,
    augment,
    color_jitter,
    crop_box,
    mix,
    pca_noise,
)
from alexnet.errors import UserError


def noise(n: int = 12, channels: int = 3, side: int = 20, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator)


CONFIGS = {
    "pad": Augment(crop="pad", padding=4, flip=True),
    "reflect": Augment(crop="pad", padding=3, padding_mode="reflect"),
    "random": Augment(crop="random", flip=True),
    "alternate": Augment(crop="random", flip=True, alternate_flip=True),
    "resized": Augment(crop="resized", flip=True),
    "rotate": Augment(rotate=15),
    "all": Augment(crop="resized", flip=True, jitter=(0.4, 0.4, 0.4), rotate=10),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_independent_of_the_batch(name, channels):
    images, cfg, size = (
        noise(channels=channels),
        CONFIGS[name],
        20 if name in ("pad", "reflect") else 16,
    )
    ids = np.arange(100, 112)
    complete = augment(images, ids, 3, 7, cfg, size)
    assert complete.dtype == torch.uint8
    assert complete.shape == (12, channels, size, size)
    halves = torch.cat([augment(images[s], ids[s], 3, 7, cfg, size) for s in (slice(0, 5), slice(5, 12))])
    order = np.random.default_rng(0).permutation(12)
    shuffled = torch.empty_like(complete)
    shuffled[order] = augment(images[order], torch.from_numpy(ids[order]), 3, 7, cfg, size)
    assert torch.equal(halves, complete)
    assert torch.equal(shuffled, complete)
    assert not torch.equal(augment(images, ids, 4, 7, cfg, size), complete)  # another epoch
    assert not torch.equal(augment(images, ids, 3, 8, cfg, size), complete)  # another seed


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_padded_crop_and_flip_are_windows_of_the_padded_image(mode):
    images, ids = noise(40), np.arange(40)
    cfg = Augment(crop="pad", padding=4, padding_mode=mode, flip=True)
    got = augment(images, ids, 0, 0, cfg, 20)
    padded = torch.from_numpy(
        np.pad(
            images.numpy(),
            ((0, 0), (0, 0), (4, 4), (4, 4)),
            mode="constant" if mode == "zeros" else "reflect",
        )
    )
    where, flipped = (
        rng.uniform(0, 0, ids, "crop", 2),
        rng.uniform(0, 0, ids, "flip", 1)[:, 0] < 0.5,
    )
    for i in range(40):
        top, left = int(where[i, 0] * 9), int(where[i, 1] * 9)
        window = padded[i, :, top : top + 20, left : left + 20]
        assert torch.equal(got[i], window.flip(-1) if flipped[i] else window)


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(0, 5), channels=st.sampled_from([1, 3]), side=st.integers(1, 12), padding=st.integers(0, 4),
    mode=st.sampled_from(["zeros", "reflect"]), margin=st.integers(0, 3), flip=st.booleans(), last=st.booleans(),
)  # fmt: skip
def test_crop_and_flip_on_any_shape_and_layout(n, channels, side, padding, mode, margin, flip, last):
    padding = min(padding, side - 1) if mode == "reflect" else padding
    size = max(1, side + 2 * padding - margin)
    images = noise(n, channels, side)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    got = augment(
        images,
        np.arange(n),
        1,
        2,
        Augment(crop="pad", padding=padding, padding_mode=mode, flip=flip),
        size,
    )
    assert torch.equal(images, before)
    assert got.shape == (n, channels, size, size)
    pad = {"zeros": "constant", "reflect": "reflect"}[mode]
    where, flipped = (
        rng.uniform(2, 1, range(n), "crop", 2),
        rng.uniform(2, 1, range(n), "flip", 1)[:, 0] < 0.5,
    )
    for i in range(n):
        complete = np.pad(images[i].numpy(), ((0, 0), (padding, padding), (padding, padding)), mode=pad)
        top, left = (where[i] * (side + 2 * padding - size + 1)).astype(int)
        window = complete[:, top : top + size, left : left + size]
        np.testing.assert_array_equal(got[i].numpy(), window[..., ::-1] if flip and flipped[i] else window)


@pytest.mark.parametrize("size", [20, 14])
@pytest.mark.parametrize("crop", ["none", "random", "pad"])
def test_the_input_is_not_modified(crop, size):
    images = noise(9)
    before = images.clone()
    got = augment(images, range(9), 0, 0, Augment(crop=crop, padding=0, flip=True), size)
    assert torch.equal(images, before)
    assert not torch.equal(got, before[..., :size, :size])


def test_alternating_flips_begin_at_random_and_show_the_other_side_in_every_epoch():
    images, ids = noise(), np.arange(50, 62)
    first, second, third = (augment(images, ids, e, 7, Augment(flip=True, alternate_flip=True), 20) for e in range(3))
    assert torch.equal(first, augment(images, ids, 0, 7, Augment(flip=True), 20))
    assert 0 < sum(torch.equal(a, b) for a, b in zip(first, images, strict=True)) < len(images)
    assert torch.equal(second, first.flip(-1))
    assert torch.equal(third, first)
    assert torch.equal(augment(images, ids, 1, 7, Augment(alternate_flip=True), 20), images)  # flip is off


def test_every_offset_and_both_flips_occur_about_equally():
    ramp = torch.arange(24, dtype=torch.uint8)
    images = (ramp[:, None] * 8 + ramp[None] % 8).expand(4000, 1, 24, 24)  # top left pixel: 8·row + column
    where = augment(images, np.arange(4000), 0, 1, Augment(crop="random"), 20)[:, 0, 0, 0]
    rows, columns = np.bincount(where // 8, minlength=5), np.bincount(where % 8, minlength=5)
    assert len(rows) == len(columns) == 5
    assert min(rows.min(), columns.min()) > 700
    assert max(rows.max(), columns.max()) < 900
    flips = augment(images, np.arange(4000), 0, 1, Augment(flip=True), 24)[:, 0, 0, 0] != 0
    assert 0.47 < flips.float().mean() < 0.53


def test_crop_none_is_the_center_crop():
    images = noise(side=21)
    assert torch.equal(augment(images, range(12), 0, 0, Augment(), 16), tv.center_crop(images, [16, 16]))


def test_resized_crop_equals_pillows_resize_of_the_same_box():
    smooth = tv.resize(noise(30, side=9), [64, 64], antialias=True)
    ids = np.arange(30)
    for size in (24, 64, 90):  # shrinking, mixed, enlarging
        got = augment(smooth, ids, 2, 5, Augment(crop="resized"), size)
        draws = rng.uniform(5, 2, ids, "crop", BOX_DRAWS)
        boxes = [crop_box(64, 64, row, (0.08, 1.0), (3 / 4, 4 / 3)) for row in draws]
        for i in range(30):
            image = tv.to_pil_image(smooth[i]).resize((size, size), Image.Resampling.BILINEAR, box=boxes[i])
            assert (got[i].int() - tv.pil_to_tensor(image).int()).abs().max() <= 1


def test_crop_boxes_have_torchvisions_distribution():
    n, scale, ratio = 3000, (0.3, 0.9), (0.75, 4 / 3)
    draws = rng.uniform(0, 0, range(n), "crop", BOX_DRAWS)
    boxes = np.array([crop_box(120, 90, row, scale, ratio) for row in draws])
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(torch.empty(3, 90, 120), scale, ratio) for _ in range(n)])
    left, top, right, bottom = boxes.T
    assert min(left.min(), top.min()) >= 0
    assert right.max() <= 120
    assert bottom.max() <= 90
    for ours, other in zip((top, left, bottom - top, right - left), theirs.T, strict=True):
        assert abs(ours.mean() - other.mean()) < 4 * other.std() * np.sqrt(2 / n)
        assert ours.std() == pytest.approx(other.std(), rel=0.08)


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (11, 1001), (100, 90)])
def test_the_fallback_box_is_torchvisions(width, height):
    # A box larger than the image never fits, so both use the fallback.
    uniform = rng.uniform(0, 0, [0], "crop", BOX_DRAWS)[0]
    top, left, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), [4.0, 4.0], [0.75, 4 / 3])
    assert crop_box(width, height, uniform, (4.0, 4.0), (0.75, 4 / 3)) == (
        left,
        top,
        left + w,
        top + h,
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_equals_torchvision(channels):
    images = noise(20, channels)
    factors = np.random.default_rng(0).uniform(0.3, 1.9, (20, 3))
    got = color_jitter(images, factors)
    for i, (brightness, contrast, saturation) in enumerate(factors):
        expected = tv.adjust_brightness(images[i], brightness)
        expected = tv.adjust_saturation(tv.adjust_contrast(expected, contrast), saturation)
        difference = (got[i].int() - expected.int()).abs()
        assert difference.max() <= 1  # where 99.999 and 100.000 round down differently
        assert (difference > 0).float().mean() < 0.01
    assert torch.equal(color_jitter(images, np.ones((20, 3))), images)


def test_jitter_stays_within_its_range():
    images = torch.full((500, 1, 4, 4), 100, dtype=torch.uint8)
    values = augment(images, range(500), 0, 0, Augment(jitter=(0.3, 0, 0)), 4)[:, 0, 0, 0].int()
    assert values.min() >= 70
    assert values.max() <= 130
    assert values.max() - values.min() > 55


def test_rotation_equals_pillows():
    smooth = tv.resize(noise(8, 1, side=6), [32, 32], antialias=True)
    got = augment(smooth, np.arange(8), 0, 3, Augment(rotate=20), 32)
    angles = (2 * rng.uniform(3, 0, np.arange(8), "rotate", 1)[:, 0] - 1) * 20
    for i in range(8):
        turned = tv.to_pil_image(smooth[i]).rotate(angles[i], Image.Resampling.BILINEAR)
        inner = (
            slice(None),
            slice(7, 25),
            slice(7, 25),
        )  # they treat what comes from outside differently
        assert (got[i][inner].int() - tv.pil_to_tensor(turned)[inner].int()).abs().max() <= 2


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mix_gives_soft_targets(kind):
    images, targets = torch.randn(8, 3, 16, 16), torch.arange(8) % 5
    torch.manual_seed(0)
    mixed, soft = mix(images, targets, 5, Augment(**{kind: 1.0}))
    assert mixed.shape == images.shape
    assert soft.shape == (8, 5)
    torch.testing.assert_close(soft.sum(1), torch.ones(8))
    assert not torch.equal(mixed, images)
    torch.manual_seed(0)
    again, _ = mix(images, targets, 5, Augment(**{kind: 1.0}))
    assert torch.equal(mixed, again)


def test_mix_without_mixup_and_cutmix_changes_nothing():
    images, targets = torch.randn(4, 3, 8, 8), torch.arange(4)
    mixed, same = mix(images, targets, 4, Augment())
    assert mixed is images
    assert same is targets


def test_mixup_and_cutmix_both_occur_if_both_are_on():
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 16, 16).contiguous()
    flat = set()
    for step in range(20):
        torch.manual_seed(step)
        mixed, _ = mix(images, torch.arange(8), 8, Augment(mixup=1.0, cutmix=1.0))
        flat.add(bool((mixed.flatten(1).std(1) < 1e-6).all()))  # MixUp leaves constant images constant
    assert flat == {True, False}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": "pda"}, "did you mean 'pad'"),
        ({"padding_mode": "edge"}, "padding mode"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"jitter": (-0.1, 0.0, 0.0)}, "negative"),
        ({"crop_group": 0}, "shared by 0 images"),
    ],
)
def test_invalid_settings_are_rejected(values, message):
    with pytest.raises(UserError, match=message):
        Augment(**values)


@pytest.mark.parametrize("cfg", [Augment(crop="random"), Augment(crop="pad", padding=2), Augment()])
def test_images_smaller_than_the_crop_are_rejected(cfg):
    with pytest.raises(UserError, match="too small"):
        augment(noise(2, side=10), [0, 1], 0, 0, cfg, 16)


def test_reflection_needs_images_larger_than_the_padding():
    with pytest.raises(UserError, match="pad with zeros"):
        augment(
            noise(2, side=4),
            [0, 1],
            0,
            0,
            Augment(crop="pad", padding=4, padding_mode="reflect"),
            4,
        )


@pytest.mark.parametrize("crop", ["random", "resized"])
def test_a_crop_group_shares_the_crop_and_flip_of_its_first_image(crop):
    images = noise(1).expand(10, -1, -1, -1)
    ids = np.random.default_rng(0).permutation(50)[:10]
    got = augment(images, ids, 0, 0, Augment(crop=crop, flip=True, crop_group=4), 12)
    own = augment(images, ids, 0, 0, Augment(crop=crop, flip=True), 12)
    for first, run in ((0, got[:4]), (4, got[4:8]), (8, got[8:])):
        assert all(torch.equal(image, own[first]) for image in run)
    assert len({image.numpy().tobytes() for image in got}) == 3


def test_jitter_differs_within_a_crop_group():
    images = noise(1).expand(4, -1, -1, -1)
    got = augment(images, range(4), 0, 0, Augment(jitter=(0.4, 0.4, 0.4), crop_group=4), 20)
    assert len({image.numpy().tobytes() for image in got}) == 4


# ── PCA color noise ───────────────────────────────────────────────────────────────────────────────

STD = (0.25, 0.2, 0.3)


def test_pca_noise_has_the_papers_covariance():
    """Over 10,000 draws: strength²·Σ σᵢ²·pᵢpᵢᵀ, in levels of 0…255, to within five standard errors."""
    n, strength = 10_000, 0.1
    x = pca_noise(torch.zeros(n, 3, 2, 2), range(n), 0, 0, IMAGENET_PCA, strength, std=STD)
    assert torch.equal(x, x[:, :, :1, :1].expand_as(x))  # one color a image
    levels = x[:, :, 0, 0].double().numpy() * np.array(STD) * 255
    p = np.reshape(IMAGENET_PCA.vectors, (3, 3))
    expected = strength**2 * sum(s**2 * np.outer(v, v) for s, v in zip(IMAGENET_PCA.std, p, strict=True))
    variances = np.diag(expected)
    errors = np.sqrt((np.outer(variances, variances) + expected**2) / n)  # of a covariance of normal numbers
    assert (np.abs(np.cov(levels.T, bias=True) - expected) < 5 * errors).all()
    assert (np.abs(levels.mean(axis=0)) < 5 * np.sqrt(variances / n)).all()
    along = levels @ p.T / (strength * np.array(IMAGENET_PCA.std))  # should be N(0, 1), three times, independent
    assert (np.abs((along**4).mean(axis=0) - 3) < 5 * np.sqrt(96 / n)).all()


def test_pca_noise_is_independent_of_the_batch():
    x, ids = torch.randn(12, 3, 4, 4), np.arange(100, 112)

    def noisy(x, ids, epoch=3, seed=7):
        return pca_noise(x.clone(), ids, epoch, seed, IMAGENET_PCA, 0.1, std=STD)

    complete = noisy(x, ids)
    assert torch.equal(torch.cat([noisy(x[s], ids[s]) for s in (slice(0, 5), slice(5, 12))]), complete)
    order = np.random.default_rng(0).permutation(12)
    assert torch.equal(noisy(x[order], torch.from_numpy(ids[order])), complete[order])
    assert not torch.equal(noisy(x, ids, epoch=4), complete)
    assert not torch.equal(noisy(x, ids, seed=8), complete)


def test_pca_noise_divides_images_and_noise():
    x, ids = torch.randn(5, 3, 4, 4), range(5)
    plain = pca_noise(x.clone(), ids, 0, 0, IMAGENET_PCA, 0.1, std=STD)
    divided = pca_noise(x.clone(), ids, 0, 0, IMAGENET_PCA, 0.1, std=STD, divide=True)
    torch.testing.assert_close(divided, plain / 1.1)


def test_pca_noise_of_strength_0_changes_nothing():
    x = torch.randn(2, 3, 4, 4)
    before = x.clone()
    assert torch.equal(pca_noise(x, range(2), 0, 0, IMAGENET_PCA, 0.0, std=STD, divide=True), before)


@pytest.mark.parametrize(
    ("std", "vectors"),
    [
        ((1.0, 1.0), (0.0,) * 9),
        ((1.0,) * 3, (0.0,) * 8),
        ((1.0, -1.0, 1.0), (0.0,) * 9),
        ((1.0,) * 3, (np.nan,) * 9),
    ],
)
def test_an_invalid_pca_basis_is_rejected(std, vectors):
    with pytest.raises(UserError, match="A PCA basis is three standard deviations"):
        ColorPCA(std, vectors)
