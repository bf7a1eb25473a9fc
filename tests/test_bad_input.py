"""Bad input to every command: exit code 2, one sentence on stderr, and no partial files."""

import hashlib
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.checkpoint import read_training_state
from alexnet.cli import run
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.training.api import train
from helpers import make_image, make_image_folder


class ExecPickle:
    def __reduce__(self):
        return (exec, ("open('ran', 'w')",))


def empty_class(here):
    make_image_folder(here / "data", ("a", "b"), 2)
    (here / "data" / "c").mkdir()


def one_class(here):
    make_image_folder(here / "data", ("a",), 3)


def no_images(here):
    for name in ("a", "b"):
        (here / "data" / name).mkdir(parents=True)
        (here / "data" / name / "notes.txt").write_text("no image")


def only_unreadable(here):
    for name in ("a", "b"):
        (here / "data" / name).mkdir(parents=True)
        (here / "data" / name / "x.jpg").write_text("<html>not found</html>")


def some_unreadable(here):
    make_image_folder(here / "data", ("a", "b"), 3)
    path = here / "data" / "b" / "1.jpg"
    path.write_bytes(path.read_bytes()[:200])


def good_folder(here):
    make_image_folder(here / "data", ("a", "b"), 3)


def a_file(here):
    (here / "data").write_text("")


def flat(here):
    make_image(here / "data" / "x.jpg", 0, 0)
    make_image(here / "data" / "y.jpg", 0, 0)


def only_val(here):
    make_image_folder(here / "data" / "val", ("a", "b"), 2)


def val_has_more(here):
    make_image_folder(here / "data" / "train", ("a", "b"), 2)
    make_image_folder(here / "data" / "val", ("a", "c"), 2)


def existing_run(here):
    (here / "out").mkdir()
    (here / "out" / "recipe.json").write_text("{}")


def foreign_folder(here):
    (here / "out").mkdir()
    (here / "out" / "thesis.doc").write_text("important")


def recipe_json(text):
    return lambda here: (here / "recipe.json").write_text(text)


def folder_recipe(**settings):
    """Write a folder of small images and a recipe.json for it."""

    def given(here):
        make_image_folder(here / "data", ("a", "b"), 3)
        values = {"dataset": "folder", "data": "data", "arch": "cifar", "width": 0.125, "image_size": 32}
        (here / "recipe.json").write_text(json.dumps({**values, **settings}))

    return given


def small_mean_image(here):
    folder_recipe(mean_image="mean.npy", crop_pct=32 / 36)(here)
    np.save(here / "mean.npy", np.full((3, 32, 32), 100.0))


def pickled_mean_image(here):
    folder_recipe(mean_image="mean.npy")(here)
    (here / "mean.npy").write_bytes(pickle.dumps(ExecPickle()))


def gray_images(here):
    folder_recipe(pca_noise=0.1)(here)
    for path in (here / "data").rglob("*.jpg"):
        Image.open(path).convert("L").save(path)


def nothing(here):
    pass


