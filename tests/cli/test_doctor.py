import json

import torch

from alexnet.cli import run
from alexnet.cli.doctor import examine, try_convolution


def test_the_processor_computes(capsys):
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"]
    assert {"environment", "trials", "advice"} <= set(found)
    fp32 = next(t for t in found["trials"] if (t["device"], t["precision"]) == ("cpu", "fp32"))
    assert fp32["ok"]
    assert fp32["milliseconds"] is not None
    assert run(["doctor"]) == 0
    assert "works  cpu   fp32" in capsys.readouterr().out


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
    assert any("several times slower than it could be" in line for line in examine()["advice"])
