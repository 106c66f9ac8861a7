import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader

from lightning_xai.data.detection_batch import collate_detection
from lightning_xai.data.embedded_detection import EmbeddedDetection, EmbeddedDetectionModule, shared_zeros
from lightning_xai.data.render_scene import render
from lightning_xai.data.scene import SceneRecipe

RECIPE = SceneRecipe(height=64, width=80, shapes=("ring", "heart", "star"), max_size=28.0, max_objects=4)


def same(first, second) -> bool:
    (image_a, target_a), (image_b, target_b) = first, second
    return torch.equal(image_a, image_b) and all(
        torch.equal(value, target_b[name]) for name, value in target_a.items() if name != "ground_truth"
    )


def module(**changes) -> EmbeddedDetectionModule:
    return EmbeddedDetectionModule(
        **{"recipe": RECIPE, "n_train": 24, "n_val": 10, "n_test": 6, "batch_size": 4} | changes
    )


def samples(loader) -> list:
    return [
        (image, target) for batch in loader for image, target in zip(batch["images"], batch["targets"], strict=True)
    ]


def test_a_sample_is_what_the_scene_holds():
    dataset = EmbeddedDetection(RECIPE, "val", 12)
    for index in range(12):
        image, target = dataset[index]
        scene = dataset.scene(index)
        drawing = render(scene)
        assert np.array_equal(image.numpy(), drawing.pixels)
        assert np.array_equal(target["boxes"].numpy(), drawing.boxes)
        assert target["area"].tolist() == [mask.sum() for mask in drawing.visible]
        assert [dataset.class_names[label] for label in target["labels"]] == [item.shape for item in scene.objects]
        assert target["iscrowd"].tolist() == [0] * len(scene.objects)
        assert (target["image_id"].item(), target["size"].tolist(), target["orig_size"].tolist()) == (
            index,
            [64, 80],
            [64, 80],
        )


def test_masks_are_what_is_seen_of_each_object():
    dataset = EmbeddedDetection(RECIPE, "val", 6, masks=True)
    for index in [*range(6), 2]:
        _, target = dataset[index]
        drawing = render(dataset.scene(index))
        masks = target["ground_truth"]["masks"]
        assert masks.dtype == torch.bool and np.array_equal(masks.numpy(), drawing.visible)
        assert torch.equal(masks.sum((1, 2)).float(), target["ground_truth"]["area"])
    unpickled = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(unpickled[2][1]["ground_truth"]["masks"], dataset[2][1]["ground_truth"]["masks"])
    assert "ground_truth" not in EmbeddedDetection(RECIPE, "train", 6, masks=True)[0][1]
    assert "masks" not in EmbeddedDetection(RECIPE, "val", 6)[0][1]["ground_truth"]
    assert "masks" in module(masks=True).dataset("test")[0][1]["ground_truth"]


def test_types_are_those_of_every_detection_data_set():
    image, target = EmbeddedDetection(RECIPE, "val", 1)[0]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 64, 80))
    types = {"boxes": torch.float32, "labels": torch.int64, "area": torch.float32, "iscrowd": torch.int64}
    for name, dtype in types.items():
        assert target[name].dtype == target["ground_truth"][name].dtype == dtype
        assert torch.equal(target[name], target["ground_truth"][name])
    for name in ("image_id", "size", "orig_size"):
        assert target[name].dtype == torch.int64
    assert target["image_id"].ndim == 0
    assert "ground_truth" not in EmbeddedDetection(RECIPE, "train", 1)[0][1]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_kept_scene_is_the_drawn_one(split):
    kept = EmbeddedDetection(RECIPE, split, 8, flip=0.5)
    drawn = EmbeddedDetection(RECIPE, split, 8, flip=0.5, cache=False)
    first = [kept[index] for index in range(8)]
    for image, target in first:  # what a user does to his sample stays his
        image.zero_()
        target["boxes"].zero_()
    assert all(same(kept[index], drawn[index]) for index in range(8))


def test_splits_and_seeds_differ():
    images = [EmbeddedDetection(RECIPE, split, 1, seed)[0][0] for split in ("train", "val", "test") for seed in (0, 1)]
    assert len({image.numpy().tobytes() for image in images}) == 6


def test_boxes_and_load_readable_are_those_of_the_drawn_scene():
    dataset = EmbeddedDetection(RECIPE, "train", 12, flip=1.0)
    for index in range(12):
        boxes, shape = dataset.boxes(index)
        drawing = render(dataset.scene(index))
        assert np.array_equal(boxes.numpy(), drawing.boxes) and shape == drawing.pixels.shape[1:]
        assert same(dataset.load_readable(index), dataset.load(index))
    boxes.zero_()
    assert dataset.boxes(11)[0].any()  # what is kept is not what was handed out


def test_a_flip_mirrors_picture_and_boxes_together():
    upright, mirrored = EmbeddedDetection(RECIPE, "train", 10), EmbeddedDetection(RECIPE, "train", 10, flip=1.0)
    for index in range(10):
        (image, target), (flipped, flipped_target) = upright[index], mirrored[index]
        assert torch.equal(flipped, image.flip(2))
        masks = np.ascontiguousarray(render(upright.scene(index)).visible[:, :, ::-1])
        for mask, box in zip(masks, flipped_target["boxes"], strict=True):
            columns = np.nonzero(mask.any(0))[0]
            assert box[[0, 2]].tolist() == [columns.min(), columns.max() + 1]
        assert torch.equal(target["boxes"][:, [1, 3]], flipped_target["boxes"][:, [1, 3]])


