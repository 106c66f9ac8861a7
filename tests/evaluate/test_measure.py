import torch

from lightning_xai.evaluate.measure import image_ids


def test_ids_of_both_kinds_of_batch():
    assert image_ids({"targets": [{"image_id": torch.tensor(7)}, {"image_id": torch.tensor(3)}]}) == [7, 3]
    assert image_ids({"index": torch.tensor([5, 2]), "labels": torch.tensor([0, 1])}) == [5, 2]
