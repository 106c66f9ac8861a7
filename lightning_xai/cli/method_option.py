"""Explanation methods as they are written on a command line."""

from collections.abc import Sequence
from typing import Any

import yaml


def methods_of_options(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{"rollout:start_layer=1": {"method": "rollout", "start_layer": 1}, ...}, as `methods_by_name` reads it.

    words: NAME, or NAME:option=value,option=value with values as YAML reads them.
    Raises ValueError for what is not written so.
    """
    found = {}
    for word in words:
        name, _, given = word.partition(":")
        options: dict[str, Any] = {"method": name}
        for each in given.split(",") if given else []:
            option, equals, value = each.partition("=")
            if not (option and equals):
                raise ValueError(f"--method {word!r}: {each!r} is no option=value, such as rollout:start_layer=1")
            options[option.strip()] = yaml.safe_load(value)
        found[word] = options
    return found
