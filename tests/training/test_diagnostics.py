"""Each alarm rings for the figures that it is for, and for healthy ones none does."""

import math

import pytest

from alexnet.training.diagnostics import find_alarms
from alexnet.training.recipe import Recipe

RECIPE = Recipe(lr=0.1, norm="batch")


def rows(train, val, **last):
    found = [
        {"epoch": i + 1, "step": 100 * (i + 1), "train_loss": t, "val_loss": v, "waiting": 0.0, "dead": {}}
        for i, (t, v) in enumerate(zip(train, val, strict=True))
    ]
    found[-1].update(last)
    return found


HEALTHY = ([2.0, 1.5, 1.2, 1.0, 0.9], [1.9, 1.5, 1.3, 1.2, 1.19])


def kinds(rows, recipe=RECIPE):
    return [kind for kind, _ in find_alarms(rows, recipe, 10)]


def test_a_healthy_run_is_left_alone():
    assert kinds(rows(*HEALTHY)) == []


@pytest.mark.parametrize(
    ("kind", "figures", "said"),
    [
        ("stuck", rows([math.log(10)], [math.log(10)]), "nothing is being learned"),
        ("rate", rows([1.0, 1.3], [1.0, 1.3]), "too high; try --lr 0.033"),
        (
            "overfitting",
            rows([2, 1.5, 1, 0.8, 0.6, 0.5, 0.4], [2, 1.5, 1.6, 1.7, 1.8, 1.7, 1.9]),
            "Since epoch 2 the validation loss",
        ),
        ("dead", rows(*HEALTHY, dead={"relu1": 0.1, "relu6": 0.75}), "75% of the channels of relu6"),
        ("waiting", rows(*HEALTHY, waiting=0.5), "waits for pictures 50% of the time"),
    ],
)
def test_each_alarm(kind, figures, said):
    assert kinds(figures) == [kind]
    assert said in find_alarms(figures, RECIPE, 10)[0][1]


def test_a_few_worse_epochs_are_no_overfitting():
    assert kinds(rows([2, 1.5, 1.2, 1.0], [2, 1.5, 1.6, 1.4])) == []
    assert kinds(rows([2, 1.5, 1.4, 1.3, 1.2], [2, 1.5, 1.6, 1.7, 1.8])) == []


def test_a_slow_first_epoch_is_not_stuck_where_validation_is_better():
    assert kinds(rows([math.log(10)], [2.0])) == []


def test_stuck_advice_fits_the_network():
    figures = rows([math.log(10)], [math.log(10)])
    assert "--norm batch" in find_alarms(figures, Recipe(lr=0.1), 10)[0][1]
    assert "--norm batch" not in find_alarms(figures, RECIPE, 10)[0][1]
