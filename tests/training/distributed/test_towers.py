"""Two towers in two real processes (Gloo, on the CPU) against the grouped network in one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

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
from alexnet.run_dir import Run
from alexnet.training.api import train
from alexnet.training.distributed import base, make_parallel, towers
from alexnet.training.progress import Silent
from alexnet.training.recipes import named_recipe
from alexnet.training.setup import prepare_training
from alexnet.training.signals import Interrupted
from alexnet.training.trainer import Trainer
from processes import Ranks, torchrun

# Ten steps an epoch, of 126 images but for the last; the rate falls tenfold after each epoch. Many images and modest
# gradients: where a unit's input is 0 or two pixels of a pool are equal to the last bit, rounding decides who gets a
# gradient, of one image.
RECIPE = {
    "arch": "cifar-towers", "width": 0.125, "norm": "auto", "init": "kaiming", "dropout": 0.5, "batch_size": 126,
    "epochs": 2, "lr": 0.05, "schedule": "step", "lr_step_size": 1, "momentum": 0.9, "nesterov": False,
    "crop": "pad", "padding": 3, "flip": True, "rotate": 0.0, "jitter": (0.4, 0.4, 0.0),
    "device": "cpu", "precision": "fp32",
}  # fmt: skip

# ── two processes ─────────────────────────────────────────────────────────────────────────────────────────────


Both = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Calls a function of this module in two processes that know of each other; the two answers."""
    os.environ["ALEXNET_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    with closing(Ranks(2)) as processes:
        yield partial(processes, 2)


def make_loop(parallel: base.SingleProcess, settings: dict[str, Any]) -> Trainer:
    prepared = prepare_training(replace(named_recipe("digits"), **{**RECIPE, **settings}), Silent(), parallel=parallel)
    torch.manual_seed(0)
    return Trainer(prepared, Run(Path()), build(prepared.spec), Silent())


def momenta(optimizer: dict[str, Any]) -> dict[str, Tensor]:
    return {str(number): state["momentum_buffer"] for number, state in optimizer["state"].items()}


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


def bytes_held(loop: Trainer) -> int:
    state = [t for s in loop.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in [*loop.model.parameters(), *state])


# ── the same training ─────────────────────────────────────────────────────────────────────────────────────────


def deaf(x: Tensor) -> tuple[Tensor, Tensor]:
    """An exchange in which convolutions do not hear the other tower."""
    if x.ndim == 2:
        return REAL_EXCHANGE(x)
    return (x, torch.zeros_like(x)) if dist.get_rank() == 0 else (torch.zeros_like(x), x)


REAL_EXCHANGE = towers.exchange


def train_side_by_side(settings: dict[str, Any], steps: int, talk: bool = True) -> dict[str, Any]:
    """Trains two towers, and in the first process the whole network too; how far apart they are after each step."""
    towers.exchange = REAL_EXCHANGE if talk else deaf
    with closing(make_parallel("towers", "cpu")) as parallel:
        two = make_loop(parallel, settings)
        one = make_loop(base.SingleProcess(), settings)
        start = {name: t.clone() for name, t in one.model.state_dict().items()}
        found: dict[str, Any] = {"weights": [], "momenta": [], "rates": [], "losses": []}
        length = len(two.setup.train)
        for step in range(steps):
            batch = next(two.setup.train.batches(step // length, start=step % length))
            for loop in (one, two):
                loss, _ = loop._train_batch(batch, step // length)
                loop.state.step += 1
            found["losses"].append(float(loss))
            weights = parallel.gather_model(two.model).state_dict()
            optimizer = parallel.gather_optimizer(two.optimizer, two.model)
            if parallel.tower == 0:
                found["weights"].append(apart(weights, one.model.state_dict()))
                found["momenta"].append(apart(momenta(optimizer), momenta(one.optimizer.state_dict())))
                found["rates"].append(two.optimizer.param_groups[0]["lr"])
        if parallel.tower == 0:
            assert optimizer["param_groups"] == one.optimizer.state_dict()["param_groups"]
            found["moved"] = apart(start, weights)
            found["largest"] = max(float(t.abs().max()) for t in momenta(optimizer).values())
        return {**found, "share": bytes_held(two) / bytes_held(one)}


def assert_same_training(found: dict[str, Any], steps: int) -> None:
    assert len(found["weights"]) == len(found["momenta"]) == steps
    assert max(found["weights"]) < 1e-5
    assert max(found["momenta"]) < 1e-5


def test_weights_and_momentum_equal_those_of_one_process_after_every_step(both: Both) -> None:
    """With dropout, augmentation, LRN and a rate change at step 10; and each process holds half."""
    found, other = both(train_side_by_side, {}, 20)
    assert_same_training(found, 20)
    assert found["rates"] == pytest.approx([0.05] * 10 + [0.005] * 10)
    assert found["moved"] > 0.005  # there is something to compare
    assert found["largest"] > 0.005
    assert found["losses"] == other["losses"]  # to the last bit: both stop alike when it becomes NaN
    assert found["share"] <= 0.55
    assert other["share"] <= 0.55


def test_without_the_exchange_at_conv3_it_is_another_network(both: Both) -> None:
    found, _ = both(train_side_by_side, {}, 4, False)
    with pytest.raises(AssertionError):
        assert_same_training(found, 4)
    assert max(found["momenta"]) > 1e-4


@pytest.mark.parametrize("settings", [
    {"norm": "batch", "clip_norm": 0.05, "accumulate": 3, "nesterov": True, "decay_biases": False},
    {"optimizer": "sgd2012", "bias_lr_mult": 2.0, "mixup": 0.2},
], ids=["batch", "2012"])  # fmt: skip
def test_other_settings(both: Both, settings: dict[str, Any]) -> None:
    """Batch norm, a norm over both towers, parts of a batch; the optimizer of 2012, mixtures."""
    found, _ = both(train_side_by_side, settings, 4)
    assert_same_training(found, 4)
    assert found["moved"] > 0.001


@pytest.mark.parametrize("name", ["paper", "code2012", "cifar-towers"])
def test_each_tower_owns_half(name: str) -> None:
    """Parameters, and so momentum, which has their shapes; the 2012 networks in full size, without their memory."""
    spec = architecture(name)
    with torch.device("meta"):
        whole = sum(p.numel() for p in build(replace(spec, init="torch")).parameters())
    parts = [sum(p.numel() for p in towers._empty_tower(spec, tower).parameters()) for tower in (0, 1)]
    assert sum(parts) == whole
    assert max(parts) <= 0.55 * whole


def compare_logits(name: str, image_size: int, num_classes: int, norm: str | None) -> float:
    with closing(make_parallel("towers", "cpu")) as parallel:
        torch.manual_seed(0)
        # Tall enough weights that the towers hear each other in the logits.
        whole = create_model(
            name, image_size=image_size, num_classes=num_classes, width=0.125, init="kaiming", norm=norm
        ).eval()
        parallel.check(whole.spec)
        half = parallel.shard_model(whole)
        x = torch.randn(3, 3, image_size, image_size)
        with torch.no_grad():
            a, b = whole(x), half(x)
            assert a.std() > 1e-6
            return float((a - b).abs().max() / a.std())


@pytest.mark.parametrize(("name", "norm"), [("paper", None), ("code2012", None), ("caffe", "batch")])
def test_logits_of_the_2012_networks(both: Both, name: str, norm: str | None) -> None:
    """Padding, the order of code2012, its spatial norm; seven classes, which two towers cannot share evenly."""
    for difference in both(compare_logits, name, 99, 7, norm):
        assert difference < 1e-4


# ── gradients, by differences ─────────────────────────────────────────────────────────────────────────────────


def check_gradients() -> list[bool]:
    """`gradcheck` of what two processes compute together, as a function of inputs that both know."""
    with closing(make_parallel("towers", "cpu")) as parallel:
        tower = parallel.tower

        def summed(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            dist.all_reduce(gradient)
            return gradient

        def together(layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def compute(x: Tensor) -> Tensor:
                x = x.clone()
                x.register_hook(summed)  # each process knows what its own half contributes
                y = layer(x.chunk(2, dim=1)[tower])
                y.register_hook(lambda gradient: gradient / 2)  # the half of the loss that each propagates
                return y

            return compute

        torch.manual_seed(0)
        maps = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
        units = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
        last = towers._LastOfBoth(3, 5, tower).double()
        joined = [lambda x: torch.cat(towers.exchange(x), 1).sin(), lambda x: torch.mul(*towers.exchange(x))]
        cases = [(joined[0], maps), (joined[1], maps), (joined[0], units), (last, units)]
        return [gradcheck(together(layer), (x,), check_undefined_grad=False) for layer, x in cases]


def test_gradients_through_the_exchange_are_right_to_the_numbers(both: Both) -> None:
    assert both(check_gradients) == [[True] * 4] * 2


# ── acting as one ─────────────────────────────────────────────────────────────────────────────────────────────


def agree() -> dict[str, Any]:
    with closing(make_parallel("towers", "cpu")) as parallel:
        tower = parallel.tower
        found: dict[str, Any] = {"first": parallel.on_rank0(lambda: f"made by {tower}")}
        found["signals"] = [
            parallel.all_reduce_max(None),
            parallel.all_reduce_max(signal.SIGINT if tower == 1 else None),
            parallel.all_reduce_max(signal.SIGTERM if tower == 0 else signal.SIGINT),
        ]
        try:
            parallel.on_rank0(lambda: Run.create("x", Path(__file__), "{}"))
        except UserError as error:
            found["error"] = str(error)
        # An infinite gradient in one process: both skip the step and lower the scale.
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
        scaler = parallel.scaler(torch.device("cpu"), enabled=True)
        for overflow in (True, False):
            scaler.scale((weight * (float("inf") if overflow and tower == 1 else 1.0)).sum()).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            found[overflow] = (weight.tolist(), scaler.get_scale())
        return found


def test_processes_act_as_one(both: Both) -> None:
    for found in both(agree):
        assert found["first"] == "made by 0"
        assert found["signals"] == [None, signal.SIGINT, signal.SIGTERM]
        assert "is a file" in found["error"]
        assert found[True] == ([1.0, 1.0], 2.0**15)
        assert found[False][0] == pytest.approx([0.9, 0.9])


class StopAt(Silent):
    """Sends SIGTERM to this process, once, when it has looked at the loss."""

    def step(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def stop_one(folder: Path) -> tuple[int, str]:
    """Only the second process is told to stop."""
    second = os.environ["RANK"] == "1"
    settings = {**RECIPE, "batch_size": 32, "parallel": "towers"}
    try:
        train("digits", out=folder, progress=StopAt() if second else Silent(), **settings)
    except Interrupted as stop:
        return stop.exit_code, str(stop)
    raise AssertionError("it went on")


def test_a_stop_of_one_process_stops_both_after_the_same_step(both: Both, tmp_path: Path) -> None:
    first, second = both(stop_one, tmp_path / "run")
    assert first == second
    assert first[0] == 143
    assert read_training_state(Run(tmp_path / "run").named_checkpoint("last"))["position"]["step"] == 21


def fill_disk(folder: Path) -> str:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    save, torch.save = torch.save, full
    try:
        train("digits", out=folder, progress=Silent(), limit_steps=1, parallel="towers", **RECIPE)
    except TrainingFailed as error:
        return str(error)
    finally:
        torch.save = save
    raise AssertionError("it went on")


def test_a_full_disk_ends_both_with_the_same_sentence(both: Both, tmp_path: Path) -> None:
    first, second = both(fill_disk, tmp_path / "run")
    assert first == second
    assert "No space left on device" in first


def refuse(folder: Path, settings: dict[str, Any]) -> str:
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
def test_networks_that_cannot_be_divided(both: Both, tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    first, second = both(refuse, tmp_path / "run", settings)
    assert first == second
    assert first == f"--parallel towers cannot divide {reason}; use paper, code2012 or cifar-towers."
    assert not (tmp_path / "run").exists()


# ── from two processes to one and back, as a user does it ─────────────────────────────────────────────────────


def test_a_checkpoint_goes_on_in_another_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = {k: v for k, v in RECIPE.items() if k not in ("batch_size", "jitter")}
    start = replace(named_recipe("digits"), **recipe, batch_size=420)  # three steps an epoch
    Path("recipe.json").write_text(start.to_json())
    halved = torchrun(2, "train", "recipe.json", "--parallel", "towers", "--limit-steps", "3", "--out", "two", "--json")
    assert halved.returncode == 0, halved.stderr
    assert json.loads(halved.stdout)["steps"] == 3  # one document: the second process prints nothing
    assert halved.stderr.count("epoch 1/2") == 1
    assert alexnet(["train", "recipe.json", "--out", "whole"]) == 0
    assert alexnet(["train", "recipe.json", "--limit-steps", "3", "--out", "one"]) == 0

    assert alexnet(["resume", "two", "--epochs", "2"]) == 0  # two, then one
    joined = torchrun(2, "resume", "one", "--epochs", "2", "--parallel", "towers", "--json")  # one, then two
    assert joined.returncode == 0, joined.stderr
    assert json.loads(joined.stdout)["parameters"] == json.loads(Path("whole/summary.json").read_text())["parameters"]

    def state(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        folder = Run(Path(name)).named_checkpoint("last")
        return load_checkpoint(folder).model.state_dict(), read_training_state(folder)["optimizer"]

    weights, optimizer = state("whole")
    for name in ("two", "one"):
        other_weights, other = state(name)
        assert apart(other_weights, weights) < 1e-5
        assert apart(momenta(other), momenta(optimizer)) < 1e-5
        assert other["param_groups"] == optimizer["param_groups"]
        files = {str(p.relative_to(name)) for p in Path(name).rglob("*")}
        assert files == {str(p.relative_to("whole")) for p in Path("whole").rglob("*")}
