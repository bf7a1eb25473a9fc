"""Top-1 of a trained network on random crops of its validation images, decoded by Pillow alone and by our decoder.

Once with the original files, and once enlarged eight times: then ours decodes most of them at half size or less.

    python benchmarks/decode_accuracy.py RUN  → results/decode-accuracy.json
"""

from __future__ import annotations

import io
import sys

import common
import torch
from decode import box_of, exact_image
from PIL import Image

from alexnet.data.datasets import load_dataset
from alexnet.data.decode import decode_crop, decode_image
from alexnet.inference.load import load_model
from alexnet.training.recipe import read_recipe


def enlarged(data: bytes, times: int) -> bytes:
    """Return the JPEG file of an image enlarged by a factor."""
    image, file = decode_image(data), io.BytesIO()
    image.resize((times * image.width, times * image.height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


@torch.inference_mode()
def accuracy(run: str) -> None:
    opened = load_model(run)
    recipe = read_recipe(opened.run.path / "recipe.json")
    files = load_dataset(recipe.data.dataset, recipe.data.path, seed=recipe.run.seed).splits["val"]
    size, results = opened.preprocess.size, {}
    for times in (1, 8):
        right, differ, levels = {"Pillow": 0, "ours": 0}, 0, 0.0
        for i, (path, target) in enumerate(zip(files.paths, files.targets.tolist(), strict=True)):
            data = path.read_bytes() if times == 1 else enlarged(path.read_bytes(), times)
            ours = opened.preprocess.resize_crop(decode_crop(data, size, box=box_of(i)))
            images = torch.stack([exact_image(data, i, size)[0], ours])
            levels += float((images[0].int() - images[1].int()).abs().float().mean())
            first, second = opened.model(opened.preprocess.normalize(images)).argmax(1).tolist()
            right["Pillow"] += first == target
            right["ours"] += second == target
            differ += first != second
        results[f"{times} times as large"] = {
            **{name: hits / len(files) for name, hits in right.items()},
            "n": len(files),
            "labels that differ": differ / len(files),
            "mean difference in levels": levels / len(files),
        }
    print(results, file=sys.stderr)
    common.save("decode-accuracy", results, ("pillow", "simplejpeg"))


if __name__ == "__main__":
    accuracy(sys.argv[1])