def test_flips_depend_on_seed_epoch_and_index_alone():
    def flipped(dataset, epoch, order):
        plain = EmbeddedDetection(RECIPE, "train", 40, seed=dataset.seed)
        return {index: not torch.equal(dataset[epoch, index][0], plain[index][0]) for index in order}

    one, other = EmbeddedDetection(RECIPE, "train", 40, flip=0.5), EmbeddedDetection(RECIPE, "train", 40, flip=0.5)
    first = flipped(one, 0, range(40))
    assert 8 < sum(first.values()) < 32
    assert flipped(one, 1, range(40)) != first
    torch.manual_seed(99)
    assert flipped(other, 0, reversed(range(40))) == first


def test_validation_is_never_flipped():
    split = EmbeddedDetection(RECIPE, "val", 6, flip=1.0)
    assert all(same(split[index], EmbeddedDetection(RECIPE, "val", 6)[index]) for index in range(6))


def test_workers_change_nothing_and_fill_the_shared_memory():
    alone, helped = module(num_workers=0), module(num_workers=2)
    loader, reference = helped.train_dataloader(), alone.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        reference.sampler.set_epoch(epoch)
        theirs, ours = samples(loader), samples(reference)
        assert len(theirs) == 24
        assert all(same(a, b) for a, b in zip(theirs, ours, strict=True))
    if loader.multiprocessing_context is None and torch.multiprocessing.get_start_method() == "fork":
        assert (helped.dataset("train")._cache.counts > 0).all()


def test_a_pickled_data_set_draws_the_same():
    dataset = EmbeddedDetection(RECIPE, "train", 5, flip=0.5)
    kept = dataset[3]
    copied = pickle.loads(pickle.dumps(dataset))
    assert same(copied[3], kept) and same(copied[3], kept)
    assert len(pickle.dumps(dataset)) < 5000


def test_shared_zeros_take_what_is_written():
    array = shared_zeros((3, 4), np.float32)
    assert array.shape == (3, 4) and not array.any()
    array[1, 2] = 5
    assert array.sum() == 5


def test_every_training_scene_once_an_epoch_and_another_order_each_time():
    loader = module().train_dataloader()
    orders = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        orders.append([int(target["image_id"]) for _, target in samples(loader)])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    assert orders[0] != orders[1]


def test_processes_share_the_scenes():
    def trainer(rank):
        loop = SimpleNamespace(
            restarting=False,
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0, started=0)),
            epoch_loop=SimpleNamespace(batch_progress=None),
        )
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        return SimpleNamespace(global_rank=rank, world_size=2, fit_loop=loop, strategy=strategy)

    seen = {"train": [], "val": []}
    for rank in range(2):
        data = module()
        data.trainer = trainer(rank)
        seen["train"] += [int(target["image_id"]) for _, target in samples(data.train_dataloader())]
        seen["val"] += [int(target["image_id"]) for _, target in samples(data.val_dataloader())]
    assert sorted(seen["train"]) == list(range(24))
    assert sorted(seen["val"]) == list(range(10))


def test_evaluation_splits_come_whole_and_in_order():
    data = module(eval_batch_size=4)
    assert [int(target["image_id"]) for _, target in samples(data.val_dataloader())] == list(range(10))
    assert [int(target["image_id"]) for _, target in samples(data.test_dataloader())] == list(range(6))
    assert [len(batch["images"]) for batch in data.predict_dataloader()] == [4, 2]


def test_class_names_are_the_recipes_shapes():
    data = module()
    assert (data.class_names, data.num_classes) == (["ring", "heart", "star"], 3)


def test_knobs_are_reached_from_the_command_line():
    parser = ArgumentParser()
    parser.add_class_arguments(EmbeddedDetectionModule, "data")
    arguments = ["--data.recipe.noise=2", "--data.recipe.shapes=[circle,ring]", "--data.n_train=32"]
    parsed = parser.parse_args(arguments)
    data = EmbeddedDetectionModule(**(vars(parsed.data) | {"recipe": SceneRecipe(**vars(parsed.data.recipe))}))
    assert (data.recipe.noise, data.class_names, data.sizes["train"]) == (2, ["circle", "ring"], 32)


def test_a_training_split_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="n_train=3 scenes do not fill one batch of batch_size=4 on 1 process"):
        module(n_train=3).train_dataloader()


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="'val' was asked for 0"):
        EmbeddedDetection(RECIPE, "val", 0)
    with pytest.raises(ValueError, match="flip is a probability between 0 and 1, but is 2"):
        EmbeddedDetection(RECIPE, "train", 3, flip=2)
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"scene {index} does not exist: 'val' holds the scenes 0 to 2"):
            EmbeddedDetection(RECIPE, "val", 3)[index]


def test_batches_are_padded_by_nothing():
    batch = next(iter(DataLoader(EmbeddedDetection(RECIPE, "val", 4), batch_size=4, collate_fn=collate_detection)))
    assert tuple(batch["images"].shape) == (4, 3, 64, 80)
    assert not batch["mask"].any()
