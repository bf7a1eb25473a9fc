"""Your own classes from the trained features of AlexNet: `python examples/finetune.py DIR`, images in DIR/CLASS/*.

Takes torchvision's AlexNet, a later variant of that in alexnet_2012.py, trained on the 1,000 classes of ImageNet, with
a new last layer for yours. The convolutions stay as they are; the fully connected layers are trained further. A fifth
of the images is held out to measure accuracy.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, models, transforms

URL = models.AlexNet_Weights.IMAGENET1K_V1.url
PLAIN = models.AlexNet_Weights.IMAGENET1K_V1.transforms()  # resize, center crop, mean and standard deviation
AUGMENTED = transforms.Compose([
    transforms.RandomResizedCrop(224, scale=(0.35, 1)), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
    transforms.Normalize(PLAIN.mean, PLAIN.std),
])  # fmt: skip


def read_weights(file):
    """Return the trained weights of `file`, or without one torchvision's, downloaded once; None if that fails."""
    if file is not None:
        return torch.load(file, map_location="cpu", weights_only=True)
    try:
        return models.AlexNet_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
    except OSError as error:
        print(f"The trained weights cannot be downloaded ({error}), so training starts from random ones and needs far "
              f"more images. Download {URL} elsewhere and name the file with --weights.")  # fmt: skip
        return None


def make_model(weights, classes):
    """Return the network. With trained weights, all but its last layer start from them; the convolutions keep them."""
    model = models.alexnet(num_classes=classes)
    if weights is not None:
        last = ("classifier.6.weight", "classifier.6.bias")  # for 1,000 other classes in the file; ours are new
        model.load_state_dict(weights | {name: model.state_dict()[name] for name in last})
        model.features.requires_grad_(False)
    return model


def split(root):
    """Return four fifths of the images, augmented; one fifth, not augmented; and the names of the classes."""
    train, test = datasets.ImageFolder(root, AUGMENTED), datasets.ImageFolder(root, PLAIN)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    fifth = max(1, len(order) // 5)
    return Subset(train, order[fifth:]), Subset(test, order[:fifth]), train.classes


def train_epoch(model, loader, optimizer):
    """Take a step for each batch; return the mean loss."""
    device, losses = next(model.parameters()).device, []
    model.train()
    for images, labels in loader:
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def accuracy(model, loader):
    """Return the share of images whose class has the largest logit."""
    device = next(model.parameters()).device
    model.eval()
    hits = sum((model(images.to(device)).argmax(dim=1).cpu() == labels).sum().item() for images, labels in loader)
    return hits / len(loader.dataset)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DIR", help="a folder with a folder of images for each class")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="torchvision's weights, instead of a download")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the trained network's weights to this file")
    args = parser.parse_args()
    torch.manual_seed(0)
    train_set, test_set, classes = split(args.data)
    weights = read_weights(args.weights)
    model = make_model(weights, len(classes)).to("cuda" if torch.cuda.is_available() else "cpu")
    learning = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.01 if weights is None else 0.001, momentum=0.9, weight_decay=5e-4)
    for epoch in range(1, args.epochs + 1):
        loss = train_epoch(model, DataLoader(train_set, 32, shuffle=True), optimizer)
        print(f"epoch {epoch:2}  loss {loss:.3f}  accuracy {accuracy(model, DataLoader(test_set, 32)):.1%}")
    if args.save:
        torch.save(model.state_dict(), args.save)


if __name__ == "__main__":
    main()
