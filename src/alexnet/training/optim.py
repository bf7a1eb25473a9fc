"""The optimizers, and learning rates as a pure function of the step.

The only state is the optimizer's momentum: the rates follow from the recipe, the step and
(for `plateau`) the validation metrics so far, so a resumed run has no scheduler to restore.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alexnet.training.muon import Muon, count_matrices, fused_sgd
from alexnet.training.recipe import Recipe


class SGD2012(torch.optim.Optimizer):
    """SGD with momentum as in the released 2012 code (src/weights.cu): the learning rate is inside the velocity,

        V <- momentum·V - lr·weight_decay·W - lr·gradient,    W <- W + V.

    `torch.optim.SGD` multiplies by the rate outside. Both take the same steps (its momentum is
    -V/lr) until the rate changes: its steps then shrink immediately, while these decay with the
    velocity. At rate 0 a group keeps its weights and velocity, which is how the 2012 code
    freezes a layer. Parameters without a gradient are skipped. V is stored as "momentum_buffer".
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters. `closure`, if given, first computes the gradients; its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, weights = group["lr"], [p for p in group["params"] if p.grad is not None]
            if lr == 0 or not weights:
                continue
            # torch's update is B <- momentum·B + (1 - dampening)·(gradient + weight_decay·W), W <- W - rate·B. With
            # rate = -1 and dampening = 1 + lr it is the one above, in one pass over memory instead of four.
            fused_sgd(weights, self.state, group, lr=-1.0, dampening=1 + lr)
        return loss


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer with parameter groups of two kinds, stored in each group as `kind`.

    "weights" are matrices and kernels, "biases" all vectors, those of normalization included; these decay only with
    `decay_biases`. There are two groups for each layer (`layer` is its name, otherwise empty) with `lr_changes`,
    `layer_weight_decay`, `dropout_2012` or pretrained weights, and one more with Muon, which trains the kernels of
    convolutions in another way. `scale` multiplies the rate: see `kernel_lr_mult` and `backbone_lr_mult` in
    `training/settings.py`, and `dropout_keep_prob_by_layer`. The order of the parameters is always the same, weights
    first, so checkpoints of either grouping fit. torch's SGD is fused: one pass over weight, gradient and momentum
    instead of several, ten times as fast for 23 million weights.
    """
    settings = recipe.optimization
    keep_probs = dropout_keep_prob_by_layer(model) if settings.dropout_2012 else {}
    backbone_scale = settings.backbone_lr_mult if recipe.model.weights else 1.0
    own_decay = {layer: e.weight_decay for e in settings.layer_weight_decay for layer in e.layers}
    by_layer = bool(recipe.schedule.lr_changes or own_decay or keep_probs or backbone_scale != 1)
    head = list(model.named_parameters())[-1][0].rpartition(".")[0]
    kernels = count_matrices(model) if settings.optimizer == "muon" else {}
    groups: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for name, p in sorted(model.named_parameters(), key=lambda named: (named[1].ndim <= 1, named[1] not in kernels)):
        layer, kind = name.rpartition(".")[0] if by_layer else "", "weights" if p.ndim > 1 else "biases"
        decay = own_decay.get(layer, settings.weight_decay) if kind == "weights" or settings.decay_biases else 0.0
        dropout_scale = keep_probs.get(layer, 1.0) ** 2 if kind == "weights" else 1.0
        scale = dropout_scale if layer == head else dropout_scale * backbone_scale
        if p in kernels:
            scale, decay = scale * settings.kernel_lr_mult, 0.0
        group = {"params": [], "layer": layer, "kind": kind, "scale": scale, "weight_decay": decay / dropout_scale}
        groups.setdefault((layer, kind, p in kernels), group)["params"].append(p)
    lr, momentum, nesterov = settings.lr, settings.momentum, settings.nesterov
    if settings.optimizer == "sgd2012":
        return SGD2012(groups.values(), lr=lr, momentum=momentum)
    if settings.optimizer == "muon":
        return Muon(groups.values(), lr=lr, matrices=kernels, momentum=momentum, nesterov=nesterov)
    return torch.optim.SGD(groups.values(), lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


def dropout_keep_prob_by_layer(model: nn.Module) -> dict[str, float]:
    """Return the layers whose inputs pass through dropout, with its keep probability: {"fc7": .5, "fc8": .5} in 2012.

    In 2012 training did not scale the kept units, and testing multiplied all units by the keep probability k. Here,
    as in torch, training divides by k. Both are the same network if the next layer's weights are k times theirs. The
    gradient is then 1/k of theirs, so the same update needs k² of the rate with 1/k² of the decay; biases are equal.
    """
    found: dict[str, float] = {}
    keep_prob = 1.0
    for name, module in model.named_children():
        if isinstance(module, nn.Dropout):
            keep_prob = 1 - module.p
        elif isinstance(module, nn.Linear):
            if keep_prob < 1:
                found[name] = keep_prob
            keep_prob = 1.0
    return found


@torch.no_grad()
def scale_for_2012_dropout(model: nn.Module) -> None:
    """Multiply the weights after dropout by its keep probability, so that they start as in the 2012 code."""
    for name, keep_prob in dropout_keep_prob_by_layer(model).items():
        model.get_parameter(f"{name}.weight").mul_(keep_prob)


@dataclass(frozen=True)
class Hyperparameters:
    """Learning rates and noise at one optimizer step."""

    lr: float
    """Learning rate of the weights of all layers without an individual one: the `lr` of `metrics.jsonl`."""
    bias_lr: float
    """The same for the biases."""
    layer_rates: Mapping[tuple[str, str], float]
    """Learning rates of individual layers, by layer and kind ("weights" or "biases")."""
    pca_noise: float
    """Strength of the PCA noise."""

    def rate(self, layer: str, kind: str) -> float:
        """Return the learning rate of the parameters of this `kind` in `layer`."""
        return self.layer_rates.get((layer, kind), self.lr if kind == "weights" else self.bias_lr)

    def set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the learning rate of every group of an optimizer from `make_optimizer`."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(group["layer"], group["kind"]) * group["scale"]


def schedule_at(
    recipe: Recipe, step: int, steps_per_epoch: int, history: Sequence[Mapping[str, Any]] = ()
) -> Hyperparameters:
    """Return the hyperparameters of optimizer step `step` (counted from 0). `history`: metrics of the finished epochs.

    A rate in `lr_changes` holds as written, even during warmup; `scale_lr` multiplies all rates.
    """
    lr = learning_rate(recipe, step, steps_per_epoch, _plateau_metrics(recipe, history))
    common = {"weights": lr, "biases": lr * recipe.optimization.bias_lr_mult}
    layer_rates: dict[tuple[str, str], float] = {}
    noise = recipe.augmentation.pca_noise
    for change in recipe.schedule.lr_changes:
        if change.epoch > step // steps_per_epoch + 1:
            break
        for kind, rate in change.rates.items():
            if change.layers:
                layer_rates.update({(layer, kind): rate for layer in change.layers})
            else:
                common[kind] = rate
                layer_rates = {key: value for key, value in layer_rates.items() if key[1] != kind}
        noise = noise if change.pca_noise is None else change.pca_noise
    factor = recipe.lr_factor
    return Hyperparameters(
        lr=common["weights"] * factor,
        bias_lr=common["biases"] * factor,
        layer_rates={key: rate * factor for key, rate in layer_rates.items()},
        pca_noise=noise,
    )


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, metrics: Sequence[float] = ()) -> float:
    """Return the rate of the recipe's schedule at optimizer step `step` (counted from 0), before `lr_changes`.

    `metrics` are the losses or errors of the finished epochs, used by `plateau` only.
    `limit_steps` does not compress the schedule, so that a limited run is the beginning of the full one, unless they
    are those that fit a time budget.
    """
    schedule, lr = recipe.schedule, recipe.optimization.lr
    total = schedule.epochs * steps_per_epoch
    if schedule.time_budget is not None and schedule.limit_steps is not None:
        total = schedule.limit_steps
    warmup = schedule.warmup * steps_per_epoch
    if step < warmup:
        return lr * (step + 1) / warmup if warmup >= 1 else lr
    if schedule.kind == "constant":
        return lr
    if schedule.kind == "step":
        return lr * schedule.lr_gamma ** (step // steps_per_epoch // schedule.lr_step_size)
    if schedule.kind == "plateau":
        drops = plateau_drops(metrics, schedule.patience)
        return lr * schedule.lr_gamma ** (drops if schedule.max_drops is None else min(drops, schedule.max_drops))
    if schedule.kind == "cosine":
        done = min((step - warmup) / max(total - warmup, 1), 1)
        ratio = schedule.final_lr_ratio
        return lr * (ratio + (1 - ratio) * 0.5 * (1 + math.cos(math.pi * done)))
    # one-cycle: linear rise to the peak, linear fall to the end
    peak = max(schedule.pct_start * total, 1)
    if step < peak:
        return lr * (step + 1) / (peak + 1)
    done = min((step - peak) / max(total - peak, 1), 1)
    return lr * (1 - (1 - schedule.final_lr_ratio) * done)


def plateau_ended(recipe: Recipe, history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the metrics of the finished epochs reach a plateau after the last of the schedule's `max_drops`."""
    schedule = recipe.schedule
    if schedule.kind != "plateau" or schedule.max_drops is None:
        return False
    return plateau_drops(_plateau_metrics(recipe, history), schedule.patience) > schedule.max_drops


def _plateau_metrics(recipe: Recipe, history: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the loss or error of each finished epoch, as `plateau_on` says."""
    return [row["val_loss"] if recipe.schedule.plateau_on == "loss" else 1 - row["top1"] for row in history]


def plateau_drops(metrics: Sequence[float], patience: int) -> int:
    """Return how often a metric (lower is better) has not improved for more than `patience` epochs in a row."""
    best, bad_epochs, drops = math.inf, 0, 0
    for metric in metrics:
        if metric < best:
            best, bad_epochs = metric, 0
        else:
            bad_epochs += 1
        if bad_epochs > patience:
            drops, bad_epochs = drops + 1, 0
    return drops
