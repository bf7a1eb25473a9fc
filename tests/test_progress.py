"""Progress display: live, plain, silent, in a notebook, and TensorBoard."""

import re
import sys
from types import SimpleNamespace

import pytest

import alexnet
from alexnet.errors import UserError
from alexnet.progress import (
    Live,
    Notebook,
    Plain,
    Position,
    Silent,
    WithTensorBoard,
    check_tensorboard,
    default_progress,
    epoch_line,
)

ROW = {
    "epoch": 3, "train_loss": 0.5, "train_top1": 0.875, "val_loss": 0.625, "top1": 0.75,
    "images_per_second": 1234.0, "seconds": 12.5,
}  # fmt: skip


def test_epoch_line_shows_metrics_and_what_fits_into_80_columns():
    assert epoch_line(ROW, 20, "val") == (
        "epoch  3/20  loss 0.5000  val loss 0.6250  val top-1 75.00%  3:33 left  12.5 s"
    )
    best = {"epoch": 2, "top1": 0.8}
    last = epoch_line({**ROW, "memory": 3 << 30, "best": best}, 3, "val")
    assert last == "epoch 3/3  loss 0.5000  val loss 0.6250  val top-1 75.00%  best 80.00%  3.0 GiB"
    long = {**ROW, "train_loss": 12.5, "val_loss": 10.25, "top1": 1.0, "images_per_second": 1e5, "seconds": 4e4}
    assert epoch_line(long, 100, "test") == (
        "epoch   3/100  loss 12.5000  test loss 10.2500  test top-1 100.00%  40000.0 s"
    )


def test_epoch_line_in_chinese_fits_into_80_columns():
    assert epoch_line(ROW, 20, "val", "zh") == (
        "第  3/20 轮  训练损失 0.5000  验证损失 0.6250  验证 top-1 75.00%  剩余 3:33"  # 70 columns
    )
    last = epoch_line({**ROW, "best": {"epoch": 2, "top1": 0.8}}, 3, "test", "zh")
    assert last == "第 3/3 轮  训练损失 0.5000  测试损失 0.6250  测试 top-1 75.00%  最佳 80.00%"
    part = {**ROW, "epoch": 1, "step": 7, "steps_per_epoch": 29, "epochs_left": 0.0}
    assert epoch_line(part, 1, "val", "zh").startswith("第 1 轮 7/29 步  训练损失 0.5000")


def test_tensorboard_receives_the_curves(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    progress = WithTensorBoard(Silent(), tmp_path)
    for epoch in (1, 2):
        progress.epoch({**ROW, "epoch": epoch, "top1": epoch / 4, "lr": 0.1}, 2, "val")
    progress.close()
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("top1/val")] == [(1, 0.25), (2, 0.5)]


def test_a_missing_tensorboard_is_reported(monkeypatch):
    monkeypatch.setattr("alexnet.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'alexnet\[tensorboard\]'"):
        check_tensorboard()


def test_plain_prints_to_stderr_only(capsys):
    plain = Plain()
    plain.step(Position(1, 2, 10, 20, 10, 40), 0.5, 0.5)
    plain(1, 2, "reading")
    plain.epoch(ROW, 20, "test")
    plain.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "test top-1 75.00%" in err


def test_plain_prints_a_line_every_ten_seconds_of_a_task(capsys):
    seconds = iter(range(0, 300, 3))
    plain = Plain(clock=lambda: next(seconds))
    for done in range(1, 11):
        plain(done, 10, "reading")
    for done in (1, 2):  # a task that is done again starts anew
        plain(done, 2, "reading")
    plain(1, 3, "evaluating")
    assert capsys.readouterr().err.splitlines() == ["reading: 5 of 10", "reading: 9 of 10"]


def test_a_part_of_the_first_epoch_is_not_called_an_epoch():
    row = {**ROW, "epoch": 1, "step": 7, "steps_per_epoch": 29, "epochs_left": 0.0}
    assert epoch_line(row, 1, "val").startswith("7/29 of epoch 1  loss 0.5000")
    assert epoch_line({**row, "step": 29}, 1, "val").startswith("epoch 1/1  loss")
    half = {**row, "epoch": 2, "step": 58, "epochs_left": 0.5}
    assert epoch_line(half, 3, "val").startswith("epoch 2/3  loss")
    assert "0:06 left" in epoch_line(half, 3, "val")  # half of 12.5 s


def test_plain_speaks_chinese(capsys):
    seconds = iter((0, 11))
    plain = Plain(clock=lambda: next(seconds), lang="zh")
    plain(0, 10, "reading images")
    plain(5, 10, "reading images")
    plain.log("About 12.5 epochs fit 15m; their number follows the speed of training.")
    plain.log("A sentence that is not translated.")
    assert capsys.readouterr().err.splitlines() == [
        "读取图片：10 项中的 5 项",
        "15m 内约可训练 12.5 轮；轮数会随训练速度调整。",
        "A sentence that is not translated.",
    ]


def test_an_unknown_language_is_refused():
    with pytest.raises(UserError, match="There is no language 'de'"):
        default_progress("de")


