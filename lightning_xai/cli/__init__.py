"""The command `lightning-xai`: this front needs the standard library only and loads a command's module on demand."""

import sys
from collections.abc import Sequence
from importlib import import_module

from lightning_xai import __version__

# command -> (what it does, module that runs it); a module has `run(command, arguments)`.
COMMANDS = {
    "fit": ("train a network, validating and explaining on the way", "lightning_xai.cli.training"),
    "validate": ("evaluate a checkpoint on the validation data", "lightning_xai.cli.training"),
    "test": ("evaluate a checkpoint on the test data", "lightning_xai.cli.training"),
    "predict": ("write what a network says of pictures: detections, classes, captions", "lightning_xai.cli.training"),
    "explain": ("draw why a network says what it says of one picture", "lightning_xai.cli.explain"),
    "describe": ("caption what a network looked at, or a scene graph of yours", "lightning_xai.cli.describe"),
    "intervene": ("tabulate AP with each head, level, point or layer muted", "lightning_xai.cli.intervene"),
    "debugset": ("build a debug set that repairs a classifier", "lightning_xai.cli.debugset"),
    "debug-loop": (
        "train, explain failures, fine-tune on debug sets, and measure the repair",
        "lightning_xai.cli.debug_loop",
    ),
    "region-features": ("compute what a captioner reads of new pictures", "lightning_xai.cli.region_features"),
    "convert-arrays": ("make plain arrays of .npy files of Python objects", "lightning_xai.cli.convert_arrays"),
    "plot attention": ("draw where a detection's deformable attention samples a picture", "lightning_xai.cli.plot"),
    "plot data": ("draw training pictures with boxes before and after augmentation", "lightning_xai.cli.plot"),
    "plot log": ("draw AP and losses against the epoch for one or several runs", "lightning_xai.cli.plot"),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (what, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lightning-xai COMMAND --config FILE [--key.subkey VALUE ...]",
            "",
            "Train vision transformers and see, while they train, why they say what they say.",
            "",
            "commands:",
            *lines,
            "",
            "`lightning-xai COMMAND --help` lists the options of one command; `--version` prints the version.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"lightning-xai {__version__}")
        return 0
    name = " ".join(words[:2]) if words[0] == "plot" else words[0]
    if name == "plot" or (words[0] == "plot" and words[1] in ("-h", "--help")):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"lightning-xai: no command '{name}'; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return import_module(COMMANDS[name][1]).run(name, words[len(name.split()) :]) or 0
