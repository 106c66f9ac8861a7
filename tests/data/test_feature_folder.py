"""Features that are being computed: nothing is lost, nothing is mixed."""

import json

import numpy as np
import pytest

from lightning_xai.data.feature_folder import FeatureFolder, read_words, words_of
from lightning_xai.data.node_features import BoxFeatures, ImageFeatures
from lightning_xai.data.scene_graph_files import read_samples
from lightning_xai.data.vocabulary import Vocabulary

pytest.importorskip("h5py")
BOXES = np.array([[0, 0, 9, 9], [5, 5, 7, 8], [1, 2, 3, 4]])
IMAGE, BOX = (
    {"network": "a", "weights": "a.pth", "sha256": "1"},
    {"network": "b", "weights": "b.pth", "boxes": "inclusive"},
)


@pytest.fixture
def folder(tmp_path) -> FeatureFolder:
    return new(tmp_path)


def new(root) -> FeatureFolder:
    return FeatureFolder(root, "images", "boxes")


def image_features(folder, split) -> ImageFeatures:
    return ImageFeatures(folder.names_file(split), folder.image_folder / f"{split}_ft.npy")


def rows(*values):
    return np.array(values, np.float32)[:, None].repeat(2, 1)


def test_boxes_are_added_to_those_that_are_there(folder):
    assert folder.missing_boxes("im", BOXES).tolist() == BOXES.tolist()
    folder.add_boxes("im", BOXES[:2], rows(1, 2), (60, 80))
    assert folder.missing_boxes("im", BOXES).tolist() == [[1, 2, 3, 4]]
    folder.add_boxes("im", BOXES[2:], rows(3), (60, 80))
    assert not len(folder.missing_boxes("im", BOXES))
    stored = BoxFeatures(folder.boxes)
    assert stored.vectors("im", [tuple(box) for box in BOXES]).tolist() == [[1, 1], [2, 2], [3, 3]]
    assert stored.size("im") == (60, 80)
    with pytest.raises(ValueError, match=r"is of a picture of 80 x 60 pixels \(w x h\), not of 40 x 30; remove it"):
        folder.add_boxes("im", BOXES + 1, rows(4, 5, 6), (30, 40))


def test_a_damaged_file_is_computed_anew(folder):
    folder.add_boxes("im", BOXES, rows(1, 2, 3), (60, 80))
    BoxFeatures(folder.boxes).path("im").write_bytes(b"damaged")
    assert len(folder.missing_boxes("im", BOXES)) == 3
    folder.add_boxes("im", BOXES, rows(1, 2, 3), (60, 80))
    assert not len(folder.missing_boxes("im", BOXES))


def test_a_split_is_put_together_and_extended(folder, tmp_path):
    assert not folder.has_image("b")
    for number, name in enumerate("ba"):
        folder.add_image(name, rows(number)[0])
    folder.finish("trn", ["b.jpg", "a.png"], [("b", "0"), ("a", "0"), ("b", "1")])
    features = image_features(folder, "trn")
    assert features.vector("a").tolist() == [1, 1] and features.file_name("a") == "a.png"
    assert read_samples(folder.samples_file("trn")) == [("b", "0"), ("a", "0"), ("b", "1")]
    assert folder.listed("trn") == (["b.jpg", "a.png"], [("b", "0"), ("a", "0"), ("b", "1")])
    assert folder.listed("val") == (None, None)
    assert [file.name for file in folder.image_folder.iterdir()] == ["trn_ft.npy"]  # no trace of the way there
    again = new(tmp_path)
    assert again.has_image("a") and not again.has_image("c")
    again.add_image("c", rows(2)[0])
    again.finish("trn", ["a.png", "c.png"], [("a", "0"), ("c", "0")])
    assert image_features(again, "trn").vector("c").tolist() == [2, 2]
    assert again.image("b").tolist() == [0, 0]  # of no split any more, and not lost
    again.finish("val", ["b.jpg"], [("b", "1")])  # a part of what another split had
    assert image_features(again, "val").vector("b").tolist() == [0, 0]
    with pytest.raises(LookupError, match="no feature of image 'd'"):
        again.finish("val", ["d.jpg"], [("d", "1")])


