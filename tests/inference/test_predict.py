"""Prediction: the same numbers as evaluation from any kind of input, errors per image, confidence."""

import io
import json
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import alexnet
from alexnet.checkpoint import MODEL
from alexnet.data.datasets import load_dataset
from alexnet.data.image_folder import find_images
from alexnet.errors import UserError
from alexnet.inference.load import TORCHVISION_PREPROCESS, load_model
from alexnet.inference.predict import Prediction, Predictions, load
from alexnet.run_dir import Run
from alexnet.runtimes.calibration import Calibration, find_calibration
from alexnet.runtimes.engines import softmax


def save_digit(path, index=0):
    pixels = load_digits().images[index] * (255 / 16)
    Image.fromarray(pixels.round().astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC).save(path)
    return path


def test_image_file_gets_the_probabilities_of_its_array(small_run, tmp_path):
    """Decoding and preprocessing a file give the same probabilities as the array."""
    part = load_dataset("digits").splits["val"]
    classifier = load(small_run, device="cpu")
    for i in range(5):
        Image.fromarray(part.images[i, 0].numpy()).save(tmp_path / f"{i}.png")
    predictions = list(classifier.predict_many([tmp_path / f"{i}.png" for i in range(5)], top=10))
    expected = classifier.probabilities(part.images[:5])
    for i, prediction in enumerate(predictions):
        for label, p in prediction.labels:
            assert p == pytest.approx(float(expected[i, int(label)]), abs=1e-6)
        assert sum(p for _, p in prediction.labels) == pytest.approx(1, abs=1e-5)
        assert [p for _, p in prediction.labels] == sorted((p for _, p in prediction.labels), reverse=True)


def test_bytes_paths_and_strings_are_the_same(small_run, tmp_path):
    path = save_digit(tmp_path / "0.png")
    classifier = alexnet.load(small_run)
    a, b, c = classifier.predict(path), classifier.predict(str(path)), classifier.predict(path.read_bytes())
    with Image.open(path) as image:
        assert classifier.predict(image).labels == a.labels
    assert a.labels == b.labels == c.labels
    assert c.path == "image"
    assert [found.path for found in classifier.predict([path, path.read_bytes()])] == [str(path), "image 2"]


def test_arrays_that_are_nearly_black_are_warned_about_once(small_run):
    digits = np.full((3, 8, 8, 1), 16, np.uint8)
    classifier = alexnet.load(small_run)
    with pytest.warns(UserWarning, match=r"uint8 up to 16, and white is 255, .* such as x / 16") as caught:
        classifier.predict(digits)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.predict(digits / 16)


def test_arrays_tensors_and_batches_are_the_same_as_their_file(small_run, tmp_path):
    path = save_digit(tmp_path / "0.png")
    with Image.open(path) as image:
        pixels = np.asarray(image)
    classifier = alexnet.load(small_run)
    expected = classifier.predict(path).labels
    tensor = torch.from_numpy(pixels / 255)[None]
    for image in (pixels, pixels / 255, tensor):
        assert classifier.predict(image).labels == expected
    batch = tensor[None].repeat(2, 1, 1, 1)
    for images in ([path, pixels], (pixels, tensor), batch, batch.permute(0, 2, 3, 1).numpy()):
        found = classifier.predict(images)
        assert isinstance(found, Predictions)
        for prediction in found:
            assert [label for label, _ in prediction.labels] == [label for label, _ in expected]
    with pytest.raises(UserError, match="The image cannot be read: its values are floating-point from 0 to 247, not"):
        classifier.predict(pixels * 1.0)
    good, bad = classifier.predict([pixels, pixels[None, None]])
    assert good.labels
    assert bad.error.startswith("its shape is 1×1×32×32")


def test_a_notebook_shows_images_beside_bars(small_run, tmp_path):
    path = save_digit(tmp_path / "0.png")
    classifier = alexnet.load(small_run)
    with Image.open(path) as image:
        found = classifier.predict([path, tmp_path / "none.png", image.resize((400, 300))])
        shown = found._repr_html_()
        assert image.size == (32, 32)
    assert shown.count("<img ") == 2
    assert shown.count("image-rendering:pixelated") == 1
    assert "none.png: there is no such file" in shown
    assert "3 images; 1 could not be read" in shown
    assert repr(found) == "\n".join(str(p) for p in found)
    one = classifier.predict(path)
    path.unlink()
    assert "<img " not in one._repr_html_()
    many = Predictions([one] * 50)._repr_html_()
    assert many.count(str(path)) == 48
    assert "50 images; the first 48 are shown" in many


