import json

import pytest

from lightning_xai.data.crowd_tasks import image_of, parse_terms, read_answers, read_crowd_tasks


def task(description, rating="4", kind="object", filename="p1_Places365_val_00001__attr.jpg", number="t1"):
    answer = {"Content Type Identification": kind, "Content Description": description, "Relevance Rating": rating}
    return {"task_id": number, "metadata": {"filename": filename}, "response": {"annotations": answer}}


@pytest.mark.parametrize(
    "text, terms",
    [
        ("street", ("street",)),
        (" (red,hydrant) ", ("red", "hydrant")),
        ("(on,the, sidewalk)", ("on", "the", "sidewalk")),
        ("man, riding a horse", ("man", "riding a horse")),
        ("(park,on,parking lot)", ("park", "on", "parking lot")),
        ("(bed)", ("bed",)),
    ],
)
def test_terms(text, terms):
    assert parse_terms(text) == terms


@pytest.mark.parametrize("text", ["", "()", "(a,,b)", "(a,b,c,d)", "(a,b),(c,d)", "  "])
def test_what_is_no_terms(text):
    with pytest.raises(ValueError, match="should be 1 to 3 terms"):
        parse_terms(text)


def test_answers_are_read_and_the_rest_is_put_aside_with_its_reason():
    tasks = [
        task("bed", "4.5"),
        task("(red,bed)", "", kind=""),
        task("(man,on,bed)", kind="object"),
        task("bed", 0),
        task("(a,b,c,d)", number="t4"),
        task("bed", "very", number="t5"),
        {"task_id": "t6", "status": "pending", "metadata": {"filename": "p1_x__y.jpg"}},
        {"task_id": "t7", "metadata": {"filename": "p1_x__y.jpg"}, "response": {"annotations": {}}},
    ]
    answers, aside = read_answers(tasks)
    assert [(a.kind, a.terms, a.rating) for a in answers] == [
        ("object", ("bed",), 4.5),
        ("attribute", ("red", "bed"), None),
        ("relationship", ("man", "on", "bed"), 4.0),
        ("object", ("bed",), 0.0),
    ]
    assert {a.image for a in answers} == {"Places365_val_00001"}
    assert len(aside) == 2 and aside[0].startswith("task t4: ") and aside[1].startswith("task t5: ")


@pytest.mark.parametrize(
    "name, image",
    [
        ("p1_COCO_val2014_000000353409__caption_8_attr_result.jpg", "COCO_val2014_000000353409"),
        ("p12_g0000001__7_star.png", "g0000001"),
        ("kitchen 7.jpg", "kitchen 7"),
    ],
)
def test_a_picture_s_name_says_its_image(name, image):
    assert image_of({"metadata": {"filename": name}}) == image


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ('{"docs": []}', "should hold a list of tasks, but holds a dict"),
        ('[{"metadata": {"filename": "x"}}, {"metadata": {}}]', "task 1 has no metadata.filename"),
        ("[3]", "task 0 has no metadata.filename"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, content, message):
    (tmp_path / "tasks.json").write_text(content)
    with pytest.raises(ValueError, match=rf"tasks\.json: {message}"):
        read_crowd_tasks(tmp_path / "tasks.json")
    with pytest.raises(FileNotFoundError, match=r"give a tasks\.json"):
        read_crowd_tasks(tmp_path / "none.json")


def test_a_file_of_tasks(tmp_path):
    tasks = [task("bed")]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    assert read_crowd_tasks(tmp_path / "tasks.json") == tasks