TRAINING = [
    # setup, arguments after `train`, start of the error
    (nothing, ["folder", "--data", "data"], "There is no folder or archive data; check its path."),
    (nothing, ["pets/"], "There is no folder or archive pets; check its path."),
    (nothing, ["folder"], "The dataset 'folder' needs the folder that holds it; give --data DIR."),
    (nothing, ["digits", "--data", "x"],
     "The dataset 'digits' is embedded and reads no data; omit x, or use 'folder'."),
    (nothing, ["--data", "x"], "There is no folder or archive x; check its path."),
    (a_file, ["folder", "--data", "data"],
     "data is a file, not a folder or an archive (.zip, .tar, .tar.gz, ...); check the path given as data."),
    (empty_class, ["data"], "Class folders in data that hold no images (1): c/; replace or remove them, or skip them"),
    (one_class, ["data"], "data holds images of one class only, 'a'; a classifier needs two or more."),
    (no_images, ["data"], "data holds no images; put those of each class into its folder."),
    (only_unreadable, ["data"], "None of the 2 images in data can be read: "),
    (some_unreadable, ["data"], "1 of 6 images in data cannot be read: b/1.jpg ("),
    (flat, ["data"], "data holds images but no class folders; put the images of each class into a"),
    (only_val, ["data"], "data has val/ but no train/ to learn from; name the training folder train."),
    (val_has_more, ["data"], "data/val/c is a class that data/train lacks (classes are matched by name); rename or"),
    (good_folder, ["cifar10", "--data", "data"], "data does not hold CIFAR-10; there should be cifar-10-batches-py/"),
    (good_folder, ["fashion-mnist", "--data", "data"],
     "data does not hold Fashion-MNIST; there should be FashionMNIST/raw/"),
    (good_folder, ["data", "--arch", "paper", "--image-size", "32"], "Images of 32×32 are too small for 'paper': "),
    (good_folder, ["data", "--num-classes", "5"],
     "--num-classes 5 does not match the data, which has 2 classes: a, b."),
    (good_folder, ["data", "--arch", "papre"], "There is no architecture 'papre'; did you mean 'paper' or "),
    (good_folder, ["data", "--init", "xavir"], "There is no init 'xavir'; did you mean 'xavier'?"),
    (good_folder, ["data", "--arch", "torchvision/resnet81"],
     "There is no torchvision classifier 'resnet81'; did you mean 'resnet18' or "),
    (good_folder, ["data", "--arch", "torchvision/ssd300_vgg16"],
     "'torchvision/ssd300_vgg16' is in torchvision.models.detection and not an image classifier; choose one"),
    (good_folder, ["data", "--arch", "torchvision/resnet18", "--width", "0.5", "--norm", "lrn"],
     "'torchvision/resnet18' is built by torchvision, where norm, width cannot be set; omit it."),
    (good_folder, ["data", "--arch", "torchvision/vgg11", "--image-size", "16"],
     "'torchvision/vgg11' cannot read images of 16×16 ("),
    (nothing, ["digist"], "There is no recipe or folder 'digist'; did you mean 'digits' or 'mnist'?"),
    (nothing, ["--epoch", "3"], "Unrecognized options: --epoch, 3; did you mean --epochs?"),
    (nothing, ["--epochs", "ten"], "Error parsing --epochs: invalid literal for int() with base 10: 'ten'; run "),
    (nothing, ["--epochs", "0"], "--epochs must be greater than 0, not 0."),
    (nothing, ["--warmup", "1"], "--schedule one-cycle includes a warmup; leave out --warmup, or use --schedule"),
    (nothing, ["--schedule", "stairs"], "Invalid choice 'stairs' for argument '--schedule'. Expected one of"),
    (nothing, ["--lr", "-1"], "--lr must be at least 0, not -1.0."),
    (nothing, ["--lr", "nan"], "--lr must be a finite number, not nan."),
    (nothing, ["--width", "0"], "--width must be greater than 0, not 0.0."),
    (nothing, ["--precision", "fp8"], "Invalid choice 'fp8' for argument '--precision'."),
    (nothing, ["--weights", "runs/none"], "There is no run runs/none; give a run folder"),
    (nothing, ["--freeze", "conv1-conv9"], "There is no layer to freeze 'conv9'; did you mean 'conv5'"),
    (nothing, ["--freeze", "conv1-fc8"], "--freeze conv1-fc8 leaves no layer to train; leave out at least fc8."),
    (nothing, ["--augment", "wild"], "Invalid choice 'wild' for argument '--augment'."),
    (nothing, ["--time-budget", "10"], "--time-budget must be a time such as 90s, 10m or 1.5h, not '10'."),
    (nothing, ["--time-budget", "9s", "--arch", "cifar-towers", "--parallel", "towers"],
     "--time-budget needs a single process, not --parallel towers; give --epochs."),
    (nothing, ["cifar10-fast", "--data", "x", "--early-stop", "3"],
     "--early-stop would select by the test images, which this recipe validates on; leave it out."),
    (nothing, ["--set", "padding"], "--set padding has no value; write NAME=VALUE"),
    (nothing, ["--set", "padding=much"], "The setting padding in --set cannot be 'much': expected an integer."),
    (nothing, ["digits", "stray"], "Unrecognized options: stray; run 'alexnet train digits --help' for its arguments."),
    (existing_run, [], "out already holds a run; choose another --out, or add --resume to resume it."),
    (foreign_folder, [], "--out out is not empty; choose a folder that is empty or does not exist yet."),
    (nothing, ["nowhere.json"], "The recipe nowhere.json cannot be read: No such file or directory."),
    (recipe_json("{"), ["recipe.json"], "The recipe recipe.json is not JSON: "),
    (recipe_json('{"epochz": 1}'), ["recipe.json"], "There is no setting 'epochz' in recipe.json; did you"),
    (recipe_json('{"schedule": "constant", "lr_changes": [{"epoch": 2, "lr": "low"}]}'), ["recipe.json"],
     "The setting lr_changes in recipe.json cannot be 'low' at [0].lr: expected a number or null."),
    (recipe_json('{"arch": "cifar", "schedule": "constant", "lr_changes": '
                 '[{"epoch": 2, "layers": ["cnv1"], "lr": 0}]}'),
     ["recipe.json"],
     "The entry of lr_changes for epoch 2 names the layer 'cnv1', which 'cifar' does not have; choose from conv1"),
    (recipe_json('{"arch": "cifar", "layer_weight_decay": [{"layers": ["fc9"], "weight_decay": 1}]}'), ["recipe.json"],
     "The entry of layer_weight_decay names the layer 'fc9', which 'cifar' does not have; choose from conv1"),
    (recipe_json('{"lr_changes": [{"epoch": 2, "lr": 0}]}'), ["recipe.json"],
     "The recipe's lr_changes set the learning rate by hand, but --schedule cosine sets it too; choose"),
    (nothing, ["--set", "crop_group=0"], "The setting crop_group (--set crop_group=…) must be greater than 0, not 0."),
    (small_mean_image, ["recipe.json"], "The mean image mean.npy is 3×32×32, and these images are 3×36×36; give"),
    (pickled_mean_image, ["recipe.json"], "The mean image mean.npy is not an array of numbers that numpy.save wrote."),
    (folder_recipe(mean_image="owm"), ["recipe.json"], "The mean image owm cannot be read: No such file or directory."),
    (gray_images, ["recipe.json"], "The color PCA of gray images has one direction only (standard"),
    (recipe_json('{"pca_noise": 0.1}'), ["recipe.json"], "PCA noise needs color images, and these are grayscale"),
    (folder_recipe(pca_noise=0.1, pca_std=[1, 1]), ["recipe.json"], "A PCA basis is three standard deviations,"),
]  # fmt: skip


