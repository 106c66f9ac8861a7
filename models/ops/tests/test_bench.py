"""The benchmark itself: what it writes, that a wrong path is found, what it counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

OPS = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch):
    """`bench.py` and its package, imported as the script does."""
    monkeypatch.syspath_prepend(str(OPS))
    before = set(sys.modules)
    import bench

    yield bench
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("bench", "benchmark"):
            del sys.modules[name]


def case(bench, **changes):
    names = dict(shapes="small_decoder", batch=1, dtype="float32", locations="local", device="cpu")
    return bench.Case(**(names | {"entry": "operator", "direction": "forward"} | changes))


def test_rows_of_the_command(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, str(OPS / "bench.py"), "--shapes", "small_decoder", "--paths", "weighted_rows"]
    command += ["--directions", "both", "--entries", "operator", "--repetitions", "2", "--json", str(file)]
    environment = os.environ | {"MS_DEFORM_ATTN_COMPILE": "0", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    rows = json.loads(file.read_text())
    assert [row["path"] for row in rows] == ["reference", "weighted_rows"]
    for row in rows:
        assert row["device"] == "cpu" and row["shapes"] == "small_decoder" and row["direction"] == "both"
        assert row["threads"] == 1 and row["batch"] == 1 and row["dtype"] == "float32"
        assert row["median_s"] > 0 and row["lower_bound_s"] > 0
        assert row["peak_bytes"] >= 0 if sys.platform == "linux" else row["peak_bytes"] is None
    assert rows[0]["ratio_to_reference"] == 1 and rows[1]["ratio_to_reference"] > 0
    assert sum(line.startswith("| small_decoder | 1 | float32 | both | 1 |") for line in run.stdout.splitlines()) == 2


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("entry", ["operator", "fused"])
def test_everybody_agrees_and_a_wrong_path_is_named(direction, entry, bench):
    this = case(bench, direction=direction, entry=entry)
    inputs = bench.make_inputs(this)
    group = [one for one in bench.chosen_contestants("cpu", "float32", None) if one.enters(this)]
    reference = group[0]
    slightly = getattr(reference, entry)
    wrong = reference._replace(name="wrong", **{entry: lambda *arguments: 1.001 * slightly(*arguments)})
    good, complaints = bench.agreeing(this, inputs, [*group, wrong])
    assert good == group
    assert len(complaints) == 1 and complaints[0].startswith("wrong differs from the reference by 1.0e-03")


def test_formulations_to_choose_from_agree(bench):
    this = case(bench, shapes="small_encoder", locations="uniform", batch=2)
    names = ["grid_sample", "embedding_bag"]
    assert not bench.agreeing(this, bench.make_inputs(this), bench.chosen_contestants("cpu", "float32", names))[1]


def test_unknown_names_are_refused(bench):
    with pytest.raises(SystemExit, match="--paths names cuda; cpu with float32 has reference, "):
        bench.chosen_contestants("cpu", "float32", ["cuda"])


def test_counted_bytes(bench):
    """An image of 800x1333 with its 22,223 cells: value, output, locations 22.8 MB each, weights 11.4 MB."""
    this = case(bench, shapes="encoder")
    inputs = bench.make_inputs(this)
    assert bench.unique_bytes(this, inputs) == 22223 * 4 * (3 * 256 + 128)
    assert bench.gathered_bytes(this, inputs) == 22223 * 128 * 4 * 32 * 4
    both = this._replace(direction="both")
    assert bench.unique_bytes(both, inputs) == 22223 * 4 * (2 * (3 * 256 + 128) + 2 * 256 + 128)
    limits = bench.Limits(copy=1e9, gather=1e10)
    assert bench.lower_bound(this, inputs, limits) == pytest.approx(22223 * 128 * 4 * 32 * 4 / 1e10)
    few = case(bench, shapes="decoder")
    assert bench.unique_bytes(few, bench.make_inputs(few)) < 22223 * 4 * 256  # not all of value is read


def test_location_gradients_are_compared_where_rounding_decides_nothing(bench):
    this = case(bench)
    inputs = bench.make_inputs(this)
    centres = torch.full_like(inputs.locations, 1.5 / 16)
    smooth = bench.smooth(inputs._replace(locations=centres))
    assert not smooth[:, :, :, 0].any() and smooth.shape == centres.shape  # level 0 is 16 cells wide
    assert bench.smooth(inputs).float().mean() > 0.95
