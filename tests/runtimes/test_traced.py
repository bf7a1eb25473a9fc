"""Networks as one call: the same numbers to the bit, or the network itself."""

import threading

import pytest
import torch
from torch import nn

import alexnet
from alexnet.inference.predict import load
from alexnet.runtimes.engines import trace_model
from helpers import make_image


@pytest.mark.parametrize("name", ["cifar", "lenet", "d2l"])
def test_the_numbers_are_the_network_s_own(name):
    model = alexnet.create_model(name, num_classes=4).eval().to(memory_format=torch.channels_last)
    shape = (model.spec.in_channels, model.spec.image_size, model.spec.image_size)
    found = trace_model(model, shape)
    assert isinstance(found, torch.jit.ScriptModule)
    pictures = torch.randn(5, *shape).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(found(pictures), model(pictures))
        list(model.parameters())[-2].zero_()  # which both share
        assert torch.equal(found(pictures), model(pictures))


def test_a_network_that_tracing_would_change_stays_as_it_is():
    class Moody(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) if len(x) == 2 else -x.flatten(1)

    class Stubborn(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.jit.is_tracing():
                raise RuntimeError("not like this")
            return x.flatten(1)

    for network in (Moody(), Stubborn(), alexnet.create_model("cifar-towers").eval()):  # its LRN is traced as a formula
        assert trace_model(network, (3, 32, 32)) is network


def test_a_traced_classifier_says_the_same_also_to_many_at_once(checkpoint, tmp_path):
    pictures = [make_image(tmp_path / f"{i}.png", i % 3, i) for i in range(9)]
    plain, one_call = load(checkpoint), load(checkpoint)
    assert one_call.trace()
    expected = [(p.labels, p.confidence) for p in plain.predict_many(pictures)]
    found: list[list] = []

    def ask():
        found.append([(p.labels, p.confidence) for p in one_call.predict_many(pictures)])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for labelled in found:
        for (labels, confidence), (others, other) in zip(labelled, expected, strict=True):
            assert [label for label, _ in labels] == [label for label, _ in others]
            assert [p for _, p in labels] == pytest.approx([p for _, p in others], abs=1e-6)
            assert confidence == other or confidence == pytest.approx(other, abs=1e-6)
    assert len(found) == 4


def test_other_engines_are_left_alone(checkpoint):
    pytest.importorskip("onnxruntime")
    classifier = load(checkpoint, engine="onnxruntime")
    assert not classifier.trace()
