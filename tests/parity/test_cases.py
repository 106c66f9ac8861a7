"""Every parity case of a known kind agrees with its reference implementation."""

import pytest
from checks import CHECKS


def test_case(case, record_property):
    if case.kind not in CHECKS:
        record_property("kind without check", case.kind)
        pytest.skip(f"no check for kind {case.kind}")
    CHECKS[case.kind](case)
    case.finish()
