"""Two towers in two real processes (Gloo, on the CPU), compared with the grouped network in one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import gradcheck

from alexnet.checkpoint import load_checkpoint, read_training_state
from alexnet.cli import run as alexnet
from alexnet.errors import TrainingFailed, UserError
from alexnet.models.architectures import architecture
from alexnet.models.model import build, create_model
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.training.api import train
from alexnet.training.distributed import base, connect, towers
from alexnet.training.recipes import named_recipe
from alexnet.training.setup import prepare_training
from alexnet.training.trainer import Interrupted, Trainer
from ranks import Ranks, torchrun

# Ten steps an epoch, all but the last of 126 images; the rate falls tenfold after each epoch. Many
# images and moderate gradients: if a unit's input is 0, or two pixels of a pool are equal to the
# last bit, rounding decides which one gets the gradient of an image.
RECIPE = {
    "arch": "cifar-towers", "width": 0.125, "norm": "auto", "init": "kaiming", "dropout": 0.5, "batch_size": 126,
    "epochs": 2, "lr": 0.05, "schedule": "step", "lr_step_size": 1, "momentum": 0.9, "nesterov": False,
    "crop": "pad", "padding": 3, "flip": True, "rotate": 0.0, "jitter": (0.4, 0.4, 0.0),
    "device": "cpu", "precision": "fp32",
}  # fmt: skip

Both = Callable[..., list[Any]]


@pytest.fixture
def both(processes: Ranks) -> Both:
    """Call a function of this module in two processes; return both results."""
    return partial(processes, 2)


def make_trainer(parallel: base.SingleProcess, settings: dict[str, Any]) -> Trainer:
    setup = prepare_training(named_recipe("digits").replace(**{**RECIPE, **settings}), Silent(), parallel=parallel)
    torch.manual_seed(0)
    return Trainer(setup, Run(Path()), build(setup.spec), Silent())


def momenta(optimizer: dict[str, Any]) -> dict[str, Tensor]:
    return {str(number): state["momentum_buffer"] for number, state in optimizer["state"].items()}


def max_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


def count_bytes(trainer: Trainer) -> int:
    state = [t for s in trainer.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in [*trainer.model.parameters(), *state])


# ── equal to one process ──────────────────────────────────────────────────────────────────────────


def exchange_units_only(x: Tensor) -> tuple[Tensor, Tensor]:
    """An exchange that gives convolutions zeros instead of the other tower."""
    if x.ndim == 2:
        return REAL_EXCHANGE(x)
    return (x, torch.zeros_like(x)) if dist.get_rank() == 0 else (torch.zeros_like(x), x)


REAL_EXCHANGE = towers.exchange


def train_side_by_side(settings: dict[str, Any], steps: int, exchange_maps: bool = True) -> dict[str, Any]:
    """Train two towers, and in each process the full network too; return their differences after each step."""
    exchange = REAL_EXCHANGE if exchange_maps else exchange_units_only
    with patch.object(towers, "exchange", exchange), connect("towers", "cpu") as parallel:
        two = make_trainer(parallel, settings)
        one = make_trainer(base.SingleProcess(), settings)
        start = {name: t.clone() for name, t in one.model.state_dict().items()}
        found: dict[str, Any] = {"weights": [], "momenta": [], "rates": [], "losses": []}
        length = len(two.setup.train)
        for step in range(steps):
            batch = next(two.setup.train.batches(step // length, start=step % length))
            for trainer in (one, two):
                loss, _ = trainer.train_step(batch, step // length, step, trainer.hyperparameters(step))
            found["losses"].append(float(loss))
            gathered = parallel.state_dict(two.model, two.optimizer)
            weights, optimizer = gathered["model"], gathered["optimizer"]
            if parallel.rank == 0:
                found["weights"].append(max_difference(weights, one.model.state_dict()))
                found["momenta"].append(max_difference(momenta(optimizer), momenta(one.optimizer.state_dict())))
                found["rates"].append(two.optimizer.param_groups[0]["lr"])
        if parallel.rank == 0:
            assert optimizer["param_groups"] == one.optimizer.state_dict()["param_groups"]
            found["moved"] = max_difference(start, weights)
            found["largest"] = max(float(t.abs().max()) for t in momenta(optimizer).values())
        return {**found, "fraction": count_bytes(two) / count_bytes(one)}


def assert_same_training(found: dict[str, Any], steps: int) -> None:
    assert len(found["weights"]) == len(found["momenta"]) == steps
    assert max(found["weights"]) < 1e-5
    assert max(found["momenta"]) < 1e-5


@pytest.mark.parametrize("steps", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_weights_and_momentum_equal_those_of_one_process_after_every_step(both: Both, steps: int) -> None:
    """With dropout, augmentation, LRN and a rate change at step 10; each process holds half of them."""
    found, other = both(train_side_by_side, {}, steps)
    assert_same_training(found, steps)
    assert found["rates"] == pytest.approx([*[0.05] * 10, *[0.005] * 10][:steps])
    assert found["moved"] > 0.005  # they were trained
    assert found["largest"] > 0.005
    assert found["losses"] == other["losses"]  # to the last bit: both stop when it becomes NaN
    assert found["fraction"] <= 0.55
    assert other["fraction"] <= 0.55


def test_without_the_exchange_at_conv3_it_is_another_network(both: Both) -> None:
    found, _ = both(train_side_by_side, {}, 4, False)
    with pytest.raises(AssertionError):
        assert_same_training(found, 4)
    assert max(found["momenta"]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"norm": "batch", "clip_norm": 0.05, "accumulate": 3, "nesterov": True, "decay_biases": False},
    {"optimizer": "sgd2012", "bias_lr_mult": 2.0, "mixup": 0.2},
    {"optimizer": "muon", "nesterov": True},
], ids=["batch", "2012", "muon"])  # fmt: skip
def test_other_settings_equal_one_process(both: Both, settings: dict[str, Any]) -> None:
    """Batch norm, clipping over both towers and accumulation; the optimizer of 2012 and MixUp; Muon."""
    found, _ = both(train_side_by_side, settings, 4)
    assert_same_training(found, 4)
    assert found["moved"] > 0.001


@pytest.mark.parametrize("name", ["paper", "code2012", "cifar-towers"])
def test_each_tower_has_half_of_the_parameters(name: str) -> None:
    """And so of the momentum, which has their shapes; the 2012 networks in full size, on the meta device."""
    spec = architecture(name)
    with torch.device("meta"):
        total = sum(p.numel() for p in build(replace(spec, init="torch")).parameters())
    parts = [sum(p.numel() for p in towers._make_empty_tower(spec, tower).parameters()) for tower in (0, 1)]
    assert sum(parts) == total
    assert max(parts) <= 0.55 * total


def compare_logits(name: str, image_size: int, num_classes: int, norm: str | None) -> float:
    with connect("towers", "cpu") as parallel:
        torch.manual_seed(0)
        # Large enough weights for each tower to affect the logits of the other.
        full = create_model(
            name,
            image_size=image_size,
            num_classes=num_classes,
            width=0.125,
            init="kaiming",
            norm=norm,
        ).eval()
        parallel.check(full.spec)
        half = parallel.shard_model(full)
        x = torch.randn(3, 3, image_size, image_size)
        with torch.no_grad():
            a, b = full(x), half(x)
            assert a.std() > 1e-6
            return float((a - b).abs().max() / a.std())


@pytest.mark.parametrize(("name", "norm"), [("paper", None), ("code2012", None), ("caffe", "batch")])
def test_logits_of_the_2012_networks(both: Both, name: str, norm: str | None) -> None:
    """Padding, the layer order of code2012, its spatial norm; seven classes, which two towers cannot divide evenly."""
    for difference in both(compare_logits, name, 99, 7, norm):
        assert difference < 1e-4


# ── gradients, by finite differences ──────────────────────────────────────────────────────────────


def check_gradients() -> list[bool]:
    """Run `gradcheck` on what two processes compute together, as a function of inputs that both have."""
    with connect("towers", "cpu") as parallel:
        tower = parallel.rank

        def summed(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            dist.all_reduce(gradient)
            return gradient

        def together(layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def compute(x: Tensor) -> Tensor:
                x = x.clone()
                x.register_hook(summed)  # each process has the gradient of its own half
                y = layer(x.chunk(2, dim=1)[tower])
                y.register_hook(lambda gradient: gradient / 2)  # each process backpropagates half of the loss
                return y

            return compute

        torch.manual_seed(0)
        maps = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
        units = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
        last = towers._CrossTowerOutput(3, 5, tower).double()
        joined = [
            lambda x: torch.cat(towers.exchange(x), 1).sin(),
            lambda x: torch.mul(*towers.exchange(x)),
        ]
        cases = [(joined[0], maps), (joined[1], maps), (joined[0], units), (last, units)]
        return [gradcheck(together(layer), (x,), check_undefined_grad=False) for layer, x in cases]


def test_gradients_through_the_exchange_equal_finite_differences(both: Both) -> None:
    assert both(check_gradients) == [[True] * 4] * 2


# ── collectives ───────────────────────────────────────────────────────────────────────────────────


def run_collectives() -> dict[str, Any]:
    with connect("towers", "cpu") as parallel:
        tower = parallel.rank
        found: dict[str, Any] = {"rank0": parallel.broadcast_object(lambda: f"made by {tower}")}
        found["signals"] = [
            int(parallel.all_reduce(torch.tensor(values[tower]), "max"))
            for values in ((0, 0), (0, signal.SIGINT), (signal.SIGTERM, signal.SIGINT))
        ]
        try:
            parallel.broadcast_object(lambda: Run.create("x", Path(__file__), "{}"))
        except UserError as error:
            found["error"] = str(error)
        # An infinite gradient in one process: both skip the step and lower the scale.
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
        scaler = parallel.grad_scaler("cpu", enabled=True)
        for overflow in (True, False):
            scaler.scale((weight * (float("inf") if overflow and tower == 1 else 1.0)).sum()).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            found[overflow] = (weight.tolist(), scaler.get_scale())
        return found


def test_collectives_return_the_same_in_both_processes(both: Both) -> None:
    for found in both(run_collectives):
        assert found["rank0"] == "made by 0"
        assert found["signals"] == [0, signal.SIGINT, signal.SIGTERM]
        assert "is a file" in found["error"]
        assert found[True] == ([1.0, 1.0], 2.0**15)
        assert found[False][0] == pytest.approx([0.9, 0.9])


class StopAt(Silent):
    """Sends SIGTERM to this process when the loss is reported."""

    def step(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def train_and_stop(folder: Path) -> tuple[int, str]:
    """Train until a signal, which only the second process receives."""
    second = os.environ["RANK"] == "1"
    settings = {**RECIPE, "batch_size": 32, "parallel": "towers"}
    try:
        train("digits", out=folder, progress=StopAt() if second else Silent(), **settings)
    except Interrupted as stop:
        return stop.exit_code, str(stop)
    raise AssertionError("not interrupted")


def test_a_stop_of_one_process_stops_both_after_the_same_step(both: Both, tmp_path: Path) -> None:
    first, second = both(train_and_stop, tmp_path / "run")
    assert first == second
    assert first[0] == 143
    assert read_training_state(Run(tmp_path / "run").named_checkpoint("last"))["position"]["step"] == 21


def train_with_full_disk(folder: Path) -> str:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    save, torch.save = torch.save, full
    try:
        train("digits", out=folder, progress=Silent(), limit_steps=1, parallel="towers", **RECIPE)
    except TrainingFailed as error:
        return str(error)
    finally:
        torch.save = save
    raise AssertionError("no error was raised")


def test_a_full_disk_ends_both_with_the_same_message(both: Both, tmp_path: Path) -> None:
    first, second = both(train_with_full_disk, tmp_path / "run")
    assert first == second
    assert "No space left on device" in first


def train_and_fail(folder: Path, settings: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        train("digits", out=folder, progress=Silent(), parallel="towers", **settings)
    return str(error.value)


@pytest.mark.parametrize(("settings", "reason"), [
    ({"arch": "cifar"}, "'cifar', which is not made of two towers"),
    ({"arch": "auto"}, "'cifar', which is not made of two towers"),
    ({"arch": "torchvision"}, "'torchvision', which is not made of two towers"),
    ({"arch": "torchvision/resnet18"}, "'torchvision/resnet18', which is not made of two towers"),
    ({"arch": "caffe"}, "'caffe', whose LRN reads across its towers"),
], ids=str)  # fmt: skip
def test_indivisible_networks_are_refused(both: Both, tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    first, second = both(train_and_fail, tmp_path / "run", settings)
    assert first == second
    assert first == f"--parallel towers cannot divide {reason}; use paper, code2012 or cifar-towers."
    assert not (tmp_path / "run").exists()


# ── from two processes to one and back, with torchrun ─────────────────────────────────────────────


@pytest.mark.slow
def test_a_run_can_be_resumed_with_another_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = {k: v for k, v in RECIPE.items() if k not in ("batch_size", "jitter")}
    start = named_recipe("digits").replace(**recipe, batch_size=420)  # three steps an epoch
    Path("recipe.json").write_text(start.to_json())
    two = torchrun(
        2,
        "train",
        "recipe.json",
        "--parallel",
        "towers",
        "--limit-steps",
        "3",
        "--out",
        "two",
        "--json",
    )
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout)["steps"] == 3  # one document: rank 1 prints nothing
    assert two.stderr.count("epoch 1/2") == 1
    assert alexnet(["train", "recipe.json", "--out", "uninterrupted"]) == 0
    assert alexnet(["train", "recipe.json", "--limit-steps", "3", "--out", "one"]) == 0

    assert alexnet(["resume", "two", "--epochs", "2"]) == 0  # with two processes, then with one
    resumed = torchrun(2, "resume", "one", "--epochs", "2", "--parallel", "towers", "--json")  # with one, then with two
    assert resumed.returncode == 0, resumed.stderr
    expected = json.loads(Path("uninterrupted/summary.json").read_text())
    assert json.loads(resumed.stdout)["parameters"] == expected["parameters"]

    def state(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        folder = Run(Path(name)).named_checkpoint("last")
        return load_checkpoint(folder).model.state_dict(), read_training_state(folder)["optimizer"]

    weights, optimizer = state("uninterrupted")
    for name in ("two", "one"):
        other_weights, other = state(name)
        assert max_difference(other_weights, weights) < 1e-5
        assert max_difference(momenta(other), momenta(optimizer)) < 1e-5
        assert other["param_groups"] == optimizer["param_groups"]
        files = {str(p.relative_to(name)) for p in Path(name).rglob("*")}
        assert files == {str(p.relative_to("uninterrupted")) for p in Path("uninterrupted").rglob("*")}
