import json

import pytest

from lightning_xai.data.concepts import (
    ClassConcepts,
    class_concepts,
    concept_of,
    normalise,
    read_concepts,
    scene_graphs,
    write_concepts,
)
from lightning_xai.data.crowd_tasks import KINDS, CrowdAnswer


def answer(image, *terms, rating=4.0):
    return CrowdAnswer("t", image, KINDS[len(terms) - 1], terms, rating)


@pytest.mark.parametrize(
    "term, expected",
    [
        ("The  Beds", "bed"), ("a dining_Table", "dining table"), ("glasses", "glasses"), ("glass", "glass"),
        ("buses", "bus"), ("bus", "bus"), ("Men", "man"), ("benches", "bench"), ("dishes", "dish"), ("cities", "city"),
        ("ties", "tie"), ("leaves", "leaf"), ("tomatoes", "tomato"), ("shoes", "shoe"),
        ("kitchen shelves", "kitchen shelf"),
        ("trees.", "tree"), ("the", ""), ("an apple", "apple"), ("Two cats", "two cats"), ("3 beds", "3 beds"),
        ("another", "another"), ("boxes", "box"), ("houses", "house"), ("dresses", "dress"), ("cactus", "cactus"),
    ],
)  # fmt: skip
def test_normalised_terms(term, expected):
    assert normalise(term) == expected


def test_the_words_of_an_answer():
    assert concept_of(answer("x", "The Buses")) == "bus"
    assert concept_of(answer("x", "Hydrants", "Red")) == "red hydrant"
    assert concept_of(answer("x", "red", "hydrant"), objects=["hydrant"]) == "red hydrant"
    assert concept_of(answer("x", "hydrant", "red"), objects=["hydrant"]) == "red hydrant"
    assert concept_of(answer("x", "men", "Riding", "the horses")) == "man riding horse"
    assert concept_of(answer("x", "on", "the", "sidewalk")) == "on sidewalk"
    assert concept_of(answer("x", "the")) == ""


def test_a_scene_graph_holds_each_concept_once_with_its_highest_rating():
    answers = [answer("x", "bed", rating=2.0), answer("x", "Beds", rating=4.0), answer("x", "lamp", rating=None)]
    answers += [answer("x", "white", "bed", rating=1.0), answer("y", "the")]
    assert scene_graphs(answers) == {"x": {"bed": 4.0, "lamp": None, "white bed": 1.0}, "y": {}}


def test_valid_and_confounded_concepts_are_counted_over_failures():
    model = [
        answer("1", "window", rating=5.0), answer("1", "bed", rating=1.0),
        answer("2", "window", rating=3.0), answer("2", "pillow", rating=4.0),
        answer("3", "window", rating=2.9), answer("3", "lamp", rating=None),
        answer("lost", "window", rating=5.0),
        answer("4", "sea", rating=5.0),
    ]  # fmt: skip
    human = [
        answer("1", "bed"), answer("1", "pillow"),
        answer("2", "bed"), answer("2", "pillow"),
        answer("3", "bed"), answer("3", "lamp"),
        answer("4", "boat"), answer("other class only", "x"),
    ]  # fmt: skip
    class_of = {"1": "bedroom", "2": "bedroom", "3": "bedroom", "4": "harbour", "5": "harbour", "lost": "attic"}
    found = class_concepts(model, human, class_of)
    # 1: bed is rated 1 (missed), pillow not seen; 2: bed missed, pillow seen; 3: bed missed, the lamp unrated: missed
    assert found == {
        "bedroom": ClassConcepts({"bed": 3.0, "lamp": 1.0, "pillow": 1.0}, {"window": 2.0}),
        "harbour": ClassConcepts({"boat": 1.0}, {"sea": 1.0}),
    }
    assert list(found["bedroom"].valid) == ["bed", "lamp", "pillow"]
    assert class_concepts(model, human, class_of, keep=1)["bedroom"].valid == {"bed": 3.0}


def test_concepts_survive_their_file(tmp_path):
    concepts = {"bedroom": ClassConcepts({"bed": 3.0, "pillow": 1.5}, {"window": 2.0}), "harbour": ClassConcepts()}
    write_concepts(tmp_path / "c.json", concepts)
    assert read_concepts(tmp_path / "c.json") == concepts
    (tmp_path / "c.json").write_text(
        json.dumps({"bedroom": {"valid": ["bed", "pillow"]}, "bar": {"valid": {"a": 1, "b": 2}}})
    )
    read = read_concepts(tmp_path / "c.json")
    assert read["bedroom"].valid == {"bed": 1.0, "pillow": 1.0} and list(read["bar"].valid) == ["b", "a"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("[", "not valid JSON"),
        ("[]", "should map each class"),
        ('{"a": {"good": {}}}', "should map each class"),
        ('{"a": {"valid": 3}}', "valid of class 'a' should be a mapping"),
        ('{"a": {"valid": {"b": 0}}}', "weight of 'b' should be a positive number"),
        ('{"a": {"valid": {"b": true}}}', "weight of 'b' should be a positive number"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, content, message):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_concepts(tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match="give the concepts of each class"):
        read_concepts(tmp_path / "none.json")
