"""What starts two processes for other tests is itself heard where they fail."""

import time

import pytest


@pytest.fixture
def worker(tmp_path):
    def write(code: str) -> str:
        file = tmp_path / "worker.py"
        file.write_text(f"import os, sys, time\nrank = int(os.environ['RANK'])\n{code}\n")
        return str(file)

    return write


def test_both_know_each_other_and_get_the_arguments(in_two_processes, worker, tmp_path):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    code = f"open(sys.argv[1] + str(rank), 'w').write(' '.join(os.environ[name] for name in {names}))"
    in_two_processes(worker(code), tmp_path / "said")
    first, second = ((tmp_path / f"said{rank}").read_text().split() for rank in range(2))
    assert first[:4] == ["0", "0", "2", "127.0.0.1"] and second[:4] == ["1", "1", "2", "127.0.0.1"]
    assert first[4] == second[4] and int(first[4]) > 0


def test_a_failure_ends_the_other_and_both_are_heard(in_two_processes, worker, tmp_path):
    code = """
if rank == 0:
    print("waits", flush=True)
    open(sys.argv[1], "w").close()
    time.sleep(100)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
print(100_000 * "much", file=sys.stderr)
sys.exit(3)
"""
    start = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match=r"process 0 had not .*\nwaits\n+process 1 ended with 3 "):
        in_two_processes(worker(code), tmp_path / "heard")
    assert time.monotonic() - start < 50


def test_no_end(in_two_processes, worker):
    with pytest.raises(pytest.fail.Exception, match="process 1 had not ended"):
        in_two_processes(worker("time.sleep(100)"), timeout=0.5)
