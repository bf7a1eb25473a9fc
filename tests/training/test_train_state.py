import io

import pytest
import torch

from alexnet.errors import UserError
from alexnet.training.checkpoints import TrainState

REST = {"optimizer": {"state": {}}, "scaler": {}}


def test_a_position_survives_the_restricted_loader():
    position = TrainState(
        step=7, epoch=2, batch=3, seen=96, loss_sum=1.5, hits=40.0, history=[{"epoch": 1, "top1": 0.5}]
    )
    file = io.BytesIO()
    torch.save({"position": position.to_dict(), **REST}, file)
    file.seek(0)
    assert TrainState.from_training(torch.load(file, weights_only=True)) == position


def test_a_new_epoch_forgets_its_sums_and_nothing_else():
    position = TrainState(step=7, epoch=2, batch=3, seen=96, loss_sum=1.5, hits=40.0, seconds=2.0)
    position.start_epoch()
    assert position == TrainState(step=7, epoch=2)


@pytest.mark.parametrize(
    "training", [{}, {"position": {}}, {**REST, "position": {"epoch_number": 1}}, {**REST, "position": 3}]
)
def test_other_softwares_state_is_refused(training):
    with pytest.raises(UserError, match="other software"):
        TrainState.from_training(training)
