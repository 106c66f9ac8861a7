"""convert-arrays, as a user types it."""

import numpy as np
import pytest

from lightning_xai.cli import main


def objects(file, entries):
    np.save(file, np.array(entries, dtype=object), allow_pickle=True)
    return file


def test_files_are_converted_in_place_and_kept(tmp_path, capsys):
    names = objects(tmp_path / "trn_names.npy", [["im0", "7"], ["im1", "12"]])
    before = names.read_bytes()
    assert main(["convert-arrays", str(names)]) == 0
    assert np.load(names, allow_pickle=False).tolist() == [["im0", "7"], ["im1", "12"]]
    assert (tmp_path / "trn_names.npy.objects").read_bytes() == before
    said = capsys.readouterr().out
    assert "convert only files whose source you trust" in said and "<U3 (2, 2)" in said


def test_into_another_folder(tmp_path):
    names = objects(tmp_path / "words.npy", ["a", "b"])
    before = names.read_bytes()
    assert main(["convert-arrays", str(names), "--out", str(tmp_path / "plain" / "arrays")]) == 0
    assert np.load(tmp_path / "plain" / "arrays" / "words.npy").tolist() == ["a", "b"]
    assert names.read_bytes() == before


def test_what_is_refused_is_named_and_the_rest_converted(tmp_path):
    good, bad = objects(tmp_path / "good.npy", ["a"]), objects(tmp_path / "bad.npy", [{"a": 1}])
    before = bad.read_bytes()
    with pytest.raises(SystemExit, match=r"convert-arrays: .*bad\.npy is not converted: it holds dict"):
        main(
            [
                "convert-arrays",
                str(bad),
                str(good),
            ]
        )
    assert np.load(good).tolist() == ["a"] and bad.read_bytes() == before
    with pytest.raises(SystemExit, match=r"none\.npy"):
        main(["convert-arrays", str(tmp_path / "none.npy")])
