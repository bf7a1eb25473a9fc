"""Settings from user input: NAME=VALUE, durations, checkpoint intervals."""

import pytest

from alexnet.cli import run
from alexnet.errors import UserError
from alexnet.training.recipe import parse_duration, parse_interval, parse_settings


def test_values_are_json_or_strings():
    given = ["padding_mode=reflect", "clip-norm=1", "mean=[0.5, 0.5, 0.5]", "nesterov=true"]
    assert parse_settings(given) == {
        "padding_mode": "reflect", "clip_norm": 1, "mean": [0.5, 0.5, 0.5], "nesterov": True,
    }  # fmt: skip


def test_missing_values_and_unknown_settings_are_refused(capsys, tmp_path):
    with pytest.raises(UserError, match="write NAME=VALUE"):
        parse_settings(["padding"])
    assert run(["train", "digits", "--set", "paddin=3", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean 'padding'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_durations_are_parsed_to_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["10", "ten m", "-3m", "m", "", "1d", "nanm"])
def test_invalid_durations_are_refused(text):
    with pytest.raises(UserError, match="must be a time such as"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "interval"),
    [("500", (500, None)), ("1", (1, None)), ("5m", (None, 300)), (None, (None, None))],
)
def test_intervals_are_parsed_to_steps_or_seconds(text, interval):
    assert parse_interval(text) == interval


@pytest.mark.parametrize("text", ["0", "-5", "5.5", "five", "", "0m", "٣"])
def test_invalid_intervals_are_refused(text):
    with pytest.raises(
        UserError,
        match="--checkpoint-every must be a number of steps such as 500, or a time such as",
    ):
        parse_interval(text)
