"""Statistics equal NumPy's over all images, for any batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.data import statistics
from alexnet.data.dataset import ImageArrays, ImageFiles
from alexnet.data.decode import BadImage
from alexnet.data.statistics import color_pca, compute_statistics, mean_and_std, read_mean_image
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError

GEOMETRY = EvalTransform(size=10, resize=12)
AXES = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0].T  # rows
DEVIATIONS = (40.0, 15.0, 4.0)


def make_color_noise(count: int = 70, side: int = 12) -> np.ndarray:
    """uint8 count×3×side×side around the axes above."""
    along = np.random.default_rng(0).normal(size=(count, side, side, 3)) * DEVIATIONS
    pixels = np.clip(128 + along @ AXES, 0, 255).round().astype(np.uint8)
    return pixels.transpose(0, 3, 1, 2)


def arrays(images: np.ndarray) -> ImageArrays:
    n = len(images)
    return ImageArrays(torch.from_numpy(images), torch.zeros(n, dtype=torch.int64), [f"train/{i}" for i in range(n)])


def files(tmp_path, images: np.ndarray) -> ImageFiles:
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{i}.png")
    return ImageFiles(tmp_path, [f"{i}.png" for i in range(len(images))], torch.zeros(len(images), dtype=torch.int64))


@pytest.mark.parametrize("source", [lambda _, images: arrays(images), files], ids=["memory", "files"])
@pytest.mark.parametrize(("batch_size", "workers"), [(32, 0), (7, 2)])
def test_statistics_equal_numpys(tmp_path, monkeypatch, source, batch_size, workers):
    images = make_color_noise()
    monkeypatch.setattr(statistics, "BATCH_SIZE", batch_size)
    calls = []
    found = compute_statistics(source(tmp_path, images), GEOMETRY, workers=workers, progress=lambda *a: calls.append(a))
    assert found.mean_image.dtype == torch.float32
    assert torch.equal(found.mean_image, torch.from_numpy(images.mean(axis=0) / 255).float())
    pixels = images.transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(found.covariance, np.cov(pixels, bias=True), rtol=1e-9)
    assert calls[-1] == (70, 70, "measuring colors")


def test_statistics_cover_the_squares_before_the_crop(tmp_path):
    images = make_color_noise(5, 30)[:, :, :20]  # 30 wide, 20 high
    found = compute_statistics(files(tmp_path, images), GEOMETRY)
    square = replace(GEOMETRY, size=GEOMETRY.resize_side)
    squares = [square.eval_tensor(Image.fromarray(i.transpose(1, 2, 0))).numpy() for i in images]
    torch.testing.assert_close(found.mean_image, torch.from_numpy(np.mean(squares, axis=0) / 255).float())


def test_statistics_of_gray_images():
    gray = replace(GEOMETRY, channels=1, mean=(0.0,), std=(1.0,))
    images = make_color_noise()[:, :1]
    found = compute_statistics(arrays(images), gray)
    assert found.mean_image.shape == (1, 12, 12)
    assert found.covariance[0, 0] == pytest.approx(images.var())


def test_statistics_name_an_unreadable_file(tmp_path):
    part = files(tmp_path, make_color_noise(4))
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(BadImage, match=r"2\.png"):
        compute_statistics(part, GEOMETRY)


def test_color_pca_equals_numpys_and_recovers_the_axes():
    covariance = compute_statistics(arrays(make_color_noise()), GEOMETRY).covariance
    basis = color_pca(covariance)
    vectors = np.reshape(basis.vectors, (3, 3))
    variances, columns = np.linalg.eigh(covariance)
    np.testing.assert_allclose(basis.std, np.sqrt(variances[::-1]), atol=1e-4)
    np.testing.assert_allclose(np.abs(vectors @ columns[:, ::-1]), np.eye(3), atol=1e-5)
    assert (vectors.max(axis=1) == np.abs(vectors).max(axis=1)).all()  # the sign is settled
    np.testing.assert_allclose(basis.std, DEVIATIONS, rtol=0.03)
    np.testing.assert_allclose(np.abs(np.sum(vectors * AXES, axis=1)), 1, atol=0.002)
    rebuilt = sum(s**2 * np.outer(v, v) for s, v in zip(basis.std, vectors, strict=True))
    np.testing.assert_allclose(rebuilt, covariance, atol=0.01)


@pytest.mark.parametrize("kind", ["gray", "sepia", "one color"])
def test_color_pca_of_gray_images_is_rejected(kind):
    images = np.repeat(make_color_noise()[:, :1], 3, axis=1)
    if kind == "sepia":
        images[:, 2] //= 2
    elif kind == "one color":
        images[:] = 7
    with pytest.raises(UserError, match="The color PCA of gray images has one direction only"):
        color_pca(compute_statistics(arrays(images), GEOMETRY).covariance)


def test_mean_and_std_cover_all_pixels_in_memory_and_from_files(tmp_path):
    images = make_color_noise()
    for part in (arrays(images), files(tmp_path, images)):
        mean, std = mean_and_std(part, GEOMETRY, seed=0)
        np.testing.assert_allclose(mean, images.mean(axis=(0, 2, 3)) / 255, atol=6e-5)
        np.testing.assert_allclose(std, images.std(axis=(0, 2, 3)) / 255, atol=6e-5)


# ── a mean image from elsewhere ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
def test_read_mean_image(tmp_path, dtype, order):
    values = np.random.default_rng(0).uniform(0, 255, (3, 12, 12)).astype(dtype)
    np.save(tmp_path / "mean.npy", values.transpose(order))
    found = read_mean_image(tmp_path / "mean.npy", GEOMETRY)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.from_numpy(values.astype(np.float32)) / 255)
    assert replace(GEOMETRY, mean_image=found).mean_image is found


def test_imagenets_mean_image_is_that_of_cuda_convnet2():
    """Means of the channels, and of four pixels, of make-data/input_meta."""
    found = 255 * read_mean_image(statistics.IMAGENET_MEAN_IMAGE, EvalTransform(size=224, resize=256))
    assert found.shape == (3, 256, 256)
    torch.testing.assert_close(found.mean((1, 2)), torch.tensor([127.3049, 119.7154, 104.9126]), atol=1e-3, rtol=0)
    corners = found[:, (0, 0, 255, 255), (0, 255, 0, 255)]
    expected = torch.tensor(
        [[129.36, 129.49, 122.34, 122.34], [129.43, 129.29, 118.22, 118.43], [119.89, 119.52, 104.35, 104.76]]
    )
    torch.testing.assert_close(corners, expected, atol=0.0626, rtol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((3, 10, 10)), "is 3×10×10, and these images are 3×12×12; give one"),
        (np.ones((12, 12)), "is 12×12, and these images are 3×12×12"),
        (np.full((3, 12, 12), 0.4), "holds values from 0.4 to 0.4; they must be levels from 0 to 255"),
        (np.full((3, 12, 12), 300), "holds values from 300 to 300"),
        (np.full((3, 12, 12), np.nan), "holds values from nan to nan"),
        (np.full((3, 12, 12), "dark"), "is not an array of numbers"),
        (np.full((3, 12, 12), None), "is not an array of numbers"),
    ],
)
def test_a_mean_image_with_wrong_values_is_rejected(tmp_path, values, message):
    np.save(tmp_path / "mean.npy", values, allow_pickle=True)
    with pytest.raises(UserError, match=message) as error:
        read_mean_image(tmp_path / "mean.npy", GEOMETRY)
    assert "\n" not in str(error.value)


def test_a_mean_image_that_is_not_an_array_is_rejected(tmp_path):
    path = tmp_path / "mean.npy"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_mean_image(path, GEOMETRY)
    np.savez(tmp_path / "mean.npz", mean=np.ones((3, 12, 12)))
    np.save(path, np.ones((3, 12, 12)))
    saved = path.read_bytes()
    for data in (b"", b"not numpy", b"PK\x03\x04junk", saved[:-100], saved[:30], (tmp_path / "mean.npz").read_bytes()):
        path.write_bytes(data)
        with pytest.raises(UserError, match="is not an array of numbers that numpy.save wrote"):
            read_mean_image(path, GEOMETRY)
