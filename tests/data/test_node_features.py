"""Features of images and boxes: found exactly, read lazily, missing ones named."""

import os
import pickle

import numpy as np
import pytest

from lightning_xai.data.node_features import BoxFeatures, ImageFeatures, write_box_features


def image_features(folder, rows=2, names=("a.jpg", "b.old.jpg")) -> ImageFeatures:
    np.save(folder / "names.npy", np.array(names))
    np.save(folder / "ft.npy", np.arange(rows * 3, dtype=np.float64).reshape(rows, 3))
    return ImageFeatures(folder / "names.npy", folder / "ft.npy")


def test_rows_belong_to_names(tmp_path):
    features = image_features(tmp_path)
    assert features.vector("b").tolist() == [3, 4, 5] and features.vector("b").dtype == np.float32
    assert features.file_name("b") == "b.old.jpg" and features.size == 3
    with pytest.raises(LookupError, match=r"ft\.npy has no feature of image 'c' among its 2"):
        features.vector("c")


def test_a_copy_for_a_worker_carries_no_array(tmp_path):
    features = image_features(tmp_path)
    features.vector("a")
    copy = pickle.loads(pickle.dumps(features))
    assert copy._array is None and copy.vector("a").tolist() == [0, 1, 2]


def test_names_and_rows_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(3, 3\), but .* names 2 images"):
        image_features(tmp_path, rows=3)


@pytest.fixture
def boxes(tmp_path) -> BoxFeatures:
    pytest.importorskip("h5py")
    corners = np.array([[0, 0, 9, 9], [5, 5, 7, 8], [1, 2, 3, 4]])
    for number, name in enumerate(("im/0", "im1", "im2")):
        write_box_features(tmp_path, name, corners, np.full((3, 2), 10.0 * number) + np.arange(3)[:, None], (60, 80))
    return BoxFeatures(tmp_path, open_files=2)


def test_two_pictures_of_one_id(tmp_path):
    np.save(tmp_path / "names.npy", np.array(["a.jpg", "b.jpg", "a.jpg"]))
    np.save(tmp_path / "ft.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
    ImageFeatures(tmp_path / "names.npy", tmp_path / "ft.npy")
    np.save(tmp_path / "names.npy", np.array(["a.1.jpg", "b.jpg", "a.2.jpg"]))
    with pytest.raises(ValueError, match=r"names 'a\.1\.jpg' and 'a\.2\.jpg': ids end at the first dot"):
        ImageFeatures(tmp_path / "names.npy", tmp_path / "ft.npy")


def test_boxes_are_found_by_their_corners(boxes):
    asked = [(1, 2, 3, 4), (0, 0, 9, 9), (1, 2, 3, 4)]
    assert boxes.vectors("im/0", asked).tolist() == [[2, 2], [0, 0], [2, 2]]
    assert boxes.path("im/0").name == "im_0.jpg.hdf5"


def test_a_file_is_opened_once_and_few_stay_open(boxes, monkeypatch):
    import h5py

    opened = []
    real = h5py.File
    monkeypatch.setattr(h5py, "File", lambda path, mode: (opened.append(path.name), real(path, mode))[1])
    for name in ("im/0", "im1", "im/0", "im2", "im/0", "im1"):
        boxes.vectors(name, [(0, 0, 9, 9)])
    assert opened == [f"{name}.jpg.hdf5" for name in ("im_0", "im1", "im2", "im1")]
    assert len(boxes._open) == 2 and pickle.loads(pickle.dumps(boxes))._open == {}
    boxes.close()
    assert not boxes._open


def test_a_fork_opens_its_own_files(boxes):
    boxes.vectors("im1", [(0, 0, 9, 9)])
    before = dict(boxes._open)
    boxes._process = os.getppid()  # as it is found after a fork
    boxes.vectors("im1", [(0, 0, 9, 9)])
    assert boxes._open["im1"][0] is not before["im1"][0]


def test_missing_features_name_image_and_box(boxes):
    with pytest.raises(LookupError, match=r"no feature of image 'im1', box \(0, 0, 10, 10\) .* among its 3"):
        boxes.vectors("im1", [(0, 0, 9, 9), (0, 0, 10, 10)])
    with pytest.raises(FileNotFoundError, match=r"im9\.jpg\.hdf5: no such file; the boxes of image 'im9'"):
        boxes.vectors("im9", [(0, 0, 9, 9)])


def test_files_of_another_kind(boxes, tmp_path):
    import h5py

    (tmp_path / "bad.jpg.hdf5").write_bytes(b"no hdf5")
    with pytest.raises(ValueError, match=r"bad\.jpg\.hdf5: not a file in HDF5 format"):
        boxes.vectors("bad", [])
    with h5py.File(tmp_path / "odd.jpg.hdf5", "w") as file:
        file.create_dataset("odd.jpg", data=np.zeros((2, 3))).attrs["boxes"] = np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"'odd\.jpg' .* but: features of shape \(2, 3\) for 3 boxes"):
        boxes.vectors("odd", [])
    with h5py.File(tmp_path / "none.jpg.hdf5", "w"):
        pass
    with pytest.raises(ValueError, match=r"should hold a dataset 'none\.jpg'"):
        boxes.vectors("none", [])


def test_without_h5py(boxes, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r"need h5py: pip install 'lightning_xai\[captions\]'"):
        boxes.vectors("im1", [(0, 0, 9, 9)])
