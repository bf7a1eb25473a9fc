"""The two towers of 2012, one process each: `torchrun --nproc-per-node 2 examples/two_towers.py`.

A GPU of 2012 had 3 GB, too little to train the network. So each of two GPUs got a tower, one half of every layer, and
they exchanged values only where a layer reads both towers: conv3, fc6, fc7 and fc8 (section 3.5, figure 2). Here each
process stands for a GPU, and has one of its own if the machine has two. It stores and trains its half of the weights;
both processes see the same images. Training goes as in alexnet_2012.py, whose steps it takes, up to rounding.
"""

import argparse
import os

import torch
import torch.distributed as dist
from alexnet_2012 import AlexNet, load_digits, train
from torch import nn
from torch.nn import functional as F


def own_half(whole):
    """Return this process's half of a tensor of the whole network: the first or second half of a layer's outputs."""
    return whole.chunk(2, dim=0)[dist.get_rank()].clone()


class JoinHalves(torch.autograd.Function):
    """N×C/2 of each process → N×C in both processes: the first process's half, then the second's."""

    @staticmethod
    def forward(ctx, half, add_gradients):
        ctx.add_gradients = add_gradients
        half = half.contiguous()
        halves = [torch.empty_like(half), torch.empty_like(half)]
        dist.all_gather(halves, half)
        return torch.cat(halves, dim=1)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        if ctx.add_gradients:
            dist.all_reduce(gradient)  # the sum over both processes
        return gradient.chunk(2, dim=1)[dist.get_rank()], None  # the second argument needs no gradient


def from_both_towers(half):
    """Return all channels for a layer that reads both towers. A process gets only the gradient through its own half of
    that layer, so the gradients of both are added."""
    return JoinHalves.apply(half, True)


def logits_of_both_towers(half):
    """Return all logits. Both processes compute the same loss from them, so each has the complete gradient already."""
    return JoinHalves.apply(half, False)


def half_conv(layer):
    """Return this process's half of a convolution: half of its filters. Where the towers are groups, each filter reads
    only its own tower's channels."""
    half = nn.Conv2d(
        layer.in_channels // layer.groups, layer.out_channels // 2, layer.kernel_size, layer.stride, layer.padding
    )
    half.load_state_dict({"weight": own_half(layer.weight), "bias": own_half(layer.bias)})
    return half


def half_linear(layer):
    """Return this process's half of a fully connected layer: half of its units."""
    half = nn.Linear(layer.in_features, layer.out_features // 2)
    half.load_state_dict({"weight": own_half(layer.weight), "bias": own_half(layer.bias)})
    return half


def response_norm(x):
    """Normalize as alexnet_2012.py does, where too the 5 channels are always of one tower."""
    return F.local_response_norm(x, size=5, alpha=5e-4, beta=0.75, k=2.0)


class Tower(nn.Module):
    """This process's half of an AlexNet: images → logits of all classes, an even number of them. Comments: shapes at
    width 1, 224 pixels, color."""

    def __init__(self, whole):
        super().__init__()
        self.zeros = whole.zeros
        self.conv1 = half_conv(whole.conv1)  # 3 → 48 channels
        self.conv2 = half_conv(whole.conv2)  # 48 → 128
        self.conv3 = half_conv(whole.conv3)  # 256, of both towers → 192
        self.conv4 = half_conv(whole.conv4)  # 192 → 192
        self.conv5 = half_conv(whole.conv5)  # 192 → 128
        self.fc6 = half_linear(whole.fc6)  # 9216, of both towers → 2048
        self.fc7 = half_linear(whole.fc7)  # 4096, of both towers → 2048
        self.fc8 = half_linear(whole.fc8)  # 4096, of both towers → 500
        self.pool = whole.pool

    def forward(self, x):  # N×3×224×224, the same images in both processes
        x = F.pad(x, (0, self.zeros, 0, self.zeros))
        x = self.pool(response_norm(F.relu(self.conv1(x))))  # N×48×55×55 → N×48×27×27
        x = self.pool(response_norm(F.relu(self.conv2(x))))  # N×128×27×27 → N×128×13×13
        x = F.relu(self.conv3(from_both_towers(x)))  # N×192×13×13
        x = F.relu(self.conv4(x))  # N×192×13×13
        x = self.pool(F.relu(self.conv5(x)))  # N×128×13×13 → N×128×6×6
        x = x.flatten(start_dim=1)  # N×4608
        x = self.dropout(F.relu(self.fc6(from_both_towers(x))))  # N×2048
        x = self.dropout(F.relu(self.fc7(from_both_towers(x))))  # N×2048
        return logits_of_both_towers(self.fc8(from_both_towers(x)))  # N×1000

    def dropout(self, x):
        """Drop the units that AlexNet would: both processes draw the mask of the whole layer and use their half."""
        n, units = x.shape
        mask = F.dropout(x.new_ones(n, 2 * units), 0.5, self.training)  # 0 or 2; all 1 in the test
        return x * mask.chunk(2, dim=1)[dist.get_rank()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25, help="share of the channels of 2012")
    parser.add_argument("--epochs", type=int, default=26)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if os.environ.get("WORLD_SIZE") != "2":  # set by torchrun
        parser.error("there are two towers: start this file with torchrun --nproc-per-node 2")
    two_gpus = torch.cuda.device_count() >= 2
    dist.init_process_group("nccl" if two_gpus else "gloo")
    rank = dist.get_rank()
    device = torch.device("cuda", rank) if two_gpus else torch.device("cpu")

    torch.manual_seed(args.seed)  # the same in both: data, crops, noise and the initial weights of the whole network
    sets, classes = load_digits(side=73)  # 64 · 256/224
    whole = AlexNet(args.width, image_size=64, channels=1, classes=classes)
    with torch.random.fork_rng(devices=[]):  # take back what Tower draws: alexnet_2012.py does not
        tower = Tower(whole).to(device)
    print(f"process {rank} trains {sum(w.numel() for w in tower.parameters()):,} parameters on {device}")
    log = print if rank == 0 else str  # both processes know the same; one prints it
    top1, top5 = train(tower, sets, size=64, mirror=False, epochs=args.epochs, batch=32, lr=0.005, log=log)
    log(f"test: top-1 {top1:.2%}, top-5 {top5:.2%}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
