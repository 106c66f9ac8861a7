"""`pytest tests/parity --cases DIR [--kinds 'deformable_detr/*']`: one test for every parity case below DIR."""

from fnmatch import fnmatch
from pathlib import Path

import pytest
from case import Case, find_cases
from checks import CHECKS

HERE = Path(__file__).parent
DEFAULT_FOLDERS = [HERE / "cases", HERE.parents[2] / "shared" / "parity"]


def pytest_generate_tests(metafunc):
    if "case" not in metafunc.fixturenames:
        return
    given = metafunc.config.getoption("--cases")
    folders = [Path(folder) for folder in given] if given else [folder for folder in DEFAULT_FOLDERS if folder.is_dir()]
    cases: dict[str, Case] = {}
    for folder in folders:
        if not folder.is_dir():
            raise pytest.UsageError(f"--cases {folder}: no such folder; give a folder that holds */case.json")
        for case in find_cases(folder):
            cases.setdefault(case.name, case)
    pattern = metafunc.config.getoption("--kinds")
    chosen = [case for case in cases.values() if fnmatch(case.kind, pattern)]
    metafunc.parametrize("case", chosen, ids=[case.name for case in chosen])


def pytest_terminal_summary(terminalreporter, config):
    """Say which kinds were met without a check, so that a skip is never mistaken for a pass."""
    unknown: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        for name, kind in getattr(report, "user_properties", []):
            if name == "kind without check":
                unknown[kind] = unknown.get(kind, 0) + 1
    if unknown:
        listed = ", ".join(f"{kind} ({count})" for kind, count in sorted(unknown.items()))
        terminalreporter.write_line(f"parity: {sum(unknown.values())} cases of kinds without a check: {listed}")
    terminalreporter.write_line(f"parity: kinds with a check: {', '.join(sorted(CHECKS))}")
