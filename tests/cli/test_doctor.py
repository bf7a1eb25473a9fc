import json

import torch

from alexnet.cli.doctor import examine, try_convolution


def test_the_processor_computes():
    found = examine()
    assert found.healthy
    fp32 = next(t for t in found.trials if (t.device, t.precision) == ("cpu", "fp32"))
    assert fp32.ok
    assert fp32.milliseconds is not None
    document = json.loads(json.dumps(found.to_dict()))
    assert {"healthy", "environment", "trials", "advice"} <= set(document)
    assert "works  cpu   fp32" in str(found)


def test_a_device_that_computes_nonsense_is_caught(monkeypatch):
    right = torch.nn.functional.conv2d

    def wrong(x, *args, **kwargs):
        return right(x, *args, **kwargs) * (1.0 if x.dtype == torch.float64 else 1.5)

    monkeypatch.setattr(torch.nn.functional, "conv2d", wrong)
    assert not try_convolution(torch.device("cpu"), "fp32").ok


def test_a_device_that_is_not_there_is_reported():
    if not torch.cuda.is_available():
        trial = try_convolution(torch.device("cuda"), "fp32")
        assert not trial.ok
        assert trial.detail


def test_a_missing_kernel_is_reported(monkeypatch):
    monkeypatch.setenv("ALEXNET_COMPILER", "none")
    assert any("several times slower than it could be" in line for line in examine().advice)
