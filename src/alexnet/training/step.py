"""One optimizer step: a batch of uint8 pictures in, a better network out.

What happens follows from the recipe, the epoch and the step's number alone: the augmentation, dropout, MixUp and the
learning rate. Nothing here waits for the device: losses stay there until somebody looks at them.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from alexnet import rng
from alexnet.data.augment import augment, mix, pca_noise
from alexnet.data.loader import Batch
from alexnet.device import tune_malloc, use_deterministic_algorithms
from alexnet.models.layers import counter_based_dropout
from alexnet.models.model import Network
from alexnet.training.optim import Hyperparameters, make_optimizer
from alexnet.training.setup import TrainSetup
from alexnet.training.transfer import freeze


class TrainStep:
    """The network of a run, or the part of it that this process trains, with its optimizer."""

    def __init__(self, setup: TrainSetup, model: Network) -> None:
        tune_malloc()
        if setup.recipe.deterministic:
            use_deterministic_algorithms()
        self.prepared, self.recipe, self.parallel = setup, setup.recipe, setup.parallel
        self.device, self.precision = setup.device, setup.precision
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        self.layout: torch.memory_format = layout
        self.model = self.parallel.shard_model(model).to(self.device).to(memory_format=layout)
        self.frozen_modules = freeze(self.model, self.recipe.freeze)
        connected = self.parallel.wrap(self.model)
        self.network = torch.compile(connected) if self.recipe.compile else connected  # what the forward pass calls
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.scaler = self.parallel.scaler(self.device, enabled=self.precision.name == "fp16")
        self.class_weights = setup.class_weights.to(self.device) if setup.class_weights is not None else None

    def train(self) -> None:
        """Put the network into training mode, but for what is frozen."""
        self.model.train()
        for module in self.frozen_modules:
            module.eval()

    def __call__(self, batch: Batch, epoch: int, number: int, plan: Hyperparameters) -> tuple[Tensor, Tensor]:
        """Step `number` of the run, in `accumulate` parts; the mean loss and the number right, on the device: of
        several processes, what this one's part of the batch adds to them.

        Each part counts by its share of the images, so that the step is that of the whole batch, also where the
        last batch of an epoch does not divide evenly.
        """
        recipe, place, seed_of = self.recipe, batch.row_range, partial(rng.derive_seed, self.recipe.seed)
        torch.manual_seed(seed_of("step", number))  # MixUp and dropout not ours draw from here
        plan.set_rates(self.optimizer)
        x, y = self._inputs(batch, epoch, plan)
        if self.parallel.shard.rank:
            torch.manual_seed(seed_of("step", number, self.parallel.shard.rank))  # other images, another dropout
        total = torch.zeros((), device=self.device)
        hits = torch.zeros((), device=self.device)
        rows = slice(place.start, place.start)
        parts = list(zip(x.chunk(recipe.accumulate), y.chunk(recipe.accumulate), strict=True))
        for number_of_part, (part_x, part_y) in enumerate(parts, 1):
            counted = len(part_x) if place.size else 0
            rows = slice(rows.stop, rows.stop + counted)
            drawn = rows if counted else slice(0, 1)
            with self.parallel.no_sync(number_of_part == len(parts)):
                dropout = counter_based_dropout(self.model, place.total, drawn, partial(seed_of, "dropout", number))
                with dropout, self.precision.autocast(self.device):
                    logits = self.network(part_x.contiguous(memory_format=self.layout))
                loss = self._loss(logits.float(), part_y) * (counted / place.total)
                self.scaler.scale(loss * self.parallel.loss_scale).backward()
            total += loss.detach()
            answers = part_y if part_y.ndim == 1 else part_y.argmax(dim=1)  # of a mixture, its larger share
            hits += (logits.argmax(dim=1) == answers).sum() * (counted > 0)
        self.scaler.unscale_(self.optimizer)
        if recipe.clip_norm is not None:
            self.parallel.clip(self.model, recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total, hits

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the pictures; with class weights divided by their number, and not by the weights that they
        happen to have, so that parts of a batch add up."""
        smoothing = self.recipe.label_smoothing
        if self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        total = F.cross_entropy(logits, targets, self.class_weights, label_smoothing=smoothing, reduction="sum")
        return total / len(logits)

    def denormalized_inputs(self, batch: Batch, epoch: int, plan: Hyperparameters) -> Tensor:
        """What the network reads of a batch, as pictures again: uint8 N×C×size×size, on the CPU."""
        torch.manual_seed(rng.derive_seed(self.recipe.seed, "step", 0))
        x, _ = self._inputs(batch, epoch, plan)
        scale, shift = (c.to(x.device) for c in self.prepared.preprocess.constants(x.shape[-1]))
        return ((x - shift) / scale).round_().clamp_(0, 255).to(torch.uint8).cpu()

    def _inputs(self, batch: Batch, epoch: int, plan: Hyperparameters) -> tuple[Tensor, Tensor]:
        """What the network reads, and its targets, on the device: moved as bytes, then augmented and normalised."""
        recipe, preprocess = self.recipe, self.prepared.preprocess
        waiting = self.device.type != "cuda"
        images = batch.images.to(self.device, non_blocking=not waiting)
        if (changes := self.prepared.train.device_augment) is not None:
            images = augment(images, batch.ids, epoch, recipe.seed, changes, preprocess.size, batch.crop_ids)
        targets = batch.targets.to(self.device, non_blocking=not waiting)
        x = preprocess.normalize(images)
        if (basis := self.prepared.pca_basis) is not None:
            std, divide = preprocess.std, recipe.pca_divide
            x = pca_noise(x, batch.ids, epoch, recipe.seed, basis, plan.pca_noise, std=std, divide=divide)
        x, y = mix(x, targets, len(self.prepared.classes), self.prepared.augment)
        extra = len(x) - batch.row_range.size if batch.row_range.size else 0  # was there to be mixed with the next
        return x[extra:], y[extra:]
