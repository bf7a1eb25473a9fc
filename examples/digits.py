"""Write the example digits beside this file: `python examples/digits.py`.

Each is the first image of its class in the test split that `alexnet train` holds out with its default seed, so a
network trained by that command has not seen it: 32×32 gray pixels, each repeated 4×4 times.
"""

from pathlib import Path

from PIL import Image

from alexnet.data.datasets import load_dataset

NAMES = {0: "zero", 4: "four", 7: "seven"}


def first_of_each_class() -> dict[str, Image.Image]:
    """Return the 128×128 gray images by name."""
    test = load_dataset("digits").arrays["test"]
    first = {name: test.targets.tolist().index(digit) for digit, name in NAMES.items()}
    enlarged = test.images[:, 0].repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    return {name: Image.fromarray(enlarged[i].numpy()) for name, i in first.items()}


if __name__ == "__main__":
    for name, image in first_of_each_class().items():
        image.save(Path(__file__).with_name(f"{name}.png"), optimize=True)
