"""Scenes with sentences."""

import pytest
import torch

from lightning_xai.data.embedded_captions import EmbeddedCaptions, EmbeddedCaptionsModule
from lightning_xai.data.scene import SceneRecipe
from lightning_xai.data.scene_captions import captions

RECIPE = SceneRecipe(height=32, width=32, min_objects=2, max_objects=2, max_size=14)


def test_evaluation_says_the_first_sentence_and_training_any_by_epoch():
    val, train = EmbeddedCaptions(RECIPE, "val", 6), EmbeddedCaptions(RECIPE, "train", 6)
    image, target = val[3]
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
    assert target == {"text": captions(val.scenes.scene(3))[0].text, "index": 3}
    said = {train[epoch, 3][1]["text"] for epoch in range(20)}
    assert len(said) > 1 and said <= set(train.texts(3))
    assert train[7, 3][1] == EmbeddedCaptions(RECIPE, "train", 6)[7, 3][1]


def test_every_word_is_in_the_vocabulary_and_batches_are_whole():
    module = EmbeddedCaptionsModule(RECIPE, n_train=10, n_val=5, captions=5, batch_size=4)
    batches = list(module.train_dataloader())
    assert [len(batch["texts"]) for batch in batches] == [4, 4]
    words = {word for batch in batches for text in batch["texts"] for word in text.replace(",", " , ").split()}
    assert words <= set(module.vocabulary)
    held = [batch["index"].tolist() for batch in module.val_dataloader()]
    assert held == [[0, 1, 2, 3], [4]]


def test_one_picture_with_texts():
    module = EmbeddedCaptionsModule(RECIPE)
    batch = module.picture_batch(torch.full((3, 50, 90), 7, dtype=torch.uint8), ["a star", "a heart"])
    assert batch["images"].shape == (2, 3, 32, 32) and batch["texts"] == ("a star", "a heart")
    assert batch["index"].tolist() == [0, 1]


def test_errors():
    with pytest.raises(ValueError, match="scenes of 32 x 64 pixels: images of pairs are square"):
        EmbeddedCaptionsModule(SceneRecipe(height=32, width=64, max_size=14))
    with pytest.raises(ValueError, match="4 samples do not fill one batch of batch_size=8 on 1 process"):
        EmbeddedCaptionsModule(RECIPE, n_train=4, batch_size=8).train_dataloader()
