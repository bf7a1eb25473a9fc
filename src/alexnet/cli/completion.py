"""`alexnet --completion SHELL`: a script with which bash, zsh or fish complete commands, flags, their values and files.

What it completes is read from the help of each command.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Mapping
from unittest import mock

from alexnet.errors import unknown_name

SHELLS = ("bash", "zsh", "fish")
_FLAG = re.compile(
    r"^\W+(--[a-z][\w-]*)(?:, (--no-[\w-]+))?(?: (\{[\w,-]+\}|[A-Z\[]\S*))?.*?  (.*?)[ │]*$", re.MULTILINE
)
"""A line of help: a flag, its negative form, its choices or the name of its value, and its explanation."""
_CONTINUED = re.compile(r"[ │]*\n[│ ] {9,}")
"""The end of a line of help, where the explanation stands on the next."""

_BASH = """\
_alexnet() {{
    local IFS=$'\\n' current=${{COMP_WORDS[COMP_CWORD]}} words=""
    if [[ $COMP_CWORD == 1 ]]; then
        words="{commands}"
    else
        case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD-1]}}" in
{choices}
            *) if [[ $current == -* ]]; then
                case "${{COMP_WORDS[1]}}" in
{flags}
                esac
            else
                case "${{COMP_WORDS[1]}}" in
{words}
                esac
                COMPREPLY=($(compgen -W "${{words// /$IFS}}" -- "$current"; compgen -f -- "$current"))
                return
            fi ;;
        esac
    fi
    COMPREPLY=($(compgen -W "${{words// /$IFS}}" -- "$current"))
}}
complete -o filenames -F _alexnet alexnet
"""
_ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"  # with which zsh runs bash's functions


def script(shell: str, commands: Mapping[str, Callable[[list[str]], object]]) -> str:
    """Return the script for `shell`. Raises `UserError` for one that is not in `SHELLS`."""
    if shell not in SHELLS:
        raise unknown_name("shell", shell, SHELLS)
    flags = {name: _FLAG.findall(_help(call)) for name, call in commands.items()}
    return _fish(flags) if shell == "fish" else (_ZSH if shell == "zsh" else "") + _bash(flags)


Flags = dict[str, list[tuple[str, str, str, str]]]
"""Command → (flag, its negative form, its choices or the name of its value, its help) of each flag."""


def _bash(flags: Flags) -> str:
    choices = [
        f'            "{command} {flag}") words="{_words(value)}" ;;'
        for command, found in flags.items()
        for flag, _, value, _ in found
        if value.startswith("{")
    ]
    names = {command: " ".join(name for row in found for name in row[:2] if name) for command, found in flags.items()}

    def cases(by_command: Mapping[str, str]) -> str:
        return "\n".join(f'                    {command}) words="{words}" ;;' for command, words in by_command.items())

    return _BASH.format(
        commands=" ".join(flags), choices="\n".join(choices), flags=cases(names), words=cases(_positional())
    )


def _fish(flags: Flags) -> str:
    lines = [f"complete -c alexnet -n __fish_use_subcommand -f -a '{' '.join(flags)}'"]
    positional = _positional()
    for command, found in flags.items():
        begin = f"complete -c alexnet -n '__fish_seen_subcommand_from {command}'"
        if words := positional.get(command):
            lines.append(f"{begin} -a '{words}'")
        for flag, negative, value, text in found:
            kind = f"-x -a '{_words(value)}'" if value.startswith("{") else "-r" if value else ""
            about = " ".join(text.split()).split(". ")[0].replace("\\", "\\\\").replace("'", "\\'")
            lines += [f"{begin} -l {name[2:]} {kind} -d '{about}'" for name in (flag, negative) if name]
    return "\n".join(lines) + "\n"


def _words(choices: str) -> str:
    return choices.strip("{}").replace(",", " ")


def _positional() -> dict[str, str]:
    """Return the names that a command takes besides files, by command."""
    from alexnet.ablation.claims import CLAIMS
    from alexnet.models.architectures import ARCHITECTURES
    from alexnet.plots.kinds import KINDS
    from alexnet.runtimes.manifest import FORMATS
    from alexnet.training.recipes import RECIPES

    takes_run = dict.fromkeys(("resume", "eval", "predict", "report", "features", "serve"), "last")
    return {
        **takes_run,
        "train": " ".join(RECIPES),
        **dict.fromkeys(("arch", "code"), " ".join(ARCHITECTURES)),
        "show": " ".join((*KINDS, "last")),
        "export": " ".join(("last", *FORMATS, "all")),
        "ablate": " ".join((*CLAIMS, "all")),
    }


def _help(call: Callable[[list[str]], object]) -> str:
    """Return the help of a command, in one column, with one line for each flag."""
    with (
        mock.patch.dict(os.environ, COLUMNS="100"),
        contextlib.redirect_stdout(io.StringIO()) as shown,
        contextlib.suppress(SystemExit),
    ):
        call(["--help"])
    return _CONTINUED.sub("  ", shown.getvalue())
