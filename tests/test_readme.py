"""The README tells the truth: its commands exist, its table is counted, its tree is the repository's."""

import re
import shlex
from pathlib import Path

import pytest

from alexnet.cli import COMMANDS, run
from alexnet.models.architectures import ARCHITECTURES
from alexnet.models.summary import table
from alexnet.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh-CN.md")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """The fenced blocks: (language, content)."""
    parts = re.split(r"^```(.*)$", text(name), flags=re.MULTILINE)
    return [(parts[i], parts[i + 1]) for i in range(1, len(parts) - 1, 4)]


def commands(name: str) -> list[list[str]]:
    """Every `alexnet …` line of the shell blocks, split into words."""
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
def test_the_table_of_architectures_is_counted(name):
    rows = dict(re.findall(r"^\| `([\w-]+)` \|.*\| ([\d,]+) \|$", text(name), re.MULTILINE))
    assert rows == {row["name"]: f"{row['parameters']:,}" for row in table()}


@pytest.mark.parametrize("name", READMES)
def test_every_recipe_and_command_is_told(name):
    for word in (*RECIPES, *ARCHITECTURES):
        assert f"`{word}`" in text(name), word
    for word in COMMANDS:
        assert f"`alexnet {word}" in text(name), word


@pytest.mark.parametrize("name", READMES)
def test_the_tree_is_the_repositorys(name):
    (block,) = [block for _, block in blocks(name) if "pyproject.toml" in block]
    told = set(re.findall(r"([\w.-]+\.(?:py|md|toml|yaml)|LICENSE)\b", block))
    files = {p.name for p in (ROOT / "src").rglob("*.py") if p.name != "__init__.py" or p.parent.name == "alexnet"}
    assert files <= told, files - told
    everything = {p.name for p in ROOT.rglob("*") if ".git/" not in str(p)}
    assert told <= everything, told - everything
