import json
import random

import numpy as np
import pytest

from lightning_xai.data.coco_annotations import read_annotations, read_categories, unannotated


def write(path, **changes):
    content = {
        "images": [
            {"id": 7, "file_name": "b.jpg", "width": 100, "height": 50},
            {"id": 2, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 9, "file_name": "c.jpg"},
        ],
        "annotations": [box(7, [1, 2, 3, 4], id=0, area=5.5), box(2, [0, 0, 10, 10], id=1), box(7, [5, 5, 9, 9], id=2)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 18, "name": "dog"}],
        **changes,
    }
    path.write_text(json.dumps(content))
    return path


def box(image_id, bbox, category_id=18, **more):
    return {"image_id": image_id, "bbox": bbox, "category_id": category_id, **more}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "instances.json"


def test_boxes_are_grouped_by_image_in_the_order_of_ids(file):
    read = read_annotations(write(file))
    assert read.image_ids.tolist() == [2, 7, 9] and read.file_names.tolist() == ["a.jpg", "b.jpg", "c.jpg"]
    assert read.shapes.tolist() == [[30, 40], [50, 100], [0, 0]]
    boxes, labels, area, iscrowd = read.of_image(1)
    assert boxes.tolist() == [[1, 2, 3, 4], [5, 5, 9, 9]] and labels.tolist() == [18, 18]
    assert area.tolist() == [5.5, 81] and iscrowd.tolist() == [0, 0]
    assert [len(column) for column in read.of_image(2)] == [0, 0, 0, 0]
    assert read.faults == {} and read.categories == {1: "cat", 18: "dog"}


def test_agrees_with_pycocotools(tmp_path):
    from pycocotools.coco import COCO

    draw = random.Random(0)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 99, "height": 99} for i in draw.sample(range(500), 40)]
    annotations = [
        box(draw.choice(images)["id"], [draw.uniform(0, 50) for _ in range(4)], draw.choice([1, 18]), id=i, area=i / 7,
            iscrowd=int(draw.random() < 0.1), segmentation=[[1, 2, 3, 4, 5, 6]])
        for i in range(1, 300)
    ]  # fmt: skip
    path = write(tmp_path / "x.json", images=images, annotations=annotations)
    read, coco = read_annotations(path), COCO(path)
    for index, image_id in enumerate(sorted(coco.imgs)):
        theirs = coco.loadAnns(coco.getAnnIds(image_id))
        boxes, labels, area, iscrowd = read.of_image(index)
        assert read.image_ids[index] == image_id
        assert np.allclose(boxes, np.array([entry["bbox"] for entry in theirs]).reshape(-1, 4))
        assert labels.tolist() == [entry["category_id"] for entry in theirs]
        assert np.allclose(area, [entry["area"] for entry in theirs])
        assert iscrowd.tolist() == [entry["iscrowd"] for entry in theirs]


GOOD = box(7, [1, 2, 3, 4])


@pytest.mark.parametrize(
    "entry, fault, kept",
    [
        (box(7, [1, 2, float("nan"), 4]), "boxes with NaN or infinity left out", 1),
        (box(7, [1, 2, float("inf"), 4]), "boxes with NaN or infinity left out", 1),
        (box(7, [1, 2, -3, 4]), "boxes with a negative side left out", 1),
        (box(7, [1, 2, 3]), "boxes that are not four numbers left out", 1),
        (box(7, None), "boxes that are not four numbers left out", 1),
        (box(7, [1, 2, 3, "wide"]), "boxes that are not four numbers left out", 1),
        (box(7, [1, 2, 3, 4], category_id=5), "boxes of an unknown category id left out", 1),
        (box(7, [1, 2, 3, 4], category_id=None), "boxes of an unknown category id left out", 1),
        (box(8, [1, 2, 3, 4]), "boxes of an unknown image id left out", 1),
        (box([7], [1, 2, 3, 4]), "boxes of an unknown image id left out", 1),
        ("text", "annotations that are no object", 1),
        (box(7, [1, 2, 3, 4], area="large"), "areas that are no number replaced by the box's", 2),
        (box(7, [1, 2, 0, 4]), "boxes without area inside their image not trained on", 2),
        (box(7, [100, 2, 30, 4]), "boxes without area inside their image not trained on", 2),
        (box(7, [-30, 2, 30, 4]), "boxes without area inside their image not trained on", 2),
        (box(7, [90, 2, 30, 4]), "boxes clipped to their image", 2),
    ],
)  # fmt: skip
def test_a_faulty_box_is_counted_with_an_example(file, entry, fault, kept):
    read = read_annotations(write(file, annotations=[GOOD, entry]))
    assert len(read.boxes) == kept and list(read.faults) == [fault]
    count, example = read.faults[fault]
    assert count == 1 and example
    assert f"1 {fault} (first: " in read.summary() and "\n" not in read.summary()


