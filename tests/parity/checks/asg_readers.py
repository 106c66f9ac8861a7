"""Scene graphs read from files of the published layout, as samples and batches."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from reference_arrays import tolerate_stated

from checks import check
from lightning_xai.data.abstract_graph import EDGE_TYPES
from lightning_xai.data.node_features import BoxFeatures, ImageFeatures, write_box_features
from lightning_xai.data.scene_graph import SceneGraphs, collate_scene_graphs
from lightning_xai.data.vocabulary import Vocabulary


def write_files(case, folder: Path) -> None:
    """The case's images, regions and features as files."""
    regions = case.info["regionfiles"]
    pairs = [name.rsplit("_", 1) for name in case.info["strings"]["names"]]
    np.save(folder / "samples.npy", np.array(pairs))
    np.save(folder / "names.npy", np.array([f"{image}.jpg" for image in regions]))
    np.save(folder / "features.npy", case.inputs["mp_ft"].numpy())
    (folder / "word2int.json").write_text(json.dumps(case.config["word2int"]))
    for image, of_image in regions.items():
        (folder / f"{image}.json").write_text(json.dumps(of_image))
        boxes, features = (case.inputs[f"{what}_{image}"].numpy() for what in ("boxes", "features"))
        write_box_features(folder, image, boxes, features, (480, 640))


@check("sa3/asg_readers")
def readers(case):
    tolerate_stated(case)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_files(case, folder)
        vocabulary = Vocabulary.read_json(folder / "word2int.json")
        data = SceneGraphs(
            folder / "samples.npy",
            folder,
            ImageFeatures(folder / "names.npy", folder / "features.npy"),
            BoxFeatures(folder),
            vocabulary,
            max_nodes=case.config["max_attn_len"],
            max_words=case.config["max_words_in_sent"],
            inclusive=bool(case.config["pixel_reduce"]),
        )
        samples = [data[index] for index in range(len(data))]
        references = data.references()
        data.box_features.close()
    trimmed = collate_scene_graphs(samples)
    padded = collate_scene_graphs(samples, case.config["max_attn_len"], case.config["max_words_in_sent"])
    for output in case.outputs:
        reader, field = output.split("_", 1)
        batch = trimmed if reader == "flat" else padded
        ours = {**batch["graph"], "caption_ids": batch["captions"], "caption_masks": batch["caption_masks"]}
        case.compare(output, ours[field])
    strings = case.info["strings"]
    for what, ours in {
        "names": list(padded["names"]),
        "ref_sents": references,
        "flow_node_names": [list(nodes.names) for nodes in padded["nodes"]],
    }.items():
        if ours != strings[what]:
            case.failures.append(f"{what}: {ours} instead of {strings[what]}")
    if len(EDGE_TYPES) != case.config["num_rels"]:
        case.failures.append(f"{len(EDGE_TYPES)} types of edges instead of {case.config['num_rels']}")
