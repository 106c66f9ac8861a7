"""Recall of image-text retrieval."""

import pytest
import torch

from lightning_xai.evaluate.retrieval import RetrievalScores


def scores(image, text, texts=None, index=None, batches=1):
    made = RetrievalScores()
    texts = texts or [f"text {i}" for i in range(len(image))]
    index = torch.arange(len(image)) if index is None else index
    for part in torch.arange(len(image)).chunk(batches):
        made.update(index[part], image[part], text[part], [texts[i] for i in part])
    return made.compute()


def test_known_ranks():
    """Text 0 fits image 0 and, better than its own, image 1; image 2 has its own."""
    image = torch.eye(3)
    text = torch.tensor([[1.0, 2, 0], [0, 1, 0.1], [0, 0, 1]])
    found = scores(image, text)
    # image 0: own cosine 0.45, no other above; image 1: own 0.995, text 0 0.89; all first
    assert found["image_to_text_r1"] == 1.0
    assert found["text_to_image_r1"] == pytest.approx(2 / 3)  # text 0 is nearer to image 1
    assert found["text_to_image_r5"] == 1.0


def test_against_a_sorted_list():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(40, 6, generator=generator) for _ in range(2))
    cosines = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=2)
    expected = {}
    for name, table in (("image_to_text", cosines), ("text_to_image", cosines.T)):
        places = [row.argsort(descending=True).tolist().index(i) for i, row in enumerate(table)]
        expected |= {f"{name}_r{rank}": sum(place < rank for place in places) / 40 for rank in (1, 5)}
    assert scores(image * 7, text) == pytest.approx(expected)
    assert scores(image, text, batches=7) == pytest.approx(expected)


def test_the_same_words_are_no_rivals_and_a_pair_counts_once():
    image = torch.eye(2)
    text = torch.tensor([[0.0, 1], [0, 1]])
    assert scores(image, torch.tensor([[0.1, 1], [1, 0.1]]))["image_to_text_r1"] == 0.0
    assert scores(image, torch.tensor([[0.1, 1], [1, 0.1]]), texts=["a star", "a star"])["image_to_text_r1"] == 1.0
    repeated = scores(image[[0, 1, 1]], text[[0, 1, 0]], index=torch.tensor([0, 1, 1]))
    assert repeated == scores(image, text)


@pytest.mark.parametrize("value", [1.0, 0.0, float("nan")])
def test_features_that_tell_nothing_apart_find_nothing(value):
    assert set(scores(torch.full((9, 4), value), torch.full((9, 4), value)).values()) == {0.0}
    half = torch.tensor([[1.0, 0], [1, 0], [0, 1]])  # the first two pictures are alike, and so are their texts
    assert scores(half, half)["image_to_text_r1"] == pytest.approx(1 / 3)


def test_nothing_to_score():
    with pytest.raises(ValueError, match="no image was evaluated"):
        RetrievalScores().compute()