def test_a_classifier_names_its_network(small_run):
    title, classes = repr(alexnet.load(small_run)).splitlines()
    assert title.startswith(f"{small_run.name}: cifar: ")
    assert title.endswith(" parameters, input 1×32×32, 10 classes")
    assert classes == "classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"


def test_unreadable_image_does_not_stop_the_others(small_run, tmp_path):
    good = save_digit(tmp_path / "good.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:60])
    first, second, third = load(small_run).predict_many([good, bad, good])
    assert first.labels == third.labels
    assert second.error
    assert second.labels == ()
    assert set(second.to_dict()) == {"path", "labels", "unsure", "confidence", "error"}
    with pytest.raises(UserError, match=r"bad\.png cannot be read: (?!Cannot)"):
        load(small_run).predict(bad)


@pytest.mark.parametrize("threads", [1, 3])
def test_more_images_than_are_read_ahead(small_run, tmp_path, threads):
    before = torch.get_num_threads()
    paths = [save_digit(tmp_path / f"{i}.png", i) for i in range(3)]
    bad = tmp_path / "bad.png"
    bad.write_bytes(paths[0].read_bytes()[:60])
    image = Image.open(paths[2])
    images = [*paths, bad, image, paths[0].read_bytes()] * 40
    classifier = load(small_run, device="cpu")
    expected = [None if one is bad else classifier.predict(one, top=1).labels[0][0] for one in images[:6]]
    assert len(set(expected)) > 2
    torch.set_num_threads(threads)
    try:
        found = list(classifier.predict_many(iter(images * 2), top=1))
        later = ThreadPoolExecutor(1).submit(torch.get_num_threads).result()
        assert torch.get_num_threads() == later == threads
    finally:
        torch.set_num_threads(before)
    assert [p.labels[0][0] if p.labels else None for p in found] == expected * 80
    assert [p.path for p in found[:6]] == [*map(str, paths), str(bad), "-", "-"]


def test_no_image_no_prediction(small_run):
    assert list(load(small_run).predict_many([])) == []


def test_top_is_checked(small_run, tmp_path):
    with pytest.raises(UserError, match="top= must be at least 1"):
        load(small_run).predict(save_digit(tmp_path / "0.png"), top=0)
    assert len(load(small_run).predict(tmp_path / "0.png", top=99).labels) == 10


def test_find_images(image_folder, tmp_path):
    assert len(find_images([image_folder])) == 24
    assert find_images([image_folder / "sky" / "0.jpg"]) == [image_folder / "sky" / "0.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        find_images([tmp_path / "empty"])


def test_prediction_representations():
    found = Prediction("a<b.png", (("cat", 0.75), ("dog", 0.25)))
    assert str(found) == "a<b.png: cat 75.0%, dog 25.0%"
    assert "a&lt;b.png" in found._repr_html_()
    json.dumps(found.to_dict())
    unsure = replace(found, unsure=True, confidence=0.9, calibration=Calibration(0.5, 0.95))
    assert str(unsure) == "a<b.png: unsure (needs 95.0%): cat 90.0%, dog 10.0%"
    assert "a&lt;b.png: unsure (needs 95.0%)<" in unsure._repr_html_()


def test_a_confidence_just_below_the_threshold_differs_from_it_in_print():
    found = Prediction("a.png", (("cat", 0.9), ("dog", 0.1)), unsure=True, confidence=0.9496,
                       calibration=Calibration(1.0, 0.95004))  # fmt: skip
    assert str(found).startswith("a.png: unsure (needs 95.004%): cat 95.0%")


def test_unsure_follows_the_stored_threshold(small_run, tmp_path):
    """Unsure are exactly the test images whose confidence from the stored logits is below the threshold."""
    run = Run(small_run)
    stored, _ = find_calibration(run.named_checkpoint("best"), run)
    part = load_dataset("digits").splits["test"]
    _, _, logits = run.read_evaluation("test")
    confidence = stored.confidence(logits)
    chosen = np.concatenate([np.argsort(confidence)[:6], np.argsort(confidence)[-6:]])
    for i in chosen:
        Image.fromarray(part.images[i, 0].numpy()).save(tmp_path / f"{i}.png")
    found = list(load(small_run, device="cpu").predict_many([tmp_path / f"{i}.png" for i in chosen], top=1))
    assert [p.unsure for p in found] == stored.is_unsure(confidence[chosen]).tolist()
    assert {p.unsure for p in found} == {True, False}
    np.testing.assert_allclose([p.confidence for p in found], confidence[chosen], atol=1e-5)
    plain = softmax(logits[chosen]).max(axis=1)
    np.testing.assert_allclose([p.labels[0][1] for p in found], plain, atol=1e-5)  # p is the network's own
    assert np.abs(plain - confidence[chosen]).max() > 1e-3


def test_views_and_ensembles_have_a_confidence(small_run, tmp_path):
    path = save_digit(tmp_path / "0.png")
    for runs, views in ((small_run, 10), ([small_run, shutil.copytree(small_run, tmp_path / "copy")], 1)):
        found = load(runs).predict(path, views=views)
        assert found.unsure in (True, False)
        assert 0 < found.confidence <= 1


def test_network_without_a_threshold_is_never_unsure(small_run, tmp_path):
    found = load(Run(small_run).named_checkpoint("last"), device="cpu").predict(save_digit(tmp_path / "0.png"))
    assert (found.unsure is None) == (
        Run(small_run).named_checkpoint("last") != Run(small_run).named_checkpoint("best")
    )
    copy = shutil.copytree(small_run, tmp_path / "copy")
    (checkpoint,) = {Run(copy).named_checkpoint("best")}
    described = json.loads((checkpoint / MODEL).read_text())
    del described["calibration"]
    (checkpoint / MODEL).write_text(json.dumps(described))
    messages = []
    assert load(copy, log=messages.append).predict(tmp_path / "0.png").unsure is not None
    assert "fitted now on its val split" in messages[0]
    (copy / "evaluation" / "val.parquet").unlink()
    found = load(copy).predict(tmp_path / "0.png")
    assert (found.unsure, found.confidence) == (None, None)
    assert "unsure" not in str(found)


def test_load_model_takes_runs_and_checkpoints(small_run):
    best = load_model(small_run)
    last = load_model(small_run, "last")
    assert best.checkpoint == Run(small_run).named_checkpoint("best")
    assert last.checkpoint == Run(small_run).named_checkpoint("last")
    direct = load_model(best.checkpoint)
    assert direct.run == Run(small_run.resolve())
    assert best.classes == tuple("0123456789")
    assert best.preprocess.channels == 1


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors"])
def test_a_file_without_weights_is_refused(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    torch.save({}, path)
    with pytest.raises(UserError, match=r"no tensors in|contains no weights"):
        load_model(path)


def test_published_torchvision_weights(monkeypatch):
    """IMAGENET1K_V1 with a random state dict instead of the download: predictions match torchvision's own pipeline."""
    import torchvision
    from torchvision.models import AlexNet_Weights

    theirs = torchvision.models.alexnet().eval()
    monkeypatch.setattr(AlexNet_Weights, "get_state_dict", lambda self, *a, **k: theirs.state_dict())
    loaded = load_model("torchvision:IMAGENET1K_V1")
    assert len(loaded.classes) == 1000
    assert loaded.classes[0] == "tench"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    found = load("torchvision:IMAGENET1K_V1", device="cpu").predict(file.getvalue())
    with torch.no_grad():
        x = AlexNet_Weights.IMAGENET1K_V1.transforms()(Image.fromarray(pixels))
        expected = theirs(x[None]).softmax(1)[0]
    for label, p in found.labels:
        index = AlexNet_Weights.IMAGENET1K_V1.meta["categories"].index(label)
        assert p == pytest.approx(float(expected[index]), abs=1e-5)
    assert loaded.preprocess == TORCHVISION_PREPROCESS


def test_unknown_published_weights():
    with pytest.raises(UserError, match="IMAGENET1K_V1"):
        load_model("torchvision:IMAGENET1K_V7")
