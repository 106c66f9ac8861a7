"""The commands that turn crowd tasks into concepts and splits."""

import json

import numpy as np
import pytest
from PIL import Image

from lightning_xai.cli import main
from lightning_xai.data.concepts import ClassConcepts, read_concepts


def task(image, description, rating="", what="attr"):
    answer = {"Content Type Identification": "", "Content Description": description, "Relevance Rating": rating}
    return {"metadata": {"filename": f"p1_{image}__{what}.jpg"}, "response": {"annotations": answer}}


def write(file, tasks):
    file.write_text(json.dumps(tasks))
    return str(file)


def test_concepts_of_failures(tmp_path, capsys):
    for name, image in (("bedroom", "a_1"), ("bedroom", "b"), ("office", "c")):
        (tmp_path / "failures" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "failures" / name / f"{image}.png")
    model = [
        task("a_1", "windows", "5"),
        task("a_1", "(red,bed)", "2"),
        task("b", "the window", "3.5"),
        task("b", "a,,b", "1"),
    ]
    human = [task("a_1", "(bed,red)"), task("a_1", "bed"), task("b", "Beds")]
    words = ["--model_tasks", write(tmp_path / "m.json", model), "--human_tasks", write(tmp_path / "h.json", human)]
    words += ["--failures", str(tmp_path / "failures"), "--out", str(tmp_path / "new/concepts.json")]
    assert main(["debugset", "concepts", *words]) == 0
    said = capsys.readouterr()
    assert "content description 'a,,b'" in said.err and "put aside" in said.err
    assert "bedroom: valid bed (2), red bed (1); confounded window (2)" in said.out
    found = read_concepts(tmp_path / "new/concepts.json")
    assert found == {"bedroom": ClassConcepts({"bed": 2.0, "red bed": 1.0}, {"window": 2.0})}


def test_answers_on_other_pictures_are_named(tmp_path):
    (tmp_path / "failures/bedroom").mkdir(parents=True)
    tasks = write(tmp_path / "m.json", [task("elsewhere", "bed", "3")])
    words = [
        "--model_tasks",
        tasks,
        "--human_tasks",
        tasks,
        "--failures",
        str(tmp_path / "failures"),
        "--out",
        "x.json",
    ]
    with pytest.raises(SystemExit, match="whose images are called 'elsewhere'"):
        main(["debugset", "concepts", *words])


def test_images_that_tasks_cannot_tell_apart_or_do_not_mean(tmp_path, capsys):
    for name, image in (("bedroom", "1"), ("office", "2")):
        (tmp_path / "failures" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "failures" / name / f"{image}.png")
    words = ["--model_tasks", write(tmp_path / "m.json", [task("1", "lamp", "4"), task("7", "lamp", "4")])]
    words += ["--human_tasks", write(tmp_path / "h.json", [task("1", "bed")])]
    words += ["--failures", str(tmp_path / "failures"), "--out", str(tmp_path / "concepts.json")]
    assert main(["debugset", "concepts", *words]) == 0
    assert "1 images with answers are none of" in (said := capsys.readouterr().err) and "'7'" in said
    (tmp_path / "failures/office/2.png").rename(tmp_path / "failures/office/1.png")
    with pytest.raises(SystemExit, match=r"bedroom/1\.png and .*office/1\.png have one name"):
        main(["debugset", "concepts", *words])


@pytest.fixture
def rated(tmp_path):
    ratings = {"COCO_val2014_000000000007": "1", "COCO_val2014_000000000012": "4", "COCO_val2014_000000000099": ""}
    tasks = write(tmp_path / "tasks.json", [task(image, "x", rating) for image, rating in ratings.items()])
    np.save(tmp_path / "val_sub_names.npy", np.array([f"{image}.jpg" for image in ratings]))
    np.save(tmp_path / "val_sub_ft.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
    return ["debugset", "difficulty", "--tasks", tasks]


@pytest.mark.parametrize("flag, stay", [([], [1, 2]), (["--drop_unrated"], [1]), (["--threshold", "0.2"], [0, 1, 2])])
def test_the_hardest_leave_a_split_and_its_features(tmp_path, rated, flag, stay, capsys):
    split = ["--split", str(tmp_path / "val_sub_names.npy"), "--split_out", str(tmp_path / "val_sub_opt_names.npy")]
    features = ["--features", str(tmp_path / "val_sub_ft.npy"), "--features_out", str(tmp_path / "val_sub_opt_ft.npy")]
    assert main([*rated, *split, *features, *flag, "--out", str(tmp_path / "scores.json")]) == 0
    said = capsys.readouterr().out
    assert "12: 0.80\n7: 0.20\n" in said and f"{len(stay)} of 3 images stay" in said
    assert json.loads((tmp_path / "scores.json").read_text()) == {"12": 0.8, "7": 0.2}
    names = np.load(tmp_path / "val_sub_names.npy")
    assert np.array_equal(np.load(tmp_path / "val_sub_opt_names.npy"), names[stay])
    assert np.array_equal(np.load(tmp_path / "val_sub_opt_ft.npy")[:, 0], np.array(stay) * 2)


def test_what_does_not_fit_is_named(tmp_path, rated, capsys):
    np.save(tmp_path / "short.npy", np.zeros((2, 2)))
    split = ["--split", str(tmp_path / "val_sub_names.npy"), "--split_out", str(tmp_path / "out.npy")]
    with pytest.raises(SystemExit, match=r"short\.npy: 2 rows for the 3 names"):
        main([*rated, *split, "--features", str(tmp_path / "short.npy"), "--features_out", str(tmp_path / "f.npy")])
    assert not (tmp_path / "out.npy").exists()
    for words in (["--split", "a.npy"], ["--features", "a.npy", "--features_out", "b.npy"]):
        with pytest.raises(SystemExit):
            main([*rated, *words])
    assert "--split and --split_out belong together" in capsys.readouterr().err
