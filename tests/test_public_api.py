"""The public functions of the package: `alexnet.train` and `alexnet.resume` also write the report."""

import pytest

import alexnet
from alexnet.progress import Silent

QUICK = {"epochs": 1, "limit_steps": 1, "width": 0.125, "batch_size": 256, "progress": Silent()}


def test_all_public_names_can_be_imported():
    for name in alexnet.__all__:
        assert getattr(alexnet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = alexnet.nothing


def test_train_and_resume_write_the_report(tmp_path, monkeypatch, skip_plots):
    result = alexnet.train("digits", out=tmp_path / "run", **QUICK)
    assert (result.run / "report.html").is_file()
    written = []
    monkeypatch.setattr("alexnet.report.report.write_report", lambda run: written.append(run.path))
    again = alexnet.resume(result.run, progress=Silent())
    assert again.already_finished
    assert written == [result.run]


def test_a_report_that_cannot_be_written_does_not_fail_the_run(tmp_path, monkeypatch, capsys):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alexnet.report.report.write_report", full)
    result = alexnet.train("digits", out=tmp_path / "run", **QUICK)
    assert result.summary["steps"] == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert f"retry with 'alexnet report {result.run}'" in error


def test_only_rank_0_writes_the_report(small_run, monkeypatch):
    from alexnet.api import write_page
    from alexnet.training.api import TrainingResult

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("alexnet.report.report.write_report", lambda _: pytest.fail("written by rank 1"))
    write_page(TrainingResult(small_run, {}))
