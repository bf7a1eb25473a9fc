"""README and the reference pages are true: their commands exist, their tables are counted, their file tree is real."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet.cli import COMMANDS, run
from alexnet.data.datasets import load_dataset
from alexnet.models.architectures import ARCHITECTURES
from alexnet.models.summary import table
from alexnet.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh-CN.md")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """Return the fenced blocks as (language, content)."""
    parts = re.split(r"^```(.*)$", text(name), flags=re.MULTILINE)
    return [(parts[i], parts[i + 1]) for i in range(1, len(parts) - 1, 4)]


def commands(name: str) -> list[list[str]]:
    """Return every `alexnet …` line of the shell blocks, split into words."""
    lines = [line for language, block in blocks(name) if language == "sh" for line in block.splitlines()]
    found = [shlex.split(line.split("#")[0].split("&&")[-1]) for line in lines]
    return [words[1:] for words in found if words and words[0] == "alexnet"]


@pytest.mark.parametrize("name", READMES)
def test_commands_exist(name, capsys):
    found = commands(name)
    assert len(found) >= 8
    for command, *rest in found:
        assert command in COMMANDS
        if command == "train" and rest and not rest[0].endswith("/"):
            assert rest[0] in RECIPES
        if command == "arch":
            assert run([command, *rest]) == 0
        flags = [w for w in rest if w.startswith("--")]
        assert run([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(flag in shown for flag in flags), (command, flags)


@pytest.mark.parametrize("name", READMES)
def test_readme_fits_one_screen_and_its_links_lead_somewhere(name):
    assert len(text(name).splitlines()) <= 90
    for target in re.findall(r"\]\(([^)#:]+)\)", text(name)):
        assert (ROOT / target).exists(), target


def test_the_example_digits_are_of_the_test_split():
    """Each is the first of its class there, every pixel repeated 4×4 times: training by default has not seen it."""
    test = load_dataset("digits").arrays["test"]
    for digit, name in ((0, "zero"), (4, "four"), (7, "seven")):
        image = test.images[test.targets.tolist().index(digit), 0].numpy()
        with Image.open(ROOT / "examples" / f"{name}.png") as stored:
            assert np.array_equal(stored, image.repeat(4, axis=0).repeat(4, axis=1)), name
    assert "examples/seven.png" in text("README.md")


def test_every_architecture_is_counted():
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \|.*\|.*\|$", text("docs/variants.md"), re.MULTILINE))
    assert rows == {row["name"]: f"{row['parameters']:,}" for row in table()}
    assert set(rows) == set(ARCHITECTURES)


def test_every_recipe_and_command_is_documented():
    for name in RECIPES:
        assert f"| `{name}` |" in text("docs/recipes.md"), name
    for name in COMMANDS:
        assert f"| `alexnet {name}" in text("docs/commands.md"), name


def test_the_file_tree_is_that_of_the_package():
    (block,) = [block for _, block in blocks("docs/architecture.md") if "src/alexnet/" in block]
    listed = set(re.findall(r"[\w.-]+\.(?:py|c|sh|sbatch|html|css|js|md)\b", block))
    files = {p.name for p in (ROOT / "src").rglob("*.py") if p.name != "__init__.py" or p.parent.name == "alexnet"}
    assert files <= listed, files - listed
    everything = {p.name for p in ROOT.rglob("*") if ".git/" not in str(p)}
    assert listed <= everything, listed - everything


def test_documents_link_to_each_other():
    for page in (ROOT / "docs").rglob("*.md"):
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", prose):
            assert (page.parent / target).exists(), (page.name, target)
