import json
from types import SimpleNamespace

import torch

from alexnet.cli import run
from alexnet.cli.doctor import _advice, examine, missing_extras, try_convolution


def test_the_processor_computes(capsys):
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"]
    assert {"environment", "trials", "advice", "missing_extras", "chinese_font", "free_disk"} <= set(found)
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


def test_missing_extras_fonts_and_space_are_named(monkeypatch):
    requires = ["torch>=2", "fastapi>=0.110; extra == 'serve'", 'no-such-package>=1; extra == "show"',
                'ruff-of-nobody; extra == "dev"', "none-such; sys_platform == 'win32' and extra == 'show'"]  # fmt: skip
    monkeypatch.setattr("importlib.metadata.requires", lambda _: requires)
    monkeypatch.setattr("alexnet.plots.style.has_chinese_font", lambda: False)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 29))
    assert missing_extras()["show"] == ["no-such-package"]
    advice = " ".join(_advice([]))
    assert "show (no-such-package)" in advice
    assert "fonts-noto-cjk" in advice
    assert "Only 0.5 GiB are free in" in advice
