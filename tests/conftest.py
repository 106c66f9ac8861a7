"""Options of the test suite, and what tests of several processes share."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("parity")
    group.addoption("--cases", action="append", metavar="DIR", help="folder of parity cases (repeatable)")
    group.addoption("--kinds", default="*", metavar="PATTERN", help="only kinds that match, e.g. 'deformable_detr/*'")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _in_two_processes(file: str, *arguments: object, timeout: float = 300) -> None:
    """Run `python file arguments` twice at once, in the environment that torchrun gives to ranks 0 and 1.

    Fails with what both have written when one fails, which ends the other, or when they take more than timeout seconds.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    command = [sys.executable, file, *map(str, arguments)]
    with ExitStack() as ended:
        # files, since a full pipe would stop a process in the midst of a collective call
        outputs = [ended.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(2)]
        workers = []
        for rank, output in enumerate(outputs):
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            worker = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            ended.callback(worker.wait)
            ended.callback(worker.kill)
            workers.append(worker)
        start = time.monotonic()
        while None in (codes := [worker.poll() for worker in workers]) and not any(codes):
            if time.monotonic() > start + timeout:
                break
            time.sleep(0.05)
        if codes != [0, 0]:
            said = [f"one of two processes failed, or both took too long, after {time.monotonic() - start:.0f} s"]
            for rank, (code, output) in enumerate(zip(codes, outputs, strict=True)):
                output.seek(0)
                end = "had not ended" if code is None else f"ended with {code}"
                said.append(f"process {rank} {end} and wrote:\n{output.read()}")
            pytest.fail("\n".join(said), pytrace=False)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives a port of this machine on which nothing listens."""
    return _free_port


@pytest.fixture(scope="session")
def in_two_processes() -> Callable[..., None]:
    """Runs the `__main__` part of a test's file as two processes that know each other."""
    return _in_two_processes