def test_ending_anywhere_leaves_no_row_under_another_name(folder, tmp_path, monkeypatch):
    from lightning_xai.data import feature_folder

    for number, name in enumerate("abcd"):
        folder.add_image(name, rows(number)[0])
    folder.finish("trn", ["a.jpg", "b.jpg", "c.jpg"], [("a", "0")])
    real, left = feature_folder.write_array, 0

    def ends(file, array):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        real(file, array)

    monkeypatch.setattr(feature_folder, "write_array", ends)
    names, number = ["d.jpg", "a.jpg", "b.jpg"], {name: float(place) for place, name in enumerate("abcd")}
    for steps in range(6):
        left = steps
        try:
            new(tmp_path).finish("trn", names, [("a", "0")])
        except KeyboardInterrupt:
            after = new(tmp_path)
            assert all(after.image(name)[0] == number[name] for name in "abcd")
            continue
        break
    assert steps > 2 and [image_features(folder, "trn").vector(name)[0] for name in "dab"] == [3, 0, 1]
    assert new(tmp_path).image("c")[0] == 2


def test_lists_of_other_features_stay(folder, tmp_path):
    folder.add_image("a", rows(1)[0])
    folder.finish("trn", ["a.jpg"], [("a", "0")])
    other = FeatureFolder(tmp_path, "others", "boxes")
    for name in "ab":
        other.add_image(name, rows(2)[0])
    with pytest.raises(ValueError, match=r"images/trn_ft\.npy is in the order of .*another name than 'trn'"):
        other.finish("trn", ["b.jpg", "a.jpg"], [("a", "0")])
    assert image_features(folder, "trn").vector("a").tolist() == [1, 1]
    other.finish("trn", ["a.jpg"], [("a", "0"), ("a", "1")])
    assert image_features(other, "trn").vector("a").tolist() == [2, 2] and other.image("b").tolist() == [2, 2]


def test_features_of_one_kind_only(folder, tmp_path):
    folder.claim(IMAGE, BOX)
    folder.claim({**IMAGE, "sha256": "9"}, BOX)  # nothing is there yet
    folder.claim(IMAGE, BOX)
    folder.add_image("im", rows(1)[0])
    folder.add_boxes("im", BOXES, rows(1, 2, 3), (60, 80))
    folder.claim({**IMAGE, "weights": "moved.pth"}, BOX)
    with pytest.raises(ValueError, match=r"images holds features with sha256 '1' \(moved.pth\), not '9' \(a.pth\)"):
        folder.claim({**IMAGE, "sha256": "9"}, BOX)
    with pytest.raises(ValueError, match=r"boxes holds features with boxes 'inclusive' \(b.pth\), not 'exclusive'"):
        folder.claim(IMAGE, {**BOX, "boxes": "exclusive"})
    (folder.box_folder / "features.json").unlink()
    with pytest.raises(ValueError, match=r"boxes holds features that came from elsewhere"):
        folder.claim(IMAGE, BOX)


def test_regions_are_copied_once(folder, tmp_path):
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    file = graphs / "im.json"
    file.write_text('{"0": {"phrase": "a"}}')
    folder.keep_regions(graphs, "im")
    folder.keep_regions(graphs, "im")
    folder.keep_regions(folder.regions, "im")
    file.write_text('{"1": {}, "0": {"phrase": "a"}}')
    folder.keep_regions(graphs, "im")  # a region more
    assert (folder.regions / "im.json").read_text() == file.read_text()
    for other in ('{"1": {}}', '{"1": {}, "0": {"phrase": "b"}}'):
        before, _ = (folder.regions / "im.json").read_text(), file.write_text(other)
        with pytest.raises(ValueError, match=r"im\.json has another region '0', or none, than .*; remove "):
            folder.keep_regions(graphs, "im")
        assert (folder.regions / "im.json").read_text() == before


def test_words_are_never_replaced(folder, tmp_path):
    assert folder.vocabulary() is None
    words = words_of(["a dog on a mat", "a cat on a mat", "", "zebra"], min_count=2)
    assert words.words == ("<BOS>", "<EOS>", "<UNK>", "a", "mat", "on")
    folder.write_vocabulary(words)
    folder.write_vocabulary(words)
    assert folder.vocabulary().words == words.words
    with pytest.raises(ValueError, match="has another vocabulary of 6 words, not these 4; remove its int2word"):
        folder.write_vocabulary(Vocabulary.of_words(["a"]))
    assert json.loads((folder.annotations / "word2int.json").read_text())["mat"] == 4
    for name in ("int2word.npy", "word2int.json"):
        assert read_words(folder.annotations / name).words == words.words
    (folder.annotations / "int2word.npy").unlink()
    assert folder.vocabulary().words == words.words
    with pytest.raises(FileNotFoundError, match=r"none\.npy"):
        read_words(tmp_path / "none.npy")
