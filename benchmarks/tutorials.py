"""Plain loops like those of three popular tutorials, rewritten from their descriptions (see docs/tutorials.md).

    python benchmarks/tutorials.py cifar10 --data DIR --epochs 100 --out cifar10-plain.json
    python benchmarks/tutorials.py fashion-mnist --data DIR --steps 20

| name | tutorial | data | what it does |
|---|---|---|---|
| imagenet-lrn | 000 | train/ and val/ of class folders | torchvision's widths with LRN after each pool, at 224 |
| cifar10 | 002, fixed | train/ and test/ of class folders | crop with padding 4, flip; batch 32, for a CPU |
| fashion-mnist | 004 (d2l), fixed | torchvision's layout | resized to 224, plain SGD at .01, batch 128 |

Nothing of the package is used: an `ImageFolder`, a `DataLoader`, torchvision's transforms, `torch.optim.SGD`, and
`loss.item()` at each step. Where a tutorial leaves something out (000 has no loop), the others' choice is used. With
--epochs each line is (epoch, seconds since the start of training, top-1 on the test images); with --steps, images/s.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import save
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


def classifier(features: int, hidden: int, classes: int, dropout_first: bool) -> list[nn.Module]:
    """Return the three fully connected layers, with dropout before or after the first two."""
    widths = [features, hidden, hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for i, o in pairwise(widths):
        full = [nn.Linear(i, o), nn.ReLU(inplace=True)]
        layers += [nn.Dropout(0.5), *full] if dropout_first else [*full, nn.Dropout(0.5)]
    return [*layers, nn.Linear(hidden, classes)]


def conv(i: int, o: int, kernel: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(i, o, kernel, stride, padding), nn.ReLU(inplace=True)]


def network_000(classes: int) -> nn.Module:
    """Return torchvision's widths, with LRN(5) after each pool: 61,100,840 parameters for 1000 classes."""

    def pool() -> list[nn.Module]:
        return [nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5)]

    return nn.Sequential(
        *conv(3, 64, 11, 4, 2), *pool(), *conv(64, 192, 5, 1, 2), *pool(), *conv(192, 384, 3, 1, 1),
        *conv(384, 256, 3, 1, 1), *conv(256, 256, 3, 1, 1), *pool(), *classifier(256 * 6 * 6, 4096, classes, True),
    )  # fmt: skip


def network_002(classes: int) -> nn.Module:
    """Return the tutorial's widths for 32×32: conv1 5×5 with stride 2 and pools in ceil mode, for its 2×2 output."""

    def pool() -> list[nn.Module]:
        return [nn.MaxPool2d(3, 2, ceil_mode=True)]

    model = nn.Sequential(
        *conv(3, 64, 5, 2, 2), *pool(), *conv(64, 192, 5, 1, 2), *pool(), *conv(192, 384, 3, 1, 1),
        *conv(384, 256, 3, 1, 1), *conv(256, 256, 3, 1, 1), *pool(), *classifier(256 * 2 * 2, 4096, classes, True),
    )  # fmt: skip
    for module in model:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.zeros_(module.bias)
    return model


def network_004(classes: int) -> nn.Module:
    """Return the network that tutorial 004 prints: one channel, conv1 without padding, dropout after fc6 and fc7."""

    def pool() -> list[nn.Module]:
        return [nn.MaxPool2d(3, 2)]

    model = nn.Sequential(
        *conv(1, 96, 11, 4), *pool(), *conv(96, 256, 5, 1, 2), *pool(), *conv(256, 384, 3, 1, 1),
        *conv(384, 384, 3, 1, 1), *conv(384, 256, 3, 1, 1), *pool(), *classifier(6400, 4096, classes, False),
    )  # fmt: skip
    for module in model:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
    return model


