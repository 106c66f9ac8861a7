"""A configuration file that extends another one states only its difference."""

import pytest

from lightning_xai.cli.configuration import expand_extends


def write(folder, name, text):
    (folder / name).write_text(text)
    return str(folder / name)


def test_bases_come_first(tmp_path):
    base = write(tmp_path, "base.yaml", "a: 1\n")
    middle = write(tmp_path, "middle.yaml", "extends: base.yaml\nb: 2\n")
    top = write(tmp_path, "top.yaml", "extends: middle.yaml\n")
    expanded = expand_extends(["fit", "--config", top, "--a", "3"])
    assert expanded == ["fit", "--config", base, "--config", middle, "--config", top, "--a", "3"]
    assert expand_extends([f"--config={base}"]) == ["--config", base]


def test_bad_files_are_named(tmp_path):
    with pytest.raises(SystemExit, match=r"missing\.yaml.*no such file"):
        expand_extends(["--config", str(tmp_path / "missing.yaml")])
    with pytest.raises(SystemExit, match="extends itself"):
        expand_extends(["--config", write(tmp_path, "loop.yaml", "extends: loop.yaml\n")])
    with pytest.raises(SystemExit, match="no mapping"):
        expand_extends(["--config", write(tmp_path, "list.yaml", "- 1\n")])
    with pytest.raises(SystemExit, match="not valid YAML"):
        expand_extends(["--config", write(tmp_path, "broken.yaml", "a: [1\n")])
