"""Reading and smoothing training logs."""

import json

import numpy as np
import pytest

from lightning_xai.draw.training_log import fields, interpolated, read_training_log, series, smoothed


def entry(epoch, **more):
    return {"epoch": epoch, "train_loss": 10.0 - epoch, **more}


def test_reads_folders_and_files_and_the_later_of_two_lines(tmp_path):
    lines = [json.dumps(entry(0)), json.dumps(entry(1)), "", json.dumps(entry(1, train_loss=3.0))]
    for name in ("log.txt", "log.jsonl"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_text("\n".join(lines) + "\n")
        assert read_training_log(folder) == read_training_log(folder / name) == [entry(0), entry(1, train_loss=3.0)]


def test_a_last_line_cut_off_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps(entry(0)) + '\n{"epoch": 1, "tra')
    with pytest.warns(UserWarning, match="last line is cut off"):
        assert read_training_log(tmp_path) == [entry(0)]


@pytest.mark.parametrize(("text", "line"), [('{"epoch": 0}\nnonsense\n', 2), ('{"loss": 1}\n', 1), ("[1]\n", 1)])
def test_a_wrong_line_is_named(tmp_path, text, line):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(ValueError, match=rf"log\.jsonl, line {line}: not the JSON object of an epoch"):
        read_training_log(tmp_path)


def test_no_log(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"give a run's folder with log\.jsonl or log\.txt"):
        read_training_log(tmp_path)
    (tmp_path / "log.txt").write_text("")
    with pytest.raises(ValueError, match="holds no epoch yet"):
        read_training_log(tmp_path)


def test_coco_numbers_leave_out_epochs_without_evaluation():
    numbers = [float(i) for i in range(12)]
    log = [entry(0, test_coco_eval_bbox=numbers), entry(1), entry(2, test_coco_eval_bbox=[n + 1 for n in numbers])]
    (ap50,) = series(log, "AP50")
    assert ap50.split == "test"
    assert ap50.epochs.tolist() == [0, 2]
    assert ap50.values.tolist() == [1, 2]
    assert series([entry(0)], "AP") == []
    assert fields(log)[:2] == ["AP", "AP50"]
    assert fields(log)[-1] == "loss"
    assert fields([entry(0)]) == ["loss"]


def test_a_field_has_a_curve_for_each_split_it_is_in():
    log = [entry(0, test_loss=5.0), entry(1), entry(2, test_loss=3.0)]
    train, test = series(log, "loss")
    assert train.values.tolist() == [10, 9, 8]
    assert (test.split, test.values.tolist()) == ("test", [5, 4, 3])


def test_interpolation_as_a_straight_line():
    values = np.array([np.nan, 1, np.nan, np.nan, 7, 2, np.nan])
    np.testing.assert_allclose(interpolated(values), [np.nan, 1, 3, 5, 7, 2, 2])


@pytest.mark.parametrize("com", [0.5, 2.5, 9.0])
def test_smoothing_is_the_weighted_mean_of_all_values_so_far(com):
    values = np.random.default_rng(0).random(20)
    decay = com / (1 + com)
    expected = [np.average(values[: t + 1], weights=decay ** np.arange(t, -1, -1)) for t in range(20)]
    np.testing.assert_allclose(smoothed(values, com), expected)
    np.testing.assert_array_equal(smoothed(values, 0), values)
    np.testing.assert_allclose(smoothed(np.array([np.nan, 2, 2]), com), [np.nan, 2, 2])


def test_negative_smoothing():
    with pytest.raises(ValueError, match="smoothing -1 is negative"):
        smoothed(np.ones(2), -1)
