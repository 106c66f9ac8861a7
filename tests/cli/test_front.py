"""Help, version and the list of commands come from the standard library alone."""

import subprocess
import sys

import pytest

from lightning_xai import __version__
from lightning_xai.cli import COMMANDS, main


@pytest.mark.parametrize("words", [["--help"], ["--version"], [], ["plot"], ["plot", "--help"]])
def test_front_imports_no_torch(words):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lightning_xai", *words], capture_output=True, text=True, check=True
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "numpy", "pytorch_lightning", "yaml"}
    assert done.stdout


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-xai {__version__}\n"


@pytest.mark.parametrize("words", [["trian"], ["plot", "atention"]])
def test_unknown_command_names_what_exists(words, capsys):
    assert main(words) == 2
    message = capsys.readouterr().err
    assert " ".join(words) in message and "fit" in message and "plot attention" in message