def read_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one sentence on stderr, after any notes on the data; nothing may be on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    *_, last = err.strip().splitlines()
    assert last.startswith("alexnet: ")
    return last.removeprefix("alexnet: ")


@pytest.mark.parametrize(
    ("given", "arguments", "sentence"), TRAINING, ids=lambda v: str(getattr(v, "__name__", v))[:60]
)
def test_bad_input_to_training(tmp_path, monkeypatch, capsys, given, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    given(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run(["train", *arguments, "--out", "out"]) == 2
    assert read_error(capsys).startswith(sentence)
    assert sorted(tmp_path.rglob("*")) == before  # no partial files


TOWERS = ["--arch", "cifar-towers", "--parallel", "towers"]


def table(text, name="labels.csv"):
    def given(here):
        make_image_folder(here / "data", ("a", "b"), 3)
        (here / name).write_text(text)

    return given


def truncated_zip(here):
    (here / "pets.zip").write_bytes(b"PK\x03\x04 and no more")


def unsafe_zip(here):
    with zipfile.ZipFile(here / "pets.zip", "w") as file:
        file.writestr("../../cat.jpg", "x")


def unfinished_pack(here):
    (here / "data" / ".packing").mkdir(parents=True)


DATA = [
    # setup, command, start of the error
    (nothing, ["pack", "data", "packed"], "There is no folder or archive data; check its path."),
    (good_folder, ["pack", "data", "data/packed"], "One of data/packed and data contains the other; pack into"),
    (good_folder, ["pack", "data", "packed", "--size", "all"], "--size all is neither a number of pixels nor"),
    (good_folder, ["pack", "data", "packed", "--format", "uint8", "--size", "original"],
     "Pixels are packed as squares of one size; give --size N, or --format jpeg."),
    (unfinished_pack, ["train", "data", "--out", "out"], "Packing of data is not finished; rerun 'alexnet pack' with"),
    (unfinished_pack, ["check", "data"], "Packing of data is not finished; rerun 'alexnet pack' with the same"),
    (nothing, ["check"], "Name the dataset: 'alexnet check DIR', an archive, or --labels FILE."),
    (nothing, ["check", "data"], "There is no folder or archive data; check its path."),
    (a_file, ["check", "data"],
     "data is a file, not a folder or an archive (.zip, .tar, .tar.gz, ...); check the path given as data."),
    (no_images, ["check", "data"], "data holds no images; put those of each class into its folder."),
    (truncated_zip, ["check", "pets.zip"], "The archive pets.zip is damaged or of an unknown kind ("),
    (unsafe_zip, ["check", "pets.zip"], "The archive pets.zip is unsafe: it would write to ../../cat.jpg; do not"),
    (unsafe_zip, ["train", "pets.zip", "--out", "out"], "The archive pets.zip is unsafe: it would write to"),
    (good_folder, ["check", "data", "--fix", "data/clean"], "--fix data/clean is inside the dataset, which is not cha"),
    (good_folder, ["check", "data", "--fix", "data/a"], "--fix data/a is not empty; choose an empty or new folder."),
    (good_folder, ["check", "data", "--html", "no/page.html"], "There is no folder no to write page.html into; create"),
    (nothing, ["check", "--labels", "labels.csv"], "There is no label file labels.csv; check the path given as"),
    (table("image,kind\na/0.jpg,a\n"), ["check", "data", "--labels", "labels.csv"],
     "labels.csv needs the columns path and label (and may have split), but has image, kind; name them so, or "),
    (table("path,label\n"), ["check", "data", "--labels", "labels.csv"], "labels.csv lists no images; it needs a"),
    (table("path,label\na/0.jpg,a,b\n"), ["check", "data", "--labels", "labels.csv"],
     "Row 1 of labels.csv has 3 fields and the first line 2; put names with commas into quotes."),
    (table("no", "labels.parquet"), ["check", "data", "--labels", "labels.parquet"],
     "The labels in labels.parquet cannot be read ("),
    (table("path,label\na/0.jpg,a\na/0.jpg,b\n"), ["train", "folder", "--labels", "labels.csv", "--out", "out"],
     "1 of 2 rows of labels.csv cannot be used: a/0.jpg (labels.csv lists it twice, as 'a' and 'b'); fix or remove "
     "them."),
    (table("path,label\na/0.jpg,a\na/1.jpg,a\n"),
     ["train", "folder", "--data", "data", "--labels", "labels.csv", "--out", "out"],
     "labels.csv has one class only, 'a'; a classifier needs two or more."),
    (table("path,label\na/0.jpg,a\na/9.jpg,b\nb/0.jpg,b\n"),
     ["train", "folder", "--data", "data", "--labels", "labels.csv", "--out", "out"],
     "1 of 3 images in data cannot be read: a/9.jpg (there is no such file); replace or remove them, or skip"),
    (table("path,label,set\na/0.jpg,a,val\nb/0.jpg,b,val\n"),
     ["train", "folder", "--data", "data", "--labels", "labels.csv", "--out", "out"],
     "labels.csv has no rows of the split train to learn from; its splits are val."),
    (table("path,label,split\na/0.jpg,a,tarin\nb/0.jpg,b,train\n"),
     ["train", "folder", "--data", "data", "--labels", "labels.csv", "--out", "out"],
     "1 of 2 rows of labels.csv cannot be used: a/0.jpg (labels.csv gives it the split 'tarin'); fix or remove them."),
    (table("path,label\n"), ["train", "digits", "--labels", "labels.csv", "--out", "out"],
     "The dataset 'digits' includes its labels; omit --labels, or use 'folder'."),
]  # fmt: skip


@pytest.mark.parametrize(("given", "arguments", "sentence"), DATA, ids=lambda v: str(getattr(v, "__name__", v))[:60])
def test_bad_data(tmp_path, monkeypatch, capsys, given, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    given(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run(arguments) == 2
    assert read_error(capsys).startswith(sentence)
    assert sorted(tmp_path.rglob("*")) == before  # no partial files


PROCESSES = [
    # processes started by torchrun, arguments after `train`, start of the error
    (
        2,
        ["--set", "dist_timeout=1e15"],
        "The setting dist_timeout (--set dist_timeout=…) must be greater than 0 and at most 86400, not 10000",
    ),
    (
        1,
        TOWERS,
        "--parallel towers needs two processes, one for each tower, and there is 1; start it with 'torchrun",
    ),
    (
        3,
        TOWERS,
        "--parallel towers needs two processes, one for each tower, and there are 3; start it with 'torchrun",
    ),
    (
        2,
        ["--parallel", "none"],
        "torchrun started 2 processes, and --parallel none trains in one; give --parallel",
    ),
    (
        2,
        ["--time-budget", "9s"],
        "--time-budget needs a single process, not --parallel auto; give --epochs.",
    ),
    (
        2,
        [*TOWERS, "--device", "mps"],
        "--device mps cannot serve the 2 processes on this machine, which has",
    ),
]


@pytest.mark.parametrize(("count", "arguments", "sentence"), PROCESSES, ids=lambda v: str(v)[:40])
def test_bad_input_to_several_processes(tmp_path, monkeypatch, capsys, count, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    for rank in range(count):
        for name, number in (("WORLD_SIZE", count), ("LOCAL_WORLD_SIZE", count), ("RANK", rank), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(number))
        assert run(["train", *arguments, "--out", "out"]) == 2
        if rank == 0:
            assert read_error(capsys).startswith(sentence)
        else:
            assert capsys.readouterr() == ("", "")  # rank 0 has printed it
    assert list(tmp_path.iterdir()) == []


def weights_only_file(run):
    torch.save({"weight": torch.zeros(1)}, "model.pth")


def best(run):
    folder = Run(run).named_checkpoint("best")
    assert folder is not None
    return folder


def truncated_weights(run):
    path = best(run) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def truncated_json(run):
    path = best(run) / "model.json"
    path.write_text(path.read_text()[:200])


def other_software(run):
    (best(run) / "model.json").write_text(json.dumps({"arch": "resnet18", "epoch": 3}))


def pickled_training(run):
    for path in (run / "checkpoints").glob("*/training.pt"):
        path.write_bytes(pickle.dumps(ExecPickle()))
        described = json.loads(path.with_name("model.json").read_text())
        described["sha256"]["training.pt"] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name("model.json").write_text(json.dumps(described))


def truncated_training(run):
    for path in (run / "checkpoints").glob("*/training.pt"):
        path.write_bytes(path.read_bytes()[:1000])


def other_training(run):
    for path in (run / "checkpoints").glob("*/training.pt"):
        torch.save({"position": read_training_state(path.parent)["position"]}, path)
        described = json.loads(path.with_name("model.json").read_text())
        described["sha256"]["training.pt"] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name("model.json").write_text(json.dumps(described))


def number_summary(run):
    (run / "summary.json").write_text("5")


def list_in_metrics(run):
    (run / "metrics.jsonl").write_text("[1]\n")


def binary_best(run):
    (run / "best").write_bytes(b"\xff\xfe")


def folder_last(run):
    (run / "last").rename(run / "last.bak")
    (run / "last").mkdir()


def no_mean_image(run):
    path = best(run) / "model.json"
    found = json.loads(path.read_text())
    found["preprocess"]["mean_image"] = True
    path.write_text(json.dumps(found))


def not_a_run(run):
    Path("other").mkdir()


def other_classes(run):
    make_image_folder(Path("data"), ("seven", "eight"), 2)


def another_seed(run):
    train("digits", out="other", seed=1, epochs=1, limit_steps=1, width=0.125, progress=Silent())


def another_network(run):
    make_image_folder(Path("data"), ("seven", "eight"), 2)
    train("data", out="other", epochs=1, limit_steps=1, width=0.125, progress=Silent())


def images(run):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save("a.png")
    Path("empty.png").write_bytes(b"")


def empty_folder(run):
    Path("empty").mkdir()


def unreadable_image(run):
    Path("bad").mkdir()
    Path("bad/a.png").write_bytes(b"<html>")


def exported(run):
    """Files that look like exported models only by their names."""
    Path("net.onnx").write_bytes(b"nothing")
    Path("net.pte").write_bytes(b"nothing")
    Path("my.bin").write_bytes(b"nothing")
    Path("lost.onnx").write_bytes(b"nothing")
    Path("lost.onnx.json").write_text("{}")


def no_evaluation(run):
    shutil.rmtree(run / "evaluation")


def no_metrics(run):
    (run / "metrics.jsonl").unlink()


USING = [
    # setup, command, start of the error
    (nothing, ["eval", "nowhere"], "There is no run nowhere; give a run folder, such as runs/digits-…, or 'last'."),
    (nothing, ["eval", "last"], "There is no run in "),
    (nothing, ["evil", "RUN"], "There is no command 'evil'; did you mean 'eval'?"),
    (nothing, ["eval", "RUN", "--split", "vall"], "Invalid choice 'vall' for argument '--split'."),
    (nothing, ["eval", "RUN", "--split", "test", "--data", "nowhere"], "There is no folder or archive nowhere"),
    (nothing, ["eval"], "Missing "),
    (not_a_run, ["eval", "other"], "other is neither a run (it has no recipe.json) nor a checkpoint (it has"),
    (weights_only_file, ["eval", "model.pth"], "The shapes in 'model.pth', from 1 to 1, are those of no architecture"),
    (truncated_weights, ["eval", "RUN"], "RUN/CHECKPOINT/model.safetensors is truncated or damaged: its checksum"),
    (no_mean_image, ["eval", "RUN"], "The checkpoint RUN/CHECKPOINT has no preprocess.safetensors; use another"),
    (truncated_json, ["predict", "RUN", "a.png"], "RUN/CHECKPOINT/model.json is damaged or not JSON ("),
    (other_software, ["eval", "RUN"], "RUN/CHECKPOINT/model.json was written by other software"),
    (pickled_training, ["resume", "RUN", "--epochs", "+1"], "RUN/CHECKPOINT/training.pt holds a pickle that could"),
    (truncated_training, ["resume", "RUN", "--epochs", "+1"], "RUN/CHECKPOINT/training.pt is truncated or damaged"),
    (other_training, ["resume", "RUN", "--epochs", "+1"], "RUN/CHECKPOINT/training.pt was written by other software"),
    (number_summary, ["resume", "RUN"], "RUN/summary.json cannot be 5: expected an object."),
    (list_in_metrics, ["report", "RUN"], "RUN/metrics.jsonl cannot be [1] at [0]: expected an object."),
    (binary_best, ["eval", "RUN"], "RUN/best names the checkpoint '\ufffd\ufffd', which is not in RUN/checkpoints."),
    (folder_last, ["resume", "RUN"], "RUN/last, which names a checkpoint, cannot be read: Is a directory; "),
    (nothing, ["resume", "RUN", "--epochs", "+" + "9" * 5000], "--epochs must be a number such as 14, or +10 for ten"),
    (nothing, ["resume", "RUN", "--epochs", "soon"], "--epochs must be a number such as 14, or +10 for ten more"),
    (other_classes, ["eval", "RUN", "--data", "data"], "The data has 2 classes and the network 10, which do not"),
    (another_seed, ["eval", "RUN", "other"],
     "230 of the 269 test images of RUN are not in the test split of other, which may have been trained on them;"),
    (another_network, ["eval", "RUN", "other"],
     "RUN has 10 classes and other 2, and they differ: '0' is in RUN and not in other; an ensemble needs"),
    (another_network, ["predict", "RUN", "other", "data"], "RUN has 10 classes and other 2, and they differ: '0'"),
    (nothing, ["eval", "RUN", "nowhere"], "There is no run nowhere; give a run folder, such as runs/digits-…, or"),
    (nothing, ["eval", "RUN", "--crops", "15"], "15 views do not form a grid; use 10 or 18, or --ten-crop."),
    (nothing, ["eval", "RUN", "--scales", "0.5"], "At --scales 0.5 the image is 16×16 and the network reads 32×32;"),
    (nothing, ["eval", "RUN", "--scales", "0", "1"], "--scales takes numbers above 0 and up to 4, such as 1 1.15, not"),
    (nothing, ["predict", "RUN"], "Name at least one image after the run: a file, a folder, or '-' for"),
    (nothing, ["predict", "RUN", "nowhere.png"], "None of the images could be read: nowhere.png: "),
    (images, ["predict", "RUN", "empty.png"], "None of the images could be read: empty.png: "),
    (images, ["predict", "RUN", "a.png", "--top", "0"], "--top must be at least 1, not 0."),
    (images, ["predict", "RUN", "a.png", "--engine", "openvnio"], "There is no engine 'openvnio'; did you mean '"),
    (nothing, ["eval", "RUN", "--engine", "fastest"], "There is no engine 'fastest'; did you mean 'fast'?"),
    (images, ["predict", "RUN", "a.png", "--engine", "onnxruntime", "--device", "cuda"],
     "--engine onnxruntime runs on the CPU only; omit --device cuda, or use --engine exact."),
    (nothing, ["eval", "RUN", "--engine", "openvino-int8", "--calibrate", "nowhere"],
     "--calibrate nowhere is not a folder; give a folder of images like those the network will see."),
    (nothing, ["eval", "RUN", "--engine", "openvino", "--calibrate", "RUN"],
     "--calibrate applies to --engine openvino-int8 and onnxruntime-int8, not to openvino; omit it."),
    (nothing, ["predict", "torchvision:IMAGENET1K_V7", "a.png"], "There is no "),
    (nothing, ["export", "RUN"], "Name a format: 'alexnet export RUN onnx', or one of onnx, openvino, "),
    (nothing, ["export", "RUN", "onxx"], "There is no format 'onxx'; did you mean 'onnx'?"),
    (nothing, ["export", "nowhere", "onnx"], "There is no run nowhere; give a run folder"),
    (nothing, ["export", "RUN", "torchvision-weights"], "Images of 32×32 are too small for 'torchvision': pool5"),
    (nothing, ["export", "RUN", "pt2", "--quantize", "int8"], "The format pt2 does not support int8; omit it, or"),
    (nothing, ["export", "RUN", "onnx", "--half", "--quantize", "int8"], "--half and --quantize both make a file sma"),
    (nothing, ["export", "RUN", "onnx", "--out", "net.bin"], "--out net.bin must end in .onnx for the format"),
    (nothing, ["export", "RUN", "all", "--out", "net.onnx"], "--out names one file, but 'all' writes several; leave"),
    (nothing, ["export", "RUN", "onnx", "--tolerance", "2"], "--tolerance must be a difference of probabilities"),
    (nothing, ["export", "RUN", "onnx", "--images", "nowhere"], "--images nowhere is not a folder; pass a folder"),
    (empty_folder, ["export", "RUN", "onnx", "--images", "empty"], "The folder empty holds no images."),
    (unreadable_image, ["export", "RUN", "onnx", "--images", "bad"], "None of the images to compare on can be"),
    (nothing, ["export", "RUN", "onnx", "--out", "/dev/null/net.onnx"], "/dev/null/net.onnx cannot be written: "),
    (empty_folder, ["export", "RUN", "huggingface", "--out", "RUN"], "--out RUN exists and is not an exported folder"),
    (exported, ["export", "RUN", "openvino", "--out", "my.xml"], "my.bin, where the weights of my.xml would go, is an"),
    (empty_folder, ["export", "RUN", "all", "--images", "empty"], "The folder empty holds no images."),
    (exported, ["predict", "net.onnx", "a.png"], "net.onnx cannot be opened as onnx ("),
    (exported, ["predict", "lost.onnx", "a.png"], "lost.onnx.json was written by other software: its format is not"),
    (exported, ["eval", "net.onnx"], "net.onnx cannot be opened as onnx ("),
    (exported, ["export", "net.onnx", "pt2"], "net.onnx is an exported file, which only predict and eval take; give"),
    (images, ["predict", "RUN", "a.png", "--out", "x.txt"], "Predictions are written as .csv, .parquet, .jsonl, not"),
    (images, ["predict", "RUN", "a.png", "--out", "no/x.csv"], "--out no/x.csv is a folder, or in one that does not"),
    (images, ["predict", "RUN", "-", "--out", "x.csv"], "--out writes one row per image file and '-' is not a file;"),
    (nothing, ["arch", "alexnet"], "There is no architecture 'alexnet'; "),
    (nothing, ["arch", "torchvision/resnet"], "There is no torchvision classifier 'resnet'; did you mean "),
    (nothing, ["arch", "paper", "--image-size", "16"], "Images of 16×16 are too small for 'paper': "),
    (nothing, ["arch", "paper", "--num-classes", "0"], ""),
    (nothing, ["code", "paper", "--image-size", "16"], "Images of 16×16 are too small for 'paper': "),
    (nothing, ["show"], "Name what to show: filters, activations, saliency, similar, top5, mistakes, curves, lrn, "),
    (nothing, ["show", "filter", "RUN"], "There is no kind of figure 'filter'; did you mean 'filters'?"),
    (nothing, ["show", "filters"], "An argument is missing after 'show filters'; usage: 'alexnet show filters "),
    (images, ["show", "filters", "RUN", "a.png"], "Unexpected argument 'a.png'; usage: 'alexnet show filters "),
    (nothing, ["show", "filters", "RUN", "--layer", "conv9"],
     "There is no convolution 'conv9' in 'cifar'; did you mean 'conv5' or "),
    (nothing, ["show", "filters", "RUN", "--top", "3"], "'alexnet show filters' takes no --top; leave it out."),
    (nothing, ["show", "filters", "RUN", "--out", "a.jpg"],
     "A figure cannot be written as a.jpg; choose a name that ends in .png, .svg, .html."),
    (nothing, ["show", "filters", "RUN", "--out", "."], "A figure cannot be written as .; choose a name that ends"),
    (nothing, ["show", "filters", "RUN", "--theme", "blue"], "Invalid choice 'blue' for argument '--theme'."),
    (nothing, ["show", "filters", "nowhere"], "There is no run nowhere; give a run folder, such as runs/digits-…, or"),
    (images, ["show", "saliency", "RUN", "a.png", "--method", "lime"], "Invalid choice 'lime' for argument"),
    (images, ["show", "saliency", "RUN", "a.png", "--label", "eleven"], "There is no class 'eleven'; choose one of"),
    (images, ["show", "saliency", "RUN", "empty.png"], "Cannot read empty.png: the file is empty; replace or"),
    (images, ["show", "activations", "RUN", "empty.png"], "Cannot read empty.png: the file is empty; replace or"),
    (images, ["show", "top5", "RUN", "empty.png"], "Cannot read empty.png: the file is empty; replace or remove it."),
    (images, ["show", "similar", "RUN", "empty.png"], "Cannot read empty.png: the file is empty; replace or"),
    (images, ["show", "similar", "RUN", "a.png", "--layer", "fc77"], "There is no layer 'fc77'; did you mean 'fc7'"),
    (images, ["show", "similar", "RUN", "a.png", "--top", "0"], "--top must be at least 1, not 0."),
    (no_evaluation, ["show", "mistakes", "RUN"],
     "The run RUN has no val evaluation; create it with 'alexnet eval RUN'."),
    (nothing, ["show", "mistakes", "RUN", "--split", "train"], "The run RUN has no train evaluation; "),
    (nothing, ["show", "architecture", "papre"], "There is no architecture 'papre'; did you mean 'paper' or "),
    (nothing, ["show", "architecture", "torchvision/resnet18"], "'torchvision/resnet18' is not an AlexNet and has n"),
    (nothing, ["show", "receptive-field", "paper", "nowhere.png"], "Cannot read nowhere.png: there is no such file; "),
    (no_metrics, ["show", "curves", "RUN"], "The run RUN has not finished an epoch yet, so there is no curve to draw."),
    (images, ["features", "RUN", "a.png", "--out", "f.xlsx"], "Features are written as .parquet or .csv, not as f.x"),
    (images, ["features", "RUN", "a.png", "--out", "f.csv", "--layer", "fc77"], "There is no layer 'fc77'; did you"),
    (images, ["features", "RUN", "empty.png", "--out", "f.csv"], "None of the images could be read: empty.png: "),
    (images, ["features", "RUN", "a.png"], "Missing "),
]  # fmt: skip


@pytest.mark.parametrize(("given", "arguments", "sentence"), USING, ids=lambda v: str(getattr(v, "__name__", v))[:60])
def test_bad_input_to_other_commands(tmp_path, small_run, monkeypatch, capsys, given, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(small_run, tmp_path / "copy")
    given(copy)
    if not Path("a.png").exists():
        Image.new("L", (9, 9)).save("a.png")
    assert run([a.replace("RUN", "copy") for a in arguments]) == 2
    error = read_error(capsys) if arguments[0] != "predict" else capsys.readouterr().err.strip().splitlines()[-1][9:]
    checkpoint = (small_run / ("best" if "resume" not in arguments else "last")).read_text().strip()
    expected = sentence.replace("RUN/CHECKPOINT", f"copy/checkpoints/{checkpoint}").replace("RUN", "copy")
    assert error.startswith(expected)
    assert "\n" not in error
    assert not Path("ran").exists()
