"""Pairs of a picture and a text as batches."""

import torch
from torch.utils.data import Dataset

from lightning_xai.data.image_text_module import ImageTextModule, collate_pairs


class Pairs(Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, key):
        index = key[1] if isinstance(key, tuple) else key
        return torch.full((3, 8, 8), index, dtype=torch.uint8), {"text": f"text {index}", "index": 100 + index}


class Module(ImageTextModule):
    def dataset(self, split):
        return Pairs()


def test_batches_hold_pairs():
    batch = collate_pairs([Pairs()[2], Pairs()[5]])
    assert batch["images"][:, 0, 0, 0].tolist() == [2, 5]
    assert batch["texts"] == ("text 2", "text 5") and batch["index"].tolist() == [102, 105]


def test_training_is_shuffled_by_epoch_and_evaluation_is_in_order():
    module = Module(image_size=8, batch_size=3, num_workers=0)
    loader = module.train_dataloader()
    orders = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        orders.append([index for batch in loader for index in batch["index"].tolist()])
        assert len(set(orders[-1])) == 6  # the seventh does not fill a batch
    assert orders[0] != orders[1]
    for made in (module.val_dataloader(), module.test_dataloader(), module.predict_dataloader()):
        assert [batch["index"].tolist() for batch in made] == [[100, 101, 102], [103, 104, 105], [106]]
