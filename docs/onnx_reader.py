"""Label images with a file of `alexnet export … onnx`: python onnx_reader.py FILE.onnx IMAGE…"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

network = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(network.get_modelmeta().custom_metadata_map["alexnet"])
step = {step["step"]: step for step in about["image"]}
side, size, value_range = step["resize"]["side"], step["crop"]["size"], step["depth"]["range"]
for path in sys.argv[2:]:
    image = Image.open(path)  # the first frame
    if image.mode in ("I", "F") or (value_range and image.mode[0] != "I" and ";16" in str(image.tile)):
        sys.exit(f"{path}: of images of more than 8 bits, this program reads 16-bit gray.")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        low, high = value_range or (0, 65535)
        scaled = ((np.asarray(image, float) - low) * (255 / (high - low))).clip(0, 255)
        image = Image.fromarray(np.rint(scaled).astype(np.uint8))
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    sides = [int(side * x / min(image.size)) if step["resize"]["keep_aspect_ratio"] else side for x in image.size]
    image = image.convert(step["colors"]["mode"]).resize(sides, Image.Resampling[step["resize"]["filter"].upper()])
    left, top = (round((x - size) / 2) for x in sides)
    x = np.atleast_3d(image)[top : top + size, left : left + size]
    x = x if about["pixels"] else np.float32((x / 255 - step["normalize"]["mean"]) / step["normalize"]["std"])
    p = np.exp(np.float64(network.run(None, {"input": x.transpose(2, 0, 1)[None]})[0][0]))
    print(f"{path}: {about['classes'][p.argmax()]} {p.max() / p.sum():.6f}")
