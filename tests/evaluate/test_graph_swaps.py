"""Exchanged objects."""

import torch

from lightning_xai.evaluate.graph_swaps import names_exchanged, object_pair, with_objects_exchanged


def test_features_of_two_objects_change_places():
    types = torch.tensor([[0, 1, 1, 0, 1, 0, 2], [0, 1, 2, 0, 0, 0, 0], [0, 0, 0, 2, 0, 0, 0]])
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4, [1] * 4 + [0] * 3]).bool()
    features = torch.tensor([[1, 1, 1, 2, 2, 3, 9], [1, 1, 9, 0, 0, 0, 0], [1, 2, 3, 9, 0, 0, 0]])[..., None].float()
    graph = {"node_types": types, "attn_masks": mask, "attn_fts": features, "mp_fts": torch.zeros(3, 1)}
    swapped = with_objects_exchanged(graph)
    assert swapped["attn_fts"][..., 0].tolist() == [
        [2, 2, 2, 1, 1, 3, 9],
        [1, 1, 9, 0, 0, 0, 0],  # one object: padding, whose type is 0 too, is none
        [2, 1, 3, 9, 0, 0, 0],
    ]
    assert swapped["mp_fts"] is graph["mp_fts"] and features[0, 0, 0] == 1


def test_which_objects_are_told_apart():
    assert object_pair(("dog", "big", "cat", "by"), (0, 1, 0, 2)) == ("dog", "cat")
    assert object_pair(("dog", "dog", "cat"), (0, 0, 0)) is None and object_pair(("dog", "big"), (0, 1)) is None


def test_words_must_be_there_and_change_places():
    assert names_exchanged("a dog and a cat", "a cat and a dog", "dog", "cat")
    assert not names_exchanged("a dog and a cat", "a dog and a cat", "dog", "cat")
    assert not names_exchanged("a cat and a dog", "a dog and a cat", "dog", "cat")  # neither was obeyed
    assert not names_exchanged("a dog and a bird", "a cat and a dog", "dog", "cat")
    assert not names_exchanged("a dog and a catfish", "a cat and a dog", "dog", "cat")
    assert not names_exchanged("", "a cat and a dog", "dog", "cat")


def test_names_of_several_words_and_in_any_case():
    assert names_exchanged("a fire hydrant by a man", "a man by a fire hydrant", "Fire hydrant", "man")
    assert not names_exchanged("a fire by a hydrant", "a hydrant by a fire", "fire hydrant", "hydrant")
    assert not names_exchanged("a fire hydrant by a man", "a man by a hydrant", "fire hydrant", "man")
    assert object_pair(("Dog", "dog", "cat"), (0, 0, 0)) is None