def test_crowds_and_boxes_without_area_are_not_trainable(file):
    annotations = [GOOD, box(7, [1, 2, 3, 4], iscrowd=1), box(7, [1, 2, 3, 0])]
    assert read_annotations(write(file, annotations=annotations)).trainable().tolist() == [True, False, False]


def test_images_without_annotations(file):
    read = read_annotations(write(file, annotations=[]))
    assert len(read) == 3 and len(read.boxes) == 0 and "3 images (3 without objects), 0 boxes" in read.summary()


def test_leaving_out_images(file):
    read = read_annotations(write(file)).without_images(np.array([False, True, False]))
    assert read.image_ids.tolist() == [2, 9] and read.first.tolist() == [0, 1, 1]
    assert read.of_image(0)[0].tolist() == [[0, 0, 10, 10]] and len(read.boxes) == 1


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"images": []}, '"images" should be a list of at least one'),
        ({"images": None}, '"images" should be'),
        ({"images": [{"id": 1}]}, r'images\[0\] = {"id": 1} should have an integer "id" and a "file_name"'),
        ({"images": [{"id": "x", "file_name": "a.jpg"}]}, r"images\[0\]"),
        ({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}, r"images\[0\] and images\[1\].*id 1"),
        ({"categories": []}, '"categories" should be'),
        ({"categories": [{"id": -1, "name": "x"}]}, r"categories\[0\]"),
        ({"categories": [{"id": 10**9, "name": "x"}]}, "0 to 100000"),
        ({"categories": [{"id": 1, "name": "x"}, {"id": 1, "name": "y"}]}, "category id 1 is both 'x' and 'y'"),
        ({"annotations": {}}, '"annotations" should be a list'),
    ],
)
def test_a_wrong_file_is_one_error_that_names_the_entry(file, changes, words):
    with pytest.raises(ValueError, match=rf"instances\.json: .*{words}"):
        read_annotations(write(file, **changes))


@pytest.mark.parametrize(
    "content, words",
    [
        (b'{"images": [\n1,,]}', "no valid JSON at line 2, column 3"),
        (b"", "no valid JSON at line 1"),
        (b"[1, 2]", "not a list"),
        (b"\x1f\x8b\x08", "no valid UTF-8"),
    ],
)
def test_malformed_json(file, content, words):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"instances\.json: .*{words}"):
        read_annotations(file)


def test_missing_file(file):
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        read_annotations(file)


def test_read_categories_passes_over_another_list_of_that_name(file):
    text = '{"info": {"categories": ["of the licence"]}, ' + write(file).read_text()[1:]
    file.write_text(text)
    assert read_categories(file) == {1: "cat", 18: "dog"} == read_annotations(file).categories


def test_read_categories_of_a_list_longer_than_its_window(file):
    categories = [{"id": i, "name": "x" * 100_000} for i in range(15)]
    assert len(read_categories(write(file, categories=categories))) == 15


def test_unannotated(tmp_path):
    read = unannotated([tmp_path / "b.jpg", tmp_path / "a.jpg"])
    assert len(read) == 2 and len(read.of_image(1)[0]) == 0 and read.file_names[0] == str(tmp_path / "b.jpg")
