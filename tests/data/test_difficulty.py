import json

import numpy as np
import pytest

from lightning_xai.data.difficulty import image_difficulties, image_id, read_names, without_hard, write_names


def task(image, rating, word=1):
    name = f"p1_COCO_val2014_{image:012d}__caption_{word}_attr_result.jpg"
    return {"metadata": {"filename": name}, "response": {"annotations": {"Relevance Rating": rating}}}


TASKS = [
    task(7, "1.5"), task(353409, "5"), task(7, "2.5"), task(12, "4"), task(99, ""), task(353409, "4.4"),
    task(5, " 4.0 "),
    {"metadata": {"filename": "p1_COCO_val2014_000000000001__caption_1_attr_result.jpg"}},
    {"metadata": {"filename": "p1_COCO_val2014_000000000001__x.jpg"}, "response": None},
]  # fmt: skip


def test_scores_from_easy_to_hard():
    scores = image_difficulties(TASKS)
    assert list(scores) == ["353409", "12", "5", "7"]  # 12 before 5: equal, seen first
    assert list(scores.values()) == pytest.approx([0.94, 0.8, 0.8, 0.4])


def test_image_numbers():
    assert image_id("p1_COCO_val2014_000000353409__caption_8_attr_result.jpg") == "353409"
    assert image_id("p1_COCO_val2014_000000000000__caption_8_attr_result.jpg") == "0"
    for name in ("cat.jpg", "p1_COCO_val2014_cat__caption.jpg"):
        with pytest.raises(ValueError, match="should be named like p1_COCO_val2014_000000353409__caption"):
            image_id(name)


@pytest.mark.parametrize("rating", ["good", "nan", "4,5", ["4"], "50", "-1"])
def test_a_rating_that_is_no_number_is_named(rating):
    with pytest.raises(ValueError, match=r"task p1_COCO.* should be a number from 1 to 5"):
        image_difficulties([task(1, rating)])


def test_hard_images_leave_a_split():
    names = ["COCO_val2014_000000000007.jpg", "COCO_val2014_000000353409.jpg", "12", "000000000042"]
    scores = image_difficulties(TASKS)
    assert without_hard(names, scores, 0.41).tolist() == [False, True, True, True]
    assert without_hard(names, scores, 0.41, keep_unrated=False).tolist() == [False, True, True, False]
    assert without_hard(names, scores, 0.0, keep_unrated=False).tolist() == [True, True, True, False]
    with pytest.raises(ValueError, match="threshold=3"):
        without_hard(names, scores, 3)
    with pytest.raises(ValueError, match=r"'cat\.jpg' of the split has no number"):
        without_hard(["cat.jpg"], scores, 0.5)


def test_names_survive_both_formats(tmp_path):
    names = ["COCO_val2014_000000000007.jpg", "é"]
    for file in (tmp_path / "val_sub_names.npy", tmp_path / "val_sub_names.txt"):
        write_names(file, names)
        assert read_names(file) == names
    np.save(tmp_path / "numbers.npy", np.array([7, 12]))
    np.save(tmp_path / "bytes.npy", np.array([b"a", b"b"]))
    assert read_names(tmp_path / "numbers.npy") == ["7", "12"] and read_names(tmp_path / "bytes.npy") == ["a", "b"]
    np.save(tmp_path / "objects.npy", np.array(["a", None], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"objects\.npy: cannot be read without unpickling"):
        read_names(tmp_path / "objects.npy")
    np.save(tmp_path / "matrix.npy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="should be a list of names"):
        read_names(tmp_path / "matrix.npy")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_names(tmp_path / "none.npy")


def test_tasks_are_json(tmp_path):
    (tmp_path / "tasks.json").write_text(json.dumps(TASKS))
    from lightning_xai.data.crowd_tasks import read_crowd_tasks

    assert len(image_difficulties(read_crowd_tasks(tmp_path / "tasks.json"))) == 4
