"""Loaders over the published layout."""

import pytest

from lightning_xai.data.scene_graph_module import SceneGraphModule


def module(folder, **arguments) -> SceneGraphModule:
    return SceneGraphModule(folder.root, **{"batch_size": 2, "num_workers": 0, **arguments})


def test_evaluation_takes_each_sample_once(scene_graphs):
    data = module(scene_graphs)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert [name for batch in loader for name in batch["names"]] == ["im0_7", "im1_3", "im0_8"]
    assert data.val_set is data.dataset("val") and len(data.vocabulary) == 12


def test_training_is_shuffled_by_seed_and_epoch(scene_graphs):
    def names(data, epoch):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [name for batch in loader for name in batch["names"]]

    data = module(scene_graphs, batch_size=1)
    orders = [names(data, epoch) for epoch in range(6)]
    assert len({tuple(order) for order in orders}) > 1 and all(len(set(order)) == 3 for order in orders)
    assert [names(module(scene_graphs, batch_size=1), epoch) for epoch in range(6)] == orders
    with pytest.raises(ValueError, match="3 samples do not fill one batch of batch_size=4"):
        module(scene_graphs, batch_size=4).train_dataloader()


def test_workers_read_the_same(scene_graphs):
    data = module(scene_graphs)
    data.val_set[0]  # a file is open before the workers start
    alone = list(data.val_dataloader())
    data.num_workers = 2
    for ours, theirs in zip(alone, data.val_dataloader(), strict=True):
        assert ours["names"] == theirs["names"] and ours["graph"]["attn_fts"].equal(theirs["graph"]["attn_fts"])


def test_references_are_the_cleaned_ones_where_there_are_any(scene_graphs):
    data = module(scene_graphs)
    assert data.references("val")["im1_3"] == ["the hot sun"]
    cleaned = {"im0": {"7": {"phrase": "one"}, "8": {"phrase": "two"}}, "im1": {"3": {"phrase": "three"}}}
    scene_graphs.write_json(scene_graphs.annotations / "cleaned_val_region_descriptions.json", cleaned)
    assert data.references("val") == {"im0_7": ["one"], "im1_3": ["three"], "im0_8": ["two"]}
    assert data.references("test")["im1_3"] == ["the hot sun"]


def test_places_and_splits(scene_graphs, tmp_path):
    data = module(scene_graphs, pictures=tmp_path)
    assert data.picture("val", 1) == tmp_path / "im1.jpg" and module(scene_graphs).picture("val", 1) is None
    apart = SceneGraphModule(
        annotations=scene_graphs.annotations,
        image_features=scene_graphs.image_features,
        box_features=scene_graphs.box_features,
        test_split="val_sub",
    )
    with pytest.raises(FileNotFoundError, match=r"val_sub_names\.npy: no such file"):
        apart.test_dataloader()
    with pytest.raises(ValueError, match="neither root nor annotations"):
        SceneGraphModule()
    with pytest.raises(FileNotFoundError, match="no such folder; name the image_features"):
        module(scene_graphs, image_feature_name="other")
    with pytest.raises(ValueError, match=r"boxes is .inclusive.*not 'half'"):
        module(scene_graphs, boxes="half")
    with pytest.raises(LookupError, match="box"):
        module(scene_graphs, boxes="exclusive").val_set[0]


def test_word2int_alone_is_a_vocabulary(scene_graphs):
    (scene_graphs.annotations / "int2word.npy").unlink()
    assert module(scene_graphs).vocabulary.words == tuple(scene_graphs.WORDS)
