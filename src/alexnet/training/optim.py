"""SGD in two forms, and its rates, which are a pure function of the step.

Nothing here keeps state beside the optimizer's momentum: the rates at a step follow from the recipe, the step and
(for `plateau`) the validation figures so far, so that a resumed run needs no scheduler to restore.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from alexnet.training.recipe import Recipe


class SGD2012(torch.optim.Optimizer):
    """Momentum as the released 2012 code has it (src/weights.cu): the learning rate is inside the velocity,

        V <- momentum·V - lr·weight_decay·W - lr·gradient,    W <- W + V.

    `torch.optim.SGD` multiplies by the rate outside and so takes the same steps (its momentum is -V/lr) until the rate
    changes: then it slows down at once, and this one coasts. At rate 0 a group is left alone, velocity included; that
    is how the 2012 code freezes a layer. Parameters without a gradient are skipped. V is the state "momentum_buffer".
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
        """One update of all parameters. `closure`, if given, computes the gradients first and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, weights = group["lr"], [p for p in group["params"] if p.grad is not None]
            if lr == 0 or not weights:
                continue
            for p in weights:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            # torch's own update is B <- momentum·B + (1 - dampening)·(gradient + weight_decay·W), W <- W - rate·B, and
            # so ours with these two numbers: in one pass over memory instead of four.
            sgd(
                weights,
                [p.grad for p in weights if p.grad is not None],
                [self.state[p]["momentum_buffer"] for p in weights],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=-1.0,
                dampening=1 + lr,
                nesterov=False,
                maximize=False,
                fused=True,
            )
        return loss


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer, in a group of "weights" (matrices and kernels), which decay, and one of "biases" (all
    vectors, those of normalisation included), which decay only where the recipe says so. Each group carries its `kind`.

    A recipe with changes, with dropout as in 2012 or with the weights of another network has such groups for each layer
    (`layer` is its name, else empty), and the last two a `scale` of its rate: see `dropout_keep_prob_by_layer`,
    `Recipe.backbone_lr_mult`.
    Parameters come in the same order, weights first, so that either kind of checkpoint fits. torch's SGD is fused: one
    pass over weight, gradient and momentum instead of several, ten times as fast for 23 million weights.
    """
    kept = dropout_keep_prob_by_layer(model) if recipe.dropout_2012 else {}
    slower = recipe.backbone_lr_mult if recipe.weights else 1.0
    apart = bool(recipe.lr_changes or kept or slower != 1)
    head = list(model.named_parameters())[-1][0].rpartition(".")[0]
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for name, p in sorted(model.named_parameters(), key=lambda named: named[1].ndim <= 1):
        layer, kind = name.rpartition(".")[0] if apart else "", "weights" if p.ndim > 1 else "biases"
        decay = recipe.weight_decay if kind == "weights" or recipe.decay_biases else 0.0
        share = kept.get(layer, 1.0) ** 2 if kind == "weights" else 1.0
        scale = share if layer == head else share * slower
        group = {"params": [], "layer": layer, "kind": kind, "scale": scale, "weight_decay": decay / share}
        groups.setdefault((layer, kind), group)["params"].append(p)
    if recipe.optimizer == "sgd2012":
        return SGD2012(groups.values(), lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.SGD(
        groups.values(), lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
    )


def dropout_keep_prob_by_layer(model: nn.Module) -> dict[str, float]:
    """The layers that read what dropout leaves, and the share that it keeps: {"fc7": .5, "fc8": .5} for the paper's.

    In 2012 training left the kept units as they were and testing multiplied all by that share k. Here, as in torch,
    training divides by it. That is the same network if the next layer's weights are k of theirs; its gradient is then
    1/k of theirs, and the same update of such weights has k² of the rate, with 1/k² of the decay. Biases do not change.
    """
    found: dict[str, float] = {}
    kept = 1.0
    for name, module in model.named_children():
        if isinstance(module, nn.Dropout):
            kept = 1 - module.p
        elif isinstance(module, nn.Linear):
            if kept < 1:
                found[name] = kept
            kept = 1.0
    return found


@torch.no_grad()
def scale_for_2012_dropout(model: nn.Module) -> None:
    """Multiply the weights of `kept_inputs` by their share, so that they start as the 2012 code's do."""
    for name, share in dropout_keep_prob_by_layer(model).items():
        model.get_parameter(f"{name}.weight").mul_(share)


@dataclass(frozen=True)
class Hyperparameters:
    """What holds at one step."""

    lr: float
    """Learning rate of the weights of all layers without one of their own: the `lr` of `metrics.jsonl`."""
    bias_lr: float
    """The same of the biases."""
    own: Mapping[tuple[str, str], float]
    """The rates of layers that have their own, by layer and kind ("weights" or "biases")."""
    pca_noise: float
    """Strength of the colour noise."""

    def rate(self, layer: str, kind: str) -> float:
        """The learning rate of the parameters of this `kind` in `layer`."""
        return self.own.get((layer, kind), self.lr if kind == "weights" else self.bias_lr)

    def set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Give every group of a `make_optimizer` its rate."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(group["layer"], group["kind"]) * group["scale"]


def schedule_at(
    recipe: Recipe, step: int, steps_per_epoch: int, history: Sequence[Mapping[str, Any]] = ()
) -> Hyperparameters:
    """The plan of optimizer step `step` (counted from 0). `history` holds the metrics of the finished epochs.

    A change's rate stands as it is written, also during a warm-up; `scale_lr` scales all rates alike.
    """
    figures = [row["val_loss"] if recipe.plateau_on == "loss" else 1 - row["top1"] for row in history]
    lr = learning_rate(recipe, step, steps_per_epoch, figures)
    common = {"weights": lr, "biases": lr * recipe.bias_lr_mult}
    own: dict[tuple[str, str], float] = {}
    noise = recipe.pca_noise
    for change in recipe.lr_changes:
        if change.epoch > step // steps_per_epoch + 1:
            break
        for kind, rate in change.rates.items():
            if change.layers:
                own.update({(layer, kind): rate for layer in change.layers})
            else:
                common[kind] = rate
                own = {key: kept for key, kept in own.items() if key[1] != kind}
        noise = noise if change.pca_noise is None else change.pca_noise
    factor = recipe.lr_factor
    return Hyperparameters(
        common["weights"] * factor, common["biases"] * factor, {k: rate * factor for k, rate in own.items()}, noise
    )


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, figures: Sequence[float] = ()) -> float:
    """What the recipe's schedule gives for optimizer step `step` (counted from 0), before its changes.

    `figures` are the losses or errors of the finished epochs; only `plateau` looks at them. `limit_steps` does not
    squeeze the schedule: a limited run is the beginning of the whole one.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = recipe.warmup * steps_per_epoch
    if step < warmup:
        return recipe.lr * (step + 1) / warmup if warmup >= 1 else recipe.lr
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "step":
        return recipe.lr * recipe.lr_gamma ** (step // steps_per_epoch // recipe.lr_step_size)
    if recipe.schedule == "plateau":
        return recipe.lr * recipe.lr_gamma ** plateau_drops(figures, recipe.patience)
    if recipe.schedule == "cosine":
        share = (step - warmup) / max(total - warmup, 1)
        return recipe.lr * (
            recipe.final_lr_ratio + (1 - recipe.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(share, 1)))
        )
    # one-cycle: up in a line to the peak, down in a line to the end
    top = max(recipe.pct_start * total, 1)
    if step < top:
        return recipe.lr * (step + 1) / (top + 1)
    share = min((step - top) / max(total - top, 1), 1)
    return recipe.lr * (1 - (1 - recipe.final_lr_ratio) * share)


def plateau_drops(figures: Sequence[float], patience: int) -> int:
    """How often a figure, the lower the better, has stood still for more than `patience` epochs; each counts anew."""
    best, waited, drops = math.inf, 0, 0
    for figure in figures:
        if figure < best:
            best, waited = figure, 0
        else:
            waited += 1
        if waited > patience:
            drops, waited = drops + 1, 0
    return drops