@dataclass
class Setup:
    """A tutorial's data, network and optimizer."""

    train: DataLoader[Any]
    test: DataLoader[Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None


def setup(name: str, data: Path, batch: int | None, workers: int) -> Setup:
    def loader(dataset: Any, size: int, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(dataset, batch_size=size, shuffle=shuffle, num_workers=workers)

    make = transforms.Compose
    if name == "fashion-mnist":
        enlarge = make([transforms.Resize(224), transforms.ToTensor()])
        sets = [datasets.FashionMNIST(str(data), train, transform=enlarge) for train in (True, False)]
        model = network_004(10)
        size = batch or 128
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        return Setup(loader(sets[0], size, True), loader(sets[1], size, False), model, optimizer)
    cifar = name == "cifar10"
    mean, std = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)) if cifar else (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # fmt: skip
    last = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    crop = [transforms.RandomCrop(32, padding=4)] if cifar else [transforms.RandomResizedCrop(224)]
    plain = [] if cifar else [transforms.Resize(256), transforms.CenterCrop(224)]
    train = datasets.ImageFolder(str(data / "train"), make([*crop, transforms.RandomHorizontalFlip(), *last]))
    held = data / "test" if (data / "test").is_dir() else data / "val"
    test = datasets.ImageFolder(str(held), make([*plain, *last]))
    model = (network_002 if cifar else network_000)(len(train.classes))
    size = batch or 32
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    return Setup(loader(train, size, True), loader(test, 256, False), model, optimizer, schedule)


def steps(s: Setup, device: torch.device) -> Iterator[int]:
    """Run one epoch; yield the number of images of each step."""
    s.model.train()
    criterion = nn.CrossEntropyLoss()
    running, correct = 0.0, 0
    for images, targets in s.train:
        images, targets = images.to(device), targets.to(device)
        s.optimizer.zero_grad()
        outputs = s.model(images)
        loss = criterion(outputs, targets)
        loss.backward()
        s.optimizer.step()
        running += loss.item()
        correct += outputs.argmax(1).eq(targets).sum().item()
        yield len(targets)


@torch.no_grad()
def accuracy(s: Setup, device: torch.device) -> tuple[float, float]:
    """Return top-1 and top-5."""
    s.model.eval()
    first = among_five = count = 0
    for images, targets in s.test:
        ranked = s.model(images.to(device)).topk(5).indices == targets.to(device)[:, None]
        first += int(ranked[:, 0].sum())
        among_five += int(ranked.sum())
        count += len(targets)
    return first / count, among_five / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("imagenet-lrn", "cifar10", "fashion-mnist"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, help="time this many steps after three, and print images/s")
    parser.add_argument("--seconds", type=float, help="stop training after this time, also within an epoch")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--workers", type=int, default=0, help="of the DataLoader; its default is 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file, rewritten after each epoch")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    s = setup(args.name, args.data, args.batch, args.workers)
    s.model.to(device)
    results: dict[str, Any] = {"tutorial": args.name, "batch": s.train.batch_size, "workers": args.workers}
    if args.steps:
        epoch = steps(s, device)
        for _ in range(3):
            next(epoch)
        began = time.perf_counter()
        images = sum(next(epoch) for _ in range(args.steps))
        results["images_per_second"] = images / (time.perf_counter() - began)
        print(f"{args.name}: {results['images_per_second']:.1f} images/s")
        if args.out:
            save(args.out.stem, results, device=device.type, folder=args.out.parent)
        return
    results["curve"] = []
    began = time.perf_counter()
    for epoch_number in range(1, args.epochs + 1):
        images = 0
        for count in steps(s, device):
            images += count
            if late := args.seconds is not None and time.perf_counter() - began > args.seconds:
                break
        trained = time.perf_counter() - began
        if s.schedule:
            s.schedule.step()
        top1, top5 = accuracy(s, device)
        row = {"epoch": epoch_number, "seconds": time.perf_counter() - began, "top1": top1, "top5": top5}
        row["images"] = images
        results["curve"].append(row | {"seconds_before_evaluation": trained})
        print(f"epoch {epoch_number}/{args.epochs}  {row['seconds']:.1f} s  top-1 {top1:.2%}", flush=True)
        if args.out:
            save(args.out.stem, results, device=device.type, folder=args.out.parent)
        if late:
            break


if __name__ == "__main__":
    main()
