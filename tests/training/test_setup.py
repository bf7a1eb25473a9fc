"""Choices made before training are recorded and not made again; mean image and PCA noise as in the 2012 recipe."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.checkpoint import PREPROCESS, load_checkpoint
from alexnet.data.augment import IMAGENET_PCA, ColorPCA, augment, pca_noise
from alexnet.errors import UserError
from alexnet.inference.evaluate import evaluate
from alexnet.inference.predict import load
from alexnet.models.model import build
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.training.api import resume, train
from alexnet.training.architecture import build_spec
from alexnet.training.recipe import Recipe, read_recipe
from alexnet.training.settings import ScheduleChange
from alexnet.training.setup import prepare_training
from alexnet.training.trainer import Trainer

# a small imagenet-2012: random 32 of 36, mean image, PCA noise, pixels from 0 to 255 (and weights initialized for them)
SMALL_2012 = Recipe().replace(
    name="small-2012", dataset="folder", arch="cifar", image_size=32, crop_pct=32 / 36, width=0.125, norm="none",
    init="kaiming", epochs=2, batch_size=8, lr=1e-4, schedule="constant", crop="random", flip=True, crop_group=4,
    mean_image="own", std=(1 / 255,) * 3, pca_noise=0.1, pca_divide=True, precision="fp32", device="cpu",
    workers=0,
)  # fmt: skip


@pytest.fixture
def recipe(image_folder: Path) -> Recipe:
    return SMALL_2012.replace(data=image_folder)


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = Run(run).named_checkpoint("last")
    assert folder is not None
    return load_checkpoint(folder).model.state_dict()


def training_crops(run: Run, recipe: Recipe) -> np.ndarray:
    """Return the training images as 36×36 center crops, read by Pillow; their short side is 36 already."""
    rows = [line.rsplit(",", 1) for line in run.split_csv.read_text().splitlines()[1:]]
    assert recipe.data.path is not None
    opened = [np.asarray(Image.open(recipe.data.path / name)) for name, split in rows if split == "train"]
    return np.stack(opened)[:, :, 2:38].transpose(0, 3, 1, 2)


def test_a_small_run_with_the_2012_settings(tmp_path, recipe, monkeypatch):
    result = train(recipe, out=tmp_path / "run", progress=Silent())
    run = Run(result.run)
    crops = training_crops(run, recipe)

    best = run.named_checkpoint("best")
    assert best is not None
    assert (best / PREPROCESS).is_file()
    stored = load_checkpoint(best).preprocess
    assert (stored.size, stored.resize_side) == (32, 36)
    assert stored.mean_image is not None
    torch.testing.assert_close(stored.mean_image, torch.from_numpy(crops.mean(axis=0) / 255).float())

    recorded = read_recipe(run.recipe_json)
    np.testing.assert_allclose(recorded.data.mean, crops.mean(axis=(0, 2, 3)) / 255, atol=6e-5)
    assert recorded.data.std == (1 / 255,) * 3  # given, so not measured
    variances = np.linalg.eigvalsh(np.cov(crops.transpose(1, 0, 2, 3).reshape(3, -1), bias=True))
    np.testing.assert_allclose(recorded.augmentation.pca_std, np.sqrt(variances[::-1]), atol=1e-4)

    measured = evaluate(run.path, split="val")
    assert measured["top1"] == result.summary["best"]["top1"]
    assert evaluate(run.path, split="val", views=10)["n"] == measured["n"]
    image = next(recipe.data.path.rglob("*.jpg"))
    assert load(run.path).predict(image).labels
    assert load(run.path).predict(image, views=10).labels

    # resumed with the recorded mean image and components, the second epoch equals that of the unbroken run
    train(recipe.replace(epochs=1), out=tmp_path / "stopped", progress=Silent())
    monkeypatch.setattr("alexnet.training.setup.compute_statistics", lambda *_, **__: pytest.fail("measured again"))
    resume(tmp_path / "stopped", epochs=2, progress=Silent())
    unbroken = weights(run.path)
    assert all(torch.equal(tensor, unbroken[name]) for name, tensor in weights(tmp_path / "stopped").items())


def test_batches_from_disk_equal_those_from_memory(tmp_path, recipe, monkeypatch):
    memory = prepare_training(recipe, Silent())
    monkeypatch.setattr("alexnet.training.setup.fits_in_memory", lambda *_: False)
    disk = prepare_training(recipe, Silent())
    assert (disk.recipe.data.in_memory, memory.recipe.data.in_memory) == (False, True)
    assert disk.recipe.replace(workers=memory.recipe.data.workers, in_memory=True) == memory.recipe
    assert torch.equal(disk.preprocess.mean_image, memory.preprocess.mean_image)
    for a, b in zip(disk.train.batches(0), memory.train.batches(0), strict=True):
        assert torch.equal(a.images, b.images)


def test_the_trainer_adds_pca_noise(tmp_path, recipe):
    setup = prepare_training(recipe.replace(crop_group=3), Silent())
    trainer = Trainer(setup, Run.create("x", tmp_path / "run", "{}"), build(setup.spec), Silent())
    seen = []
    trainer.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    batch = next(iter(setup.train.batches(4)))
    trainer.state.epoch = 4
    trainer.step(batch)

    assert setup.augment.crop_group == 3
    cut = augment(batch.images, batch.ids, 4, recipe.run.seed, setup.augment, 32)
    levels = cut.float() - 255 * setup.preprocess.mean_image[:, 2:34, 2:34]
    basis = ColorPCA(setup.recipe.augmentation.pca_std, setup.recipe.augmentation.pca_vectors)
    noise = pca_noise(torch.zeros(8, 3, 1, 1), batch.ids, 4, recipe.run.seed, basis, 0.1, std=(1 / 255,) * 3)
    assert noise.abs().max() > 1  # levels
    torch.testing.assert_close(seen[0], (levels + noise) / 1.1, rtol=0, atol=1e-3)


def test_lr_changes_switch_the_noise_off_and_on(tmp_path, recipe):
    changes = (ScheduleChange(2, pca_noise=0.0), ScheduleChange(3, pca_noise=0.5))
    setup = prepare_training(recipe.replace(lr_changes=changes), Silent())
    trainer = Trainer(setup, Run.create("x", tmp_path / "run", "{}"), build(setup.spec), Silent())
    seen = []
    trainer.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    batch = next(iter(setup.train.batches(0)))
    for epoch in range(3):
        trainer.state.step = epoch * len(setup.train)
        trainer.step(batch)  # the same random numbers each time
    cut = augment(batch.images, batch.ids, 0, recipe.run.seed, setup.augment, 32)
    images = setup.preprocess.normalize(cut)
    torch.testing.assert_close(seen[1], images)
    torch.testing.assert_close((seen[0] * 1.1 - images) * 5, seen[2] * 1.5 - images, rtol=0, atol=1e-2)
    assert (seen[2] * 1.5 - images).abs().max() > 5
    assert prepare_training(recipe.replace(pca_noise=0.0, lr_changes=changes), Silent()).pca_basis == setup.pca_basis


def test_the_imagenet_basis_is_recorded(recipe, monkeypatch):
    setup = prepare_training(recipe.replace(pca_basis="imagenet", mean_image="none"), Silent())
    assert setup.pca_basis == IMAGENET_PCA
    assert setup.recipe.augmentation.pca_std == IMAGENET_PCA.std
    assert setup.preprocess.mean_image is None
    given = recipe.replace(mean_image="none", pca_std=(3.0, 2.0, 1.0), pca_vectors=(1, 0, 0, 0, 1, 0, 0, 0, 1))
    monkeypatch.setattr("alexnet.training.setup.compute_statistics", lambda *_, **__: pytest.fail("measured"))
    basis = ColorPCA(given.augmentation.pca_std, given.augmentation.pca_vectors)
    assert prepare_training(given, Silent()).pca_basis == basis


def test_no_basis_is_measured_without_noise(recipe):
    setup = prepare_training(recipe.replace(pca_noise=0.0), Silent())
    assert setup.pca_basis is None
    assert setup.recipe.augmentation.pca_std is None


def test_a_mean_image_from_a_file(tmp_path, recipe, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).uniform(0, 255, (36, 36, 3)).astype(np.float32)
    np.save("mean.npy", values)
    result = train(recipe.replace(mean_image="mean.npy", epochs=1), out="run", progress=Silent())
    assert read_recipe("run/recipe.json").data.mean_image == str(tmp_path / "mean.npy")
    Path("mean.npy").unlink()
    resume(result.run, epochs="+1", progress=Silent())
    best = Run(result.run).named_checkpoint("last")
    assert best is not None
    stored = load_checkpoint(best).preprocess.mean_image
    torch.testing.assert_close(stored, torch.from_numpy(values / 255).permute(2, 0, 1))


def test_squash_keeps_the_full_width(tmp_path, recipe):
    shutil.rmtree(recipe.data.path)
    for name in ("a", "b"):
        for n in range(4):
            ramp = np.repeat(np.linspace(0, 255, 80).astype(np.uint8)[None, :, None], 36, 0).repeat(3, 2)
            (recipe.data.path / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(ramp).save(recipe.data.path / name / f"{n}.png")
    plain = recipe.replace(pca_noise=0.0, mean_image="none")
    for squash, lowest in ((True, 5), (False, 60)):
        setup = prepare_training(plain.replace(squash=squash), Silent())
        assert setup.preprocess.squash is squash
        (batch,) = setup.train.batches(0)
        assert batch.images.shape[-2:] == (36, 36)
        assert lowest - 5 <= batch.images.min() <= lowest + 15


def test_pca_noise_needs_color_images(recipe):
    grayscale = Recipe().replace(pca_noise=0.1)  # the digits
    with pytest.raises(UserError, match="PCA noise needs color images, and these are grayscale"):
        prepare_training(grayscale, Silent())
    for path in recipe.data.path.rglob("*.jpg"):
        Image.open(path).convert("L").save(path)
    with pytest.raises(UserError, match="The color PCA of gray images has one direction only"):
        prepare_training(recipe, Silent())


@pytest.mark.gpu
def test_images_in_gpu_memory_give_the_same_batches():
    on_cpu, on_gpu = (
        prepare_training(Recipe().replace(device=device, crop="pad", padding=3), Silent()) for device in ("cpu", "cuda")
    )
    a, b = (next(p.train.batches(1)) for p in (on_cpu, on_gpu))
    assert b.images.device.type == b.targets.device.type == "cuda"
    assert b.ids.device.type == "cpu"
    assert torch.equal(a.ids, b.ids)
    assert torch.equal(a.images, b.images.cpu())


def test_modified_network_may_take_smaller_images_than_its_original():
    # paper itself needs 64, so modified 36
    recipe = Recipe().replace(arch="paper", image_size=48, spec_edits=("plain-pool",))
    assert build_spec(recipe, 10, 3).image_size == 48
    with pytest.raises(UserError, match="use at least 64×64 or an architecture made for such sizes"):
        build_spec(recipe.replace(spec_edits=()), 10, 3)
