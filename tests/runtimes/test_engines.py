"""Traced networks return the same numbers, bit for bit, or tracing returns the network itself."""

import threading

import pytest
import torch
from torch import nn

import alexnet
from alexnet.inference.predict import load
from alexnet.runtimes.engines import trace_model
from helpers import make_image


@pytest.mark.parametrize("name", ["cifar", "lenet", "d2l"])
def test_traced_network_is_bit_exact_and_shares_weights(name):
    model = alexnet.create_model(name, num_classes=4, **({} if name == "lenet" else {"width": 0.25}))
    model = model.eval().to(memory_format=torch.channels_last)
    shape = (model.spec.in_channels, model.spec.image_size, model.spec.image_size)
    traced = trace_model(model, shape)
    assert isinstance(traced, torch.jit.ScriptModule)
    images = torch.randn(5, *shape).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(traced(images), model(images))
        list(model.parameters())[-2].zero_()
        assert torch.equal(traced(images), model(images))


def test_network_that_tracing_would_change_is_returned_itself():
    class DependsOnBatchSize(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) if len(x) == 2 else -x.flatten(1)

    class Untraceable(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.jit.is_tracing():
                raise RuntimeError("cannot be traced")
            return x.flatten(1)

    with_lrn = alexnet.create_model("cifar-towers", width=0.125).eval()  # its LRN is traced as a formula
    for network in (DependsOnBatchSize(), Untraceable(), with_lrn):
        assert trace_model(network, (3, 32, 32)) is network


def test_traced_classifier_predicts_the_same_in_several_threads(checkpoint, tmp_path):
    images = [tmp_path / f"{i}.png" for i in range(9)]
    for i, path in enumerate(images):
        make_image(path, i % 3, i)
    plain, traced = load(checkpoint), load(checkpoint)
    traced.trace()
    assert traced.thread_safe
    assert not plain.thread_safe
    expected = [(p.labels, p.confidence) for p in plain.predict_many(images)]
    results: list[list] = []

    def predict():
        results.append([(p.labels, p.confidence) for p in traced.predict_many(images)])

    threads = [threading.Thread(target=predict) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 4
    for result in results:
        for (labels, confidence), (expected_labels, expected_confidence) in zip(result, expected, strict=True):
            assert [label for label, _ in labels] == [label for label, _ in expected_labels]
            assert [p for _, p in labels] == pytest.approx([p for _, p in expected_labels], abs=1e-6)
            assert confidence == expected_confidence or confidence == pytest.approx(expected_confidence, abs=1e-6)
    assert len(results) == 4


def test_other_engines_are_not_traced(checkpoint):
    pytest.importorskip("onnxruntime")
    classifier = load(checkpoint, engine="onnxruntime")
    classifier.trace()
    assert not classifier.thread_safe
