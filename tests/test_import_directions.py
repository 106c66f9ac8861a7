"""Who may import whom: the table of ARCHITECTURE.md, enforced."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# room -> what it may import of ours, besides itself
ALLOWED = {
    "ms_deform_attn": set(),
    "explain": {"ms_deform_attn"},
    "nets": {"ms_deform_attn", "explain.streams"},
    "evaluate": {"explain"},
    "tasks": {"nets", "evaluate", "explain", "ms_deform_attn"},
    "data": set(),
    "draw": set(),
    "callbacks": {"explain", "evaluate", "draw"},
    "cli": {"ms_deform_attn", "nets", "tasks", "data", "explain", "evaluate", "callbacks", "draw"},
}


def rooms() -> list[tuple[str, Path]]:
    found = [("ms_deform_attn", file) for file in (ROOT / "models/ops/ms_deform_attn").rglob("*.py")]
    for file in (ROOT / "lightning_xai").rglob("*.py"):
        parts = file.relative_to(ROOT / "lightning_xai").parts
        if len(parts) > 1:
            found.append((parts[0], file))
    return found


def imported_names(file: Path) -> set[str]:
    """Every dotted name of ours that a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively; write the full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("lightning_xai", "ms_deform_attn")}


@pytest.mark.parametrize("room, file", rooms(), ids=lambda value: value if isinstance(value, str) else value.stem)
def test_imports_point_the_right_way(room, file):
    allowed = ALLOWED[room] | {room}
    for name in imported_names(file):
        if name.startswith("lightning_xai.__"):
            continue
        ours = name.removeprefix("lightning_xai.")
        assert any(ours == target or ours.startswith(target + ".") for target in allowed), (
            f"{file.relative_to(ROOT)} imports {name}, but {room} may import only {sorted(allowed)}"
        )


def test_every_room_has_a_rule():
    folders = {folder.name for folder in (ROOT / "lightning_xai").iterdir() if (folder / "__init__.py").exists()}
    assert folders == set(ALLOWED) - {"ms_deform_attn"}


def test_only_one_name_for_lightning():
    for _, file in rooms():
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [m for m in modules if m.split(".")[0] == "lightning"], f"{file} imports lightning"
