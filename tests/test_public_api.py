"""The public functions of the package, what a notebook shows of their results, and a notebook that uses them."""

import re
import sys
from pathlib import Path

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
    monkeypatch.setattr("alexnet.report.report.write_report", lambda run, lang: written.append((run.path, lang)))
    again = alexnet.resume(result.run, progress=Silent(), lang="zh")
    assert again.already_finished
    assert written == [(result.run, "zh")]
    with pytest.raises(alexnet.UserError, match="no language 'de'"):
        alexnet.train("digits", out=tmp_path / "other", lang="de", **QUICK)
    assert not (tmp_path / "other").exists()


def test_a_report_that_cannot_be_written_does_not_fail_the_run(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alexnet.report.report.write_report", full)
    result = alexnet.train("digits", out=tmp_path / "run", lang="zh", **QUICK)
    assert result.summary["steps"] == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert error.endswith(f"; retry with: alexnet report {result.run} --lang zh\n")


def test_only_rank_0_writes_the_report(small_run, monkeypatch):
    from alexnet.api import write_page
    from alexnet.training.api import TrainingResult

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("alexnet.report.report.write_report", lambda *_: pytest.fail("written by rank 1"))
    write_page(TrainingResult(small_run, {}))


def test_packages_of_a_functions_name_can_be_called():
    assert callable(alexnet.report)
    assert callable(alexnet.export)
    assert sys.modules["alexnet.report"] is alexnet.report


def test_report_displays_as_its_page(small_run, tmp_path, skip_plots):
    found = alexnet.report(small_run, out=tmp_path / "page.html")
    assert found.path == tmp_path / "page.html"
    shown = found._repr_html_()
    (content,) = re.findall(r'srcdoc="([^"]*)"', shown)
    assert "&lt;title&gt;" in content
    assert 'sandbox="allow-scripts allow-popups"' in shown  # its scripts cannot reach the notebook


def test_show_displays_as_a_figure_and_writes_only_on_demand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figure = alexnet.show("architecture", "lenet")
    data, about = figure._repr_mimebundle_(include=None, exclude=None)
    assert data["image/png"].startswith(b"\x89PNG")
    assert 300 < about["image/png"]["width"] < 2000
    assert list(tmp_path.iterdir()) == []
    assert figure.save() == Path("architecture-lenet.svg")
    alexnet.show("architecture", "lenet", out="a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "architecture-lenet.svg"]
    with pytest.raises(alexnet.UserError, match="takes no top="):
        alexnet.show("filters", "run", top=3)
    with pytest.raises(alexnet.UserError, match="no language 'xx'"):
        alexnet.show("architecture", "lenet", lang="xx")


@pytest.mark.slow
def test_a_figure_is_dark_where_the_notebook_is(browser):
    data, _ = alexnet.show("architecture", "lenet")._repr_mimebundle_()
    page = browser.new_page()
    shown = "() => [...document.images].filter(one => one.checkVisibility()).map(one => one.className)"
    for attributes, expected in (
        ("", "light"),
        ("data-jp-theme-light='true'", "light"),
        ("data-jp-theme-light='false'", "dark"),
        ("class='vscode-light'", "light"),
        ("class='vscode-dark'", "dark"),
    ):
        page.set_content(f"<body {attributes}>{data['text/html']}")
        assert page.evaluate(shown) == [f"alexnet-{expected}"], attributes
    page.close()
    chosen, _ = alexnet.show("architecture", "lenet", theme="dark")._repr_mimebundle_()
    assert list(chosen) == ["image/png"]


def test_check_displays_classes_and_problems(image_folder):
    (image_folder / "sky" / "<cut>.jpg").write_bytes(b"not an image")
    found = alexnet.check(image_folder)
    shown = found._repr_html_()
    assert re.search(r">sky</td><td[^>]*>\d+</td><td[^>]*>\d+\.\d%</td>", shown)
    assert re.search(r"1 × [^:]+: sky/&lt;cut&gt;\.jpg\n", shown)
    assert found.verdict in repr(found)
    with pytest.raises(alexnet.UserError, match="Name the dataset"):
        alexnet.check()


def test_check_displays_itself_in_chinese(image_folder):
    (image_folder / "sky" / "cut.jpg").write_bytes(b"not an image")
    found = alexnet.check(image_folder, lang="zh")
    shown = found._repr_html_()
    assert "1 × 这不是已知格式的图片：sky/cut.jpg" in shown
    assert not re.search("[a-z]{3,} [a-z]{3,} ", re.sub("<[^>]+>|--[a-z-]+|alexnet [a-z]+", "", shown)), "in English"
    assert found.bad == [("sky/cut.jpg", "it is not an image of a known format")]
    with pytest.raises(alexnet.UserError, match="There is no language 'fr'"):
        alexnet.check(image_folder, lang="fr")


def test_arch_displays_a_table():
    assert alexnet.arch()._repr_html_().count("<tr>") == len(alexnet.arch()) + 1
    shown = alexnet.arch("lenet", num_classes=7)._repr_html_()
    assert ">conv1</td>" in shown
    assert "parameters, " in shown
    assert ">fc</td>" in alexnet.arch("torchvision/resnet18")._repr_html_()


def test_arch_displays_itself_in_chinese():
    shown = alexnet.arch("paper", lang="zh")
    assert shown.title().startswith("paper：NIPS 2012 论文所写的网络：双塔，重叠池化之前有 LRN（Krizhevsky, ")
    assert "60,965,224 个参数，每张图片 724,406,816 次乘加，float32 的激活占 " in repr(shown)
    assert " MiB\n- 论文没有写 conv1 的填充" in repr(shown)
    html = shown._repr_html_()
    assert re.findall(r"<th [^>]*>([^<]*)</th>", html) == ["层", "输出", "参数量", "乘加次数", "内存", "感受野", "类型"]
    assert ">conv 5×5、填充 2、分 2 组</td>" in html
    table = alexnet.arch(lang="zh")
    assert [row[-1] for row in table.cells() if row[0] == "cifar"] == ["把 AlexNet 的各层用于 32×32 的图片"]
    assert table == alexnet.arch()
    assert alexnet.arch("torchvision/resnet18", lang="zh").notes() == [
        "11,689,512 个参数，每张图片 1,814,073,344 次乘加"
    ]
    with pytest.raises(alexnet.UserError, match="There is no language 'de'"):
        alexnet.arch("paper", lang="de")


def test_code_displays_as_highlighted_source():
    found = alexnet.code("lenet", num_classes=7)
    assert repr(found) == str(found)
    assert "nn.Linear(84, num_classes)" in found
    assert found._repr_markdown_() == f"```python\n{found}```"


def test_networks_name_their_parameters_and_input():
    assert "lenet: 61,706 parameters, input 1×28×28, 10 classes\n" in repr(alexnet.create_model("lenet"))


@pytest.mark.slow
def test_the_notebook_of_the_documentation_shows_results_and_no_red_text(tmp_path):
    """Execute the code of docs/notebook.md, a cell for each paragraph, with a smaller network."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    page = (Path(__file__).parents[1] / "docs" / "notebook.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = code.replace("epochs=5", "epochs=2, width=0.125")
    cells = [nbformat.v4.new_code_cell(cell) for cell in code.strip().split("\n\n")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, allow_errors=True, resources=resources).execute()
    outputs = {cell.source.splitlines()[-1].split("  #")[0]: cell.outputs for cell in notebook.cells}
    first, error = outputs.pop("from sklearn.datasets import load_digits"), outputs.pop('alexnet.create_model("papr")')
    assert first == []
    assert error[0].traceback == ["UserError: There is no architecture 'papr'; did you mean 'paper' or 'paper-six'?"]
    assert all(o.output_type in ("display_data", "execute_result") for cell in outputs.values() for o in cell)
    html = {source: [o.data.get("text/html", "") for o in cell] for source, cell in outputs.items()}
    loading, curves, *_, result = html["result"]
    assert loading == ""  # what it showed is gone
    assert curves.count("<svg") == 2
    assert "test top-1" in result
    assert html["classifier.predict(digits[0])"][0].count("<img ") == 1
    assert html["classifier.predict(list(digits[:6]))"][0].count("<img ") == 6
    assert "image/png" in outputs['alexnet.show("filters", result.run)'][-1].data
    assert "<iframe " in html["alexnet.report(result.run)"][-1]
