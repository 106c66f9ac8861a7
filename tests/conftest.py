"""Options of the test suite."""


def pytest_addoption(parser):
    group = parser.getgroup("parity")
    group.addoption("--cases", action="append", metavar="DIR", help="folder of parity cases (repeatable)")
    group.addoption("--kinds", default="*", metavar="PATTERN", help="only kinds that match, e.g. 'deformable_detr/*'")
