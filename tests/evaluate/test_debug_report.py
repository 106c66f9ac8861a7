import csv
import json
import math

import numpy as np
import pytest
from scipy import stats

from lightning_xai.evaluate.debug_report import (
    BEFORE,
    Judged,
    RepairTable,
    broken,
    by_class,
    json_text,
    mean_and_interval,
    repaired,
)

LABELS = np.array([0, 0, 0, 1, 1, 1])
OLD = Judged(LABELS, np.array([0, 1, 1, 1, 1, 0]))  # wrong: 1, 2, 5
NEW = Judged(LABELS, np.array([0, 0, 1, 0, 1, 1]))  # wrong: 2, 3


def test_repaired_and_broken_are_counted_image_by_image():
    assert OLD.accuracy == 0.5 and NEW.accuracy == pytest.approx(4 / 6)
    assert repaired(OLD, NEW) == pytest.approx(2 / 3)
    assert broken(OLD, NEW) == pytest.approx(1 / 3)
    assert (repaired(OLD, OLD), broken(OLD, OLD)) == (0.0, 0.0)


def test_accuracy_follows_from_what_is_repaired_and_broken():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 5, 200)
    old, new = (Judged(labels, draw.integers(0, 5, 200)) for _ in range(2))
    change = repaired(old, new) * (1 - old.accuracy) - broken(old, new) * old.accuracy
    assert new.accuracy - old.accuracy == pytest.approx(change)


def test_without_failures_or_hits_there_is_nothing_to_count():
    right, wrong = Judged(LABELS, LABELS), Judged(LABELS, 1 - LABELS)
    assert math.isnan(repaired(right, OLD)) and math.isnan(broken(wrong, OLD))


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="6 images judged before"):
        repaired(OLD, Judged(LABELS[::-1], LABELS))


def test_numbers_by_class():
    numbers = by_class(OLD, NEW, ["cat", "dog", "emu"])
    assert sorted(numbers) == ["cat", "dog"]
    assert numbers["cat"] == {
        "before": pytest.approx(1 / 3),
        "after": pytest.approx(2 / 3),
        "repaired": 0.5,
        "broken": 0.0,
    }
    assert numbers["dog"]["repaired"] == 1.0 and numbers["dog"]["broken"] == 0.5


def test_the_interval_is_student_s():
    values = [0.5, 0.6, 0.55, 0.7]
    mean, half = mean_and_interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    assert mean_and_interval([0.5])[0] == 0.5 and math.isnan(mean_and_interval([0.5])[1])
    assert mean_and_interval([0.5, math.nan])[0] == 0.5
    assert math.isnan(mean_and_interval([math.nan])[0])


TABLE = RepairTable(
    (0, 1, 2),
    {
        BEFORE: {"test": [0.9, 0.92, 0.91], "heldout": [0.3, 0.32, 0.31]},
        "S-Random": {"test": [0.9, 0.9, 0.9], "heldout": [0.5, 0.6, 0.4], "repaired": [0.3, 0.4, 0.2]},
        "A": {"test": [0.9, 0.9, 0.9], "heldout": [0.61, 0.7, 0.51], "repaired": [0.4, 0.5, 0.3]},
        "B": {"test": [0.9, 0.9, 0.9], "heldout": [0.7, 0.3, 0.5], "repaired": [math.nan, 0.1, 0.3]},
        "C": {"test": [0.9, 0.9, 0.9], "heldout": [0.4, 0.49, 0.31], "repaired": [0.2, 0.2, 0.2]},
    },
)


def test_strategies_are_compared_seed_by_seed():
    """A is above S-Random by the same amount in each seed, though both differ much from seed to seed."""
    assert TABLE.verdict("A", "S-Random") == "better"
    assert TABLE.verdict("B", "S-Random") == "not told apart"
    assert TABLE.verdict("C", "S-Random") == "worse"
    mean, half = TABLE.gain("A", "S-Random")
    interval = stats.ttest_rel([0.61, 0.7, 0.51], [0.5, 0.6, 0.4]).confidence_interval(0.95)
    assert (mean - half, mean + half) == (pytest.approx(interval[0]), pytest.approx(interval[1]))
    one = RepairTable((0,), {name: {"heldout": of["heldout"][:1]} for name, of in TABLE.runs.items()})
    assert one.verdict("A", "S-Random") == "one seed" and "gain" not in one.text("S-Random")


def test_the_table_as_text():
    lines = TABLE.text("S-Random").splitlines()
    assert lines[0].split("  ")[0] == "strategy" and lines[0].endswith("held-out, gain over S-Random")
    assert lines[2].startswith("before ") and "91.0% ± 2.5" in lines[2] and "–" in lines[2]
    assert "+19.0% ± 23.7, not told apart" in lines[3] and lines[4].endswith("+10.7% ± 1.4, better")
    assert "gain over before" in TABLE.text() and "S-Random " not in TABLE.text().splitlines()[0]
    assert "3 seeds" in TABLE.note() and "95%" in TABLE.note()
    assert "without a correction" in TABLE.note(gains=True) and "gain" not in TABLE.note()
    assert "gain" not in RepairTable((0,), {}).note(gains=True)
    assert "true class" in RepairTable((0,), {BEFORE: {"energy": [0.5]}}).note() and "true class" not in TABLE.note()


def test_a_class_without_failures_is_null_in_json():
    right = Judged(LABELS, LABELS)
    text = json_text({"A": {0: by_class(right, NEW, ["cat", "dog"])}})
    assert "NaN" not in text and json.loads(text)["A"]["0"]["cat"] == {
        "before": 1.0, "after": pytest.approx(2 / 3), "repaired": None, "broken": pytest.approx(1 / 3)
    }  # fmt: skip


def test_the_table_in_files(tmp_path):
    table, summary = TABLE.write(tmp_path / "run")
    rows = list(csv.reader(table.open()))
    assert rows[0] == ["strategy", "seed", "test", "heldout", "repaired"] and len(rows) == 1 + 5 * 3
    assert rows[1] == ["before", "0", "0.9", "0.3", ""]
    content = json.loads(summary.read_text())
    assert content["strategies"]["B"]["repaired"]["by_seed"] == [None, 0.1, 0.3]
    assert content["strategies"]["A"]["heldout"]["mean"] == pytest.approx(0.60667, abs=1e-4)
