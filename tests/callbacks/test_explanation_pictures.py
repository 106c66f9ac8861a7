"""A sample of a batch as a picture: what is shown of it, and of what the methods say."""

import numpy as np
import pytest
import torch

from lightning_xai.callbacks import explanation_pictures
from lightning_xai.callbacks.explanation_pictures import (
    draw_sample,
    map_streams,
    said_words,
    shown_picture,
    word_streams,
)
from lightning_xai.explain.explain_batch import BatchExplanations
from lightning_xai.explain.explainable import Explained, Prediction
from lightning_xai.explain.explanation import Explanation
from lightning_xai.explain.streams import FeatureLevels, ObjectQueries, Stream, Words
from lightning_xai.explain.targets import Targets

MARKS = ("[", "]")


class Task:
    class_names = ("cat", "dog")

    def prediction(self, outputs, batch, sample):
        return Prediction(("dog 0.90",), torch.tensor([[0.0, 0, 8, 8], [8, 8, 16, 24]]), ("cat 0.60", "dog 0.90"))


def explained():
    """Two targets of the second sample and one of the first, of a detector that also reads a text."""
    samples = torch.tensor([1, 0, 1])
    targets = Targets(torch.arange(3.0), samples, {"query": torch.tensor([4, 5, 6])})
    layouts = {
        "image": FeatureLevels(((4, 4),)),
        "query": ObjectQueries(7),
        "text": Words((("[", "a ", "cat ", "]"), ("[", "dog ", "]")), MARKS),
    }
    relevance = {name: torch.zeros(3, count) for name, count in (("image", 16), ("query", 7), ("text", 4))}
    relevance["image"][0, 5] = 1.0
    relevance["text"] += torch.arange(4.0)
    streams = {name: Stream(name, layout) for name, layout in layouts.items()}
    explanation = Explanation(relevance, streams, samples, targets.scores)
    boxes = torch.tensor([[8.0, 8, 16, 24], [0, 0, 8, 8], [0, 0, 8, 8]])
    names = ("query 4: dog", "query 5: cat", "query 6: cat")
    found = Explained(targets, names, torch.tensor([1, 0, 0]), boxes, torch.tensor([1, 0, 0]))
    return BatchExplanations({}, found, {"ours": explanation})


@pytest.fixture
def batch():
    """The second sample has 24 x 16 pixels in a batch of 32 x 32."""
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[1, 24:], mask[1, :, 16:] = True, True
    images = torch.full((2, 3, 32, 32), 90, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0, 8, 8], [8, 8, 16, 24]])
    return {"images": images, "mask": mask, "targets": [{"boxes": boxes}, {"boxes": boxes}]}


def test_padding_is_cut_off(batch):
    assert shown_picture(batch, 0).shape == (32, 32, 3)
    assert shown_picture(batch, 1).shape == (24, 16, 3)


def test_streams_by_what_they_are_and_words_without_marks():
    (explanation,) = explained().by_method.values()
    assert map_streams(explanation) == ["image"] and word_streams(explanation) == ["text"]
    assert said_words(explanation, 1, "text") == [("a ", 1.0), ("cat ", 2.0)]
    assert said_words(explanation, 0, "text") == [("dog ", 1.0)]


def test_what_is_handed_to_the_sheet(batch, monkeypatch):
    handed = []
    monkeypatch.setattr(explanation_pictures, "draw_explanations", lambda *given: handed.append(given))
    draw_sample(Task(), batch, explained(), 1, "sample 1")
    image, targets, lines, boxes, labels, truth, caption, title = handed[0]
    assert image.shape == (24, 16, 3) and lines == ("dog 0.90",) and labels == ("cat 0.60", "dog 0.90")
    assert boxes.shape == truth.shape == (2, 4) and caption == "input" and title == "sample 1"
    assert [target.name for target in targets] == ["query 4: dog", "query 6: cat"]
    first = targets[0]
    assert first.box.tolist() == [8, 8, 16, 24] and first.truth.tolist() == [8, 8, 16, 24]
    assert first.maps["ours"].shape == (24, 16)
    # cell (1, 1) of 4 x 4 covers the pixels 8 to 16 of the padded 32 x 32
    assert np.unravel_index(first.maps["ours"].argmax(), (24, 16)) in [(11, 11), (12, 12), (11, 12), (12, 11)]
    assert first.words == {"ours": [("dog ", 1.0)]}


def test_captions_say_what_is_known(batch, monkeypatch):
    handed = []
    monkeypatch.setattr(explanation_pictures, "draw_explanations", lambda *given: handed.append(given[-2:]))
    nothing = BatchExplanations({}, None, {}, "nothing stands out")
    plain = {"images": batch["images"]}
    draw_sample(Task(), {**plain, "labels": torch.tensor([1, -1])}, nothing, 0, "t")
    draw_sample(Task(), {**plain, "labels": torch.tensor([1, -1])}, nothing, 1, "t")
    draw_sample(Task(), {**plain, "texts": ("a cat", "a dog")}, nothing, 1)
    assert handed == [
        ("input: dog", "t\nnothing stands out"),
        ("input", "t\nnothing stands out"),
        ("input: a dog", "nothing stands out"),
    ]


def test_the_picture(batch):
    picture = draw_sample(Task(), batch, explained(), 1, "sample 1")
    assert picture.dtype == np.uint8 and picture.std() > 5
