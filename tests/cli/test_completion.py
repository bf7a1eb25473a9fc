"""Shell completion: bash completes with the script as it is printed, and every flag is in those of all shells."""

import re
import shutil
import subprocess

import pytest

from alexnet.cli import COMMANDS, run
from alexnet.cli.completion import SHELLS, script

TRY = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_alexnet
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts():
    return {shell: script(shell, COMMANDS) for shell in SHELLS}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tr"], {"train"}),
        (["train", "--ar"], {"--arch"}),
        (["train", "--norm", ""], {"auto", "lrn", "batch", "none"}),
        (["train", "cifar10-"], {"cifar10-fast", "cifar10-best", "cifar10-seed"}),
        (["check", "my p"], {"my pets"}),
        (["export", "last", "on"], {"onnx"}),
        (["code", "code"], {"code2012"}),
        (["code", "paper", "--norm", "b"], {"batch"}),
        (["predict", "last", "--ou"], {"--out"}),
        (["check", "--html", "my"], {"my pets"}),
    ],
)
def test_bash_completes(scripts, tmp_path, words, found):
    (tmp_path / "my pets").mkdir()
    (tmp_path / "script").write_text(scripts["bash"], encoding="utf-8")
    command = ["bash", "-c", TRY, "bash", "./script", "alexnet", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.splitlines()) == found
    assert not done.stderr


def test_all_flags_are_completed(scripts, capsys):
    for name in COMMANDS:
        run([name, "--help"])
        flags = set(re.findall(r"^\W+(--[a-z][\w-]*)", capsys.readouterr().out, re.MULTILINE))
        (line,) = [line for line in scripts["bash"].splitlines() if line.strip().startswith(f'{name}) words="--')]
        assert flags <= set(line.split('"')[1].split()), name
        begin = f"complete -c alexnet -n '__fish_seen_subcommand_from {name}' -l "
        fish = {f"--{rest.split()[0]}" for rest in re.findall(re.escape(begin) + "(.*)", scripts["fish"])}
        assert flags <= fish, name
    assert scripts["zsh"].endswith(scripts["bash"])


def test_an_unknown_shell(capsys):
    assert run(["--completion", "csh"]) == 2
    assert capsys.readouterr().err.startswith("alexnet: There is no shell 'csh'; did you mean ")
