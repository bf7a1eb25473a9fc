"""One optimizer step: a batch of uint8 images in, updated weights out.

A step depends only on the recipe, the epoch and the step's number: augmentation, dropout, MixUp and
the learning rate. Nothing here waits for the device: losses stay there until the trainer reads
them.
"""

from __future__ import annotations

from contextlib import nullcontext
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
    """The network, or the part of it that this process trains, with its optimizer; call it to take a step."""

    def __init__(self, setup: TrainSetup, model: Network) -> None:
        tune_malloc()
        if setup.recipe.run.deterministic:
            use_deterministic_algorithms()
        self.setup, self.recipe, self.parallel = setup, setup.recipe, setup.parallel
        self.device, self.precision = setup.device, setup.precision
        memory_format = torch.channels_last if self.recipe.run.channels_last else torch.contiguous_format
        self.memory_format: torch.memory_format = memory_format
        self.model = self.parallel.shard_model(model).to(self.device).to(memory_format=memory_format)
        self.frozen_modules = freeze(self.model, self.recipe.model.freeze)
        wrapped = self.parallel.wrap(self.model)
        self.network = torch.compile(wrapped) if self.recipe.run.compile else wrapped  # runs the forward pass
        self.no_sync = getattr(wrapped, "no_sync", nullcontext)  # DistributedDataParallel's: exchange no gradients
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.scaler = self.parallel.grad_scaler(self.device.type, enabled=self.precision.name == "fp16")
        self.class_weights = setup.class_weights.to(self.device) if setup.class_weights is not None else None

    def train(self) -> None:
        """Put the network into training mode, except for frozen modules."""
        self.model.train()
        for module in self.frozen_modules:
            module.eval()

    def __call__(self, batch: Batch, epoch: int, number: int, values: Hyperparameters) -> tuple[Tensor, Tensor]:
        """Take step `number` of the run, accumulating gradients over `accumulate` micro-batches.

        Return the mean loss and the number of correct predictions, on the device; with several
        processes, this process's contribution to them. Each micro-batch is weighted by its number
        of images, so the step is that of the whole batch even if the batch does not divide evenly.
        """
        recipe, batch_rows, seed_of = self.recipe, batch.row_range, partial(rng.derive_seed, self.recipe.run.seed)
        torch.manual_seed(seed_of("step", number))  # for MixUp, and for dropout that is not counter-based
        values.set_rates(self.optimizer)
        x, y = self._inputs(batch, epoch, values)
        if self.parallel.shard.rank:
            torch.manual_seed(seed_of("step", number, self.parallel.shard.rank))  # other images, other dropout masks
        total_loss = torch.zeros((), device=self.device)
        hits = torch.zeros((), device=self.device)
        rows = slice(batch_rows.start, batch_rows.start)
        parts = recipe.optimization.accumulate
        micro_batches = list(zip(x.chunk(parts), y.chunk(parts), strict=True))
        for i, (micro_x, micro_y) in enumerate(micro_batches, 1):
            counted = len(micro_x) if batch_rows.size else 0  # an empty shard computes on an image that is not its own
            rows = slice(rows.stop, rows.stop + counted)
            mask_rows, mask_seed = rows if counted else slice(0, 1), partial(seed_of, "dropout", number)
            with nullcontext() if i == len(micro_batches) else self.no_sync():
                dropout = counter_based_dropout(self.model, batch_rows.total, mask_rows, mask_seed)
                with dropout, self.precision.autocast(self.device):
                    logits = self.network(micro_x.contiguous(memory_format=self.memory_format))
                loss = self._loss(logits.float(), micro_y) * (counted / batch_rows.total)
                self.scaler.scale(loss * self.parallel.loss_scale).backward()
            total_loss += loss.detach()
            labels = micro_y if micro_y.ndim == 1 else micro_y.argmax(dim=1)  # of mixed images, the larger fraction
            hits += (logits.argmax(dim=1) == labels).sum() * (counted > 0)
        self.scaler.unscale_(self.optimizer)
        if recipe.optimization.clip_norm is not None:
            self.parallel.clip_grad_norm(self.model, recipe.optimization.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total_loss, hits

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over images.

        With class weights the sum is divided by the number of images, not (as torch does) by their
        total weight, so that micro-batches add up.
        """
        smoothing = self.recipe.optimization.label_smoothing
        if self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        total = F.cross_entropy(logits, targets, self.class_weights, label_smoothing=smoothing, reduction="sum")
        return total / len(logits)

    def denormalized_inputs(self, batch: Batch, epoch: int, values: Hyperparameters) -> Tensor:
        """Return the network's inputs for a batch as images again: uint8 N×C×size×size, on the CPU."""
        torch.manual_seed(rng.derive_seed(self.recipe.run.seed, "step", 0))
        x, _ = self._inputs(batch, epoch, values)
        scale, shift = (c.to(x.device) for c in self.setup.preprocess.scale_and_shift(x.shape[-1]))
        return ((x - shift) / scale).round_().clamp_(0, 255).to(torch.uint8).cpu()

    def _inputs(self, batch: Batch, epoch: int, values: Hyperparameters) -> tuple[Tensor, Tensor]:
        """Return inputs and targets on the device: copied as uint8, then augmented, normalized and mixed."""
        recipe, preprocess = self.recipe, self.setup.preprocess
        non_blocking = self.device.type == "cuda"
        images = batch.images.to(self.device, non_blocking=non_blocking)
        if (device_augment := self.setup.train.device_augment) is not None:
            images = augment(images, batch.ids, epoch, recipe.run.seed, device_augment, preprocess.size, batch.crop_ids)
        targets = batch.targets.to(self.device, non_blocking=non_blocking)
        x = preprocess.normalize(images)
        if (basis := self.setup.pca_basis) is not None:
            std, divide = preprocess.std, recipe.augmentation.pca_divide
            x = pca_noise(x, batch.ids, epoch, recipe.run.seed, basis, values.pca_noise, std=std, divide=divide)
        x, y = mix(x, targets, len(self.setup.classes), self.setup.augment)
        extra = len(x) - batch.row_range.size if batch.row_range.size else 0  # only there to be mixed with the next
        return x[extra:], y[extra:]