def test_silent_prints_nothing(capsys):
    Silent().epoch(ROW, 20, "val")
    Silent().log("hello")
    assert capsys.readouterr() == ("", "")


def test_live_keeps_messages_on_the_screen(capsys):
    live = Live()
    live(5, 10, "reading images")
    live.step(Position(1, 2, 10, 20, 10, 40), None, None)
    live.step(Position(1, 2, 20, 20, 20, 40), 0.5, 0.25)
    live.log("A [message] that stays.")
    live.epoch(ROW, 20, "val")
    live.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "A [message] that stays." in err
    assert "val top-1 75.00%" in err


def test_without_a_terminal_progress_is_plain():
    assert isinstance(default_progress(), Plain)


@pytest.fixture
def shown(monkeypatch):
    """The HTML of each update of a notebook's cell, in a process that is one's kernel."""
    updates = []

    def display(html, display_id):
        updates.append(html)
        return SimpleNamespace(update=updates.append)

    shell = SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    return updates


def test_a_notebook_shows_a_bar_and_curves(shown, capsys):
    seconds = iter(range(1000))
    notebook = Notebook(clock=lambda: next(seconds))
    assert "preparing" in shown[0]
    notebook(5, 10, "reading images")
    assert '<progress value="5" max="10"' in shown[-1]
    notebook.step(Position(1, 2, 10, 20, 10, 40), 0.5, 0.25)
    notebook.log("A <message> that stays.")
    for epoch in (1, 2):
        notebook.epoch({**ROW, "epoch": epoch}, 2, "val")
    notebook.log("A remark on the epoch.")
    notebook.close()
    final = shown[-1]
    assert "<progress" not in final
    assert "A &lt;message&gt; that stays." in final
    assert "epoch 2/2  loss 0.5000" in final
    assert final.count("<polyline") == 4
    lines = ("A &lt;message&gt;", "epoch 2/2", "A remark on the epoch.")
    assert sorted(lines, key=final.index) == list(lines)
    assert "0.0,13.8 280.0,13.8" in final  # training top-1, 87.5 %
    assert ">epoch 1</text>" in final  # at 0 pixels
    assert capsys.readouterr() == ("", "")


def test_a_notebook_speaks_chinese(shown):
    notebook = Notebook(lang="zh")
    notebook(5, 10, "reading images")
    assert "读取图片  5/10" in shown[-1]
    notebook.step(Position(1, 2, 10, 20, 10, 40), 0.5, 0.25)
    notebook.log(
        "Architecture 'cifar' at 32×32, chosen by the size of the images; --arch and --image-size override it."
    )
    for epoch in (1, 2):
        notebook.epoch({**ROW, "epoch": epoch}, 2, "val")
    notebook.close()
    final = shown[-1]
    assert "按图片尺寸选定网络结构“cifar”，输入 32×32；可用 arch= 和 image_size= 改变。" in final
    assert "第 2/2 轮  训练损失 0.5000  验证损失 0.6250  验证 top-1 75.00%" in final
    assert final.count('>训练</tspan> · <tspan fill="#2b8ccc">验证</tspan>') == 2
    assert '<svg role="img" aria-label="损失"' in final
    assert ">第 1 轮</text>" in final
    assert not {"loss", "val", "training", "epoch"} & set(re.findall(r"[a-z]+", re.sub("<[^>]*>", "", final)))


def test_a_notebook_is_updated_a_few_times_a_second(shown):
    now = [100.0]
    notebook = Notebook(clock=lambda: now[0])
    for done in range(1, 101):
        notebook(done, 100, "reading images")
        now[0] += 0.01
    assert len(shown) == 1 + 4
    notebook.close()
    assert shown[-1] == ""


def test_the_curves_of_a_resumed_training_begin_with_the_first_epoch(shown):
    notebook = Notebook()
    notebook.resume([{**ROW, "epoch": epoch} for epoch in (1, 2)])
    notebook(0, 10, "epoch 3/3")
    assert "<svg" not in shown[-1]  # without the number of epochs and the split
    notebook.epoch({**ROW, "epoch": 3}, 3, "val")
    assert "0.0,13.8 140.0,13.8 280.0,13.8" in shown[-1]


def test_a_notebook_says_that_torch_is_being_loaded(shown, monkeypatch):
    alexnet._import("alexnet.text")
    assert shown == []
    monkeypatch.delitem(sys.modules, "torch")
    alexnet._import("alexnet.text")
    assert any("loading PyTorch" in html for html in shown)
    assert shown[-1] == ""


def test_curves_survive_a_loss_that_explodes(shown):
    notebook = Notebook()
    for epoch, loss in enumerate((2.0, float("inf"), float("nan"), 1e30, 1.0), 1):
        notebook.epoch({**ROW, "epoch": epoch, "val_loss": loss}, 5, "val")
    assert "nan" not in shown[-1].split("epoch 5/5")[0]


def test_progress_in_a_notebook_is_that_of_a_notebook(shown):
    assert isinstance(default_progress(), Notebook)
