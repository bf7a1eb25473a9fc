"""AlexNet in one file: the network of 2012, its data augmentation, its training and its test.

    python examples/alexnet_2012.py               a narrow network on handwritten digits: 99 % correct
    python examples/alexnet_2012.py --data DIR    your images: DIR/train/CLASS/* and DIR/test/CLASS/*
    python examples/alexnet_2012.py --data DIR --width 1 --size 224 --batch 128 --lr .01 --epochs 90

The last command, with ImageNet in DIR, is the original: days on a GPU. Sections are those of the paper: Krizhevsky,
Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", 2012.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchvision import datasets, transforms
from torchvision.transforms.functional import center_crop


class AlexNet(nn.Module):
    """From images, levels of 0 to 255 minus the mean image, to logits. Shapes, N×channels×height×width, are of 2012.

    The network of 2012 ran on two GPUs, with one half of the channels, a tower, on each. In a layer with `groups=2`, a
    tower's outputs read only that tower's inputs. conv1 reads the image; conv3, fc6, fc7 and fc8 read both towers.
    """

    def __init__(self, width=1.0, image_size=224, channels=3, classes=1000):
        super().__init__()
        c96, c256, c384, f4096 = (2 * round(count * width / 2) for count in (96, 256, 384, 4096))  # even: two towers
        self.zeros = -(image_size - 11) % 4  # 3: pads 224 to 227, so that conv1's steps of 4 end at the edge
        grid = (image_size + self.zeros - 11) // 4 + 1  # 55 after conv1
        for _ in range(3):
            grid = (grid - 3) // 2 + 1  # 27, 13 and 6 after the three poolings
        if grid < 1:
            raise ValueError(f"Images of {image_size} pixels are too small for AlexNet; use at least 64.")
        self.conv1 = nn.Conv2d(channels, c96, kernel_size=11, stride=4)
        self.conv2 = nn.Conv2d(c96, c256, kernel_size=5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(c256, c384, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(c384, c384, kernel_size=3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(c384, c256, kernel_size=3, padding=1, groups=2)
        self.fc6 = nn.Linear(c256 * grid * grid, f4096)
        self.fc7 = nn.Linear(f4096, f4096)
        self.fc8 = nn.Linear(f4096, classes)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2)  # section 3.4: windows overlap
        self.dropout = nn.Dropout(0.5)  # section 4.2. Training doubles what is kept; 2012 halved all in the test.
        self.initialize()

    def forward(self, x):  # N×3×224×224
        x = F.pad(x, (0, self.zeros, 0, self.zeros))  # N×3×227×227, zeros at the right and at the bottom
        x = self.pool(response_norm(F.relu(self.conv1(x))))  # N×96×55×55 → N×96×27×27
        x = self.pool(response_norm(F.relu(self.conv2(x))))  # N×256×27×27 → N×256×13×13
        x = F.relu(self.conv3(x))  # N×384×13×13
        x = F.relu(self.conv4(x))  # N×384×13×13
        x = self.pool(F.relu(self.conv5(x)))  # N×256×13×13 → N×256×6×6
        x = self.dropout(F.relu(self.fc6(x.flatten(start_dim=1))))  # N×9216 → N×4096
        x = self.dropout(F.relu(self.fc7(x)))  # N×4096
        return self.fc8(x)  # N×1000

    @torch.no_grad()
    def initialize(self):
        """Section 5: weights from N(0, .01²); biases of 0, or of 1 in five layers, whose ReLUs then start above 0."""
        layers = [self.conv1, self.conv2, self.conv3, self.conv4, self.conv5, self.fc6, self.fc7, self.fc8]
        inputs_2012 = [363, 1200, 2304, 1728, 1728, 9216, 4096, 4096]  # numbers that an output sums; 363 = 3·11·11
        for layer, inputs in zip(layers, inputs_2012, strict=True):
            # The factor is ours, 1 in the full network: fewer inputs with larger weights give sums as large as in 2012.
            layer.weight.normal_(0, 0.01 * (inputs / layer.weight[0].numel()) ** 0.5)
            layer.bias.fill_(1 if layer in (self.conv2, self.conv4, self.conv5, self.fc6, self.fc7) else 0)


def response_norm(x):
    """Section 3.3: divide each value by (2 + 1e-4 · sum of squares over 5 neighboring channels) to the power of .75."""
    towers = x.unflatten(1, (2, -1)).flatten(0, 1)  # N×96×… → N×2×48×… → 2N×48×…: neighbors are of the same tower
    # Torch divides alpha by the 5 channels and the paper does not, hence 5e-4.
    return F.local_response_norm(towers, size=5, alpha=5e-4, beta=0.75, k=2.0).reshape(x.shape)


def load_digits(side):
    """Return sets of digits, to train, validate and test (1×side×side levels of 0 to 255), and 10, their classes."""
    from sklearn.datasets import load_digits as load_8x8

    images, labels = (torch.tensor(array) for array in load_8x8(return_X_y=True))  # N×64, 0 to 16; N labels
    images = F.interpolate(images.reshape(-1, 1, 8, 8) * 255 / 16, (side, side), mode="bilinear").to(torch.uint8)
    return random_split(TensorDataset(images, labels), [0.7, 0.1, 0.2]), 10


def load_folder(root, side):
    """Return three such sets of class folders (3×side×side; a tenth of train/ validates) and the number of classes."""
    square = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side), transforms.PILToTensor()])
    train = datasets.ImageFolder(root / "train", square)
    test = datasets.ImageFolder(root / ("test" if (root / "test").is_dir() else "val"), square)
    if test.classes != train.classes:  # a class is known by its place in the list
        raise SystemExit(f"{test.root} and {train.root} must have class folders of the same names.")
    return [*random_split(train, [0.9, 0.1]), test], len(train.classes)


def measure(loader):
    """Return the mean image, 3×S×S, and a 3×3 matrix: its columns are the principal components of all pixels' colors,
    each as long as the standard deviation along it, as in the code of 2012; in section 4.1, as the variance."""
    count = total = products = 0.0
    for images, _ in loader:
        images = images.double()
        colors = images.transpose(0, 1).flatten(1)  # 3 × all pixels of the batch
        count, total, products = count + len(images), total + images.sum(0), products + colors @ colors.T
    mean, color = total / count, total.mean(dim=(1, 2)) / count
    variances, directions = torch.linalg.eigh(products / (count * mean[0].numel()) - color.outer(color))
    return mean.float(), (directions * variances.clamp(min=0).sqrt()).float()


def augment(images, components, size, mirror):
    """Section 4.1, training: a random window of each image, mirrored or not, and a random color added to its pixels."""
    crops = []
    for image in images:
        top, left = torch.randint(image.shape[-1] - size + 1, (2,))
        crop = image[:, top : top + size, left : left + size]
        crops.append(crop.flip(-1) if mirror and torch.rand(()) < 0.5 else crop)
    colors = 0.1 * torch.randn(len(images), len(components)) @ components.T  # N×3: components times N(0, .1²), added
    return torch.stack(crops) + colors[:, :, None, None]


def ten_crop(images, size, mirror=True):
    """Section 4.1, test: the corners and the center, each with its mirror image (only these five if not `mirror`)."""
    edge, views = images.shape[-1] - size, []
    for top, left in [(0, 0), (0, edge), (edge // 2, edge // 2), (edge, 0), (edge, edge)]:
        view = images[..., top : top + size, left : left + size]
        views += [view, view.flip(-1)] if mirror else [view]
    return views


@torch.no_grad()
def update(velocities, lr, momentum=0.9, weight_decay=0.0005):
    """Section 5: v ← .9 v − .0005·lr·w − lr·gradient, w ← w + v, for each weight w with its velocity v."""
    for w, v in velocities.items():
        v.mul_(momentum).sub_(lr * (weight_decay * w + w.grad))
        w.add_(v)


@torch.no_grad()
def accuracy(model, loader, make_views):
    """Return top-1 and top-5 accuracy. `make_views` turns images into views; the sum of their probabilities decides."""
    model.eval()
    top1 = top5 = 0
    for images, labels in loader:
        probabilities = sum(model(view).softmax(dim=1) for view in make_views(images)).cpu()
        correct = probabilities.topk(min(5, probabilities.shape[1])).indices == labels[:, None]  # N×5
        top1, top5 = top1 + correct[:, 0].sum().item(), top5 + correct.sum().item()
    return top1 / len(loader.dataset), top5 / len(loader.dataset)


def train(model, sets, size, mirror, epochs, batch, lr, workers=0, log=print):
    """Train on the first of three `sets`, lower the rate by the second, and return the accuracy on the third."""
    device = next(model.parameters()).device
    train_set, val_set, test_set = (DataLoader(s, batch, shuffle=s is sets[0], num_workers=workers) for s in sets)
    mean, components = measure(train_set)
    velocities = {w: torch.zeros_like(w) for w in model.parameters()}
    highest, waited = 0.0, 0
    for epoch in range(1, epochs + 1):
        start, losses = time.time(), []
        model.train()
        for images, labels in train_set:
            inputs = augment(images - mean, components, size, mirror).to(device)
            loss = F.cross_entropy(model(inputs), labels.to(device))
            model.zero_grad()
            loss.backward()
            update(velocities, lr)
            losses.append(loss.item())
        top1, top5 = accuracy(model, val_set, lambda images: [center_crop(images - mean, size).to(device)])
        seconds, loss = time.time() - start, sum(losses) / len(losses)
        log(f"epoch {epoch:2}  rate {lr:g}  loss {loss:.3f}  val top-1 {top1:.1%} top-5 {top5:.1%}  {seconds:.1f} s")
        highest, waited = (top1, 0) if top1 > highest else (highest, waited + 1)
        if waited > 3:  # section 5: a tenth of the rate when accuracy stops rising; for 4 epochs is our choice
            lr, waited = lr / 10, 0
    return accuracy(model, test_set, lambda images: [v.to(device) for v in ten_crop(images - mean, size, mirror)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="class folders in train/ and test/ (or val/)")
    parser.add_argument("--width", type=float, default=0.25, help="share of the channels of 2012")
    parser.add_argument("--size", type=int, default=64, help="pixels of the input's side")
    parser.add_argument("--epochs", type=int, default=26)
    parser.add_argument("--batch", type=int, default=32, help="images per update")
    parser.add_argument("--lr", type=float, default=0.005, help="learning rate")
    args = parser.parse_args()
    if args.data and not (args.data / "train").is_dir():
        parser.error(f"{args.data} has no folder train/ with a folder of images for each class")
    torch.manual_seed(0)
    side = round(args.size * 256 / 224)  # in 2012, crops of 224 pixels from images of 256
    sets, classes = load_folder(args.data, side) if args.data else load_digits(side)
    torch.set_num_threads(torch.get_num_threads() if args.data else 1)  # for the digits, more would not be faster
    channels, mirror, workers = (3, True, 4) if args.data else (1, False, 0)  # gray; a mirrored digit is no digit
    model = AlexNet(args.width, args.size, channels, classes).to("cuda" if torch.cuda.is_available() else "cpu")
    top1, top5 = train(model, sets, args.size, mirror, args.epochs, args.batch, args.lr, workers)
    print(f"test: top-1 {top1:.2%}, top-5 {top5:.2%}")


if __name__ == "__main__":
    main()
