"""The numbers behind the views of deformable attention."""

import torch
from ms_deform_attn import sampling_locations

from checks import check
from lightning_xai.draw.sampling_points import weight_colours
from lightning_xai.explain.attention_map import level_maps
from lightning_xai.explain.query_evolution import query_evolution
from lightning_xai.explain.recording import DeformableRecord
from lightning_xai.explain.sampling_points import ImageFrame, sampling_points
from lightning_xai.explain.streams import Site


@check("deformable_detr/deform_views")
def deform_views(case):
    given = case.inputs
    query, level, head = given["selection"].tolist()
    width, height = given["image_wh"].tolist()
    frame = ImageFrame(*[(height, width)] * 3)

    shapes, logits = given["spatial_shapes"], given["attention_logits"]
    locations = sampling_locations(given["reference_points"][None], given["sampling_offsets"][None], shapes)
    weights = logits.flatten(-2).softmax(-1).view_as(logits)[None]
    case.compare("sampling_locations", locations[0])
    case.compare("attention_weights", weights[0])

    site = Site("cross_attn", "deformable", writes="query", reads="image", part="decoder", layer=0)
    record = DeformableRecord(site, shapes, locations, weights)
    for name, chosen in {"all": {}, "level": {"level": level}, "head": {"head": head}}.items():
        points = sampling_points(record, frame, query, **chosen)
        case.compare(f"{name}_xy", points.xy)
        case.compare(f"{name}_weight", points.weights)
        reference = given["reference_points"][query, chosen.get("level", 0)]
        case.compare(f"{name}_reference_xy", frame.from_padded(reference)[None])
        as_drawn = torch.from_numpy(weight_colours(points.weights.numpy(), saturated=True))
        case.compare(f"{name}_rgba_as_drawn", as_drawn)

    references = given["init_reference"].expand(len(given["pred_boxes"]) + 1, -1, -1)
    evolution = query_evolution(references, given["pred_logits"], given["pred_boxes"], frame)
    for layer in range(len(evolution.centres)):
        case.compare(f"query{layer}_xy", evolution.centres[layer])
        case.compare(f"query{layer}_class", evolution.labels[layer])
        case.compare(f"query{layer}_score", evolution.scores[layer])
    case.compare("delta_arrow", evolution.arrows_from_reference())
    case.compare("evolution_arrow", evolution.arrows_between_layers())

    for index, cells in enumerate(level_maps(record, query)):
        case.compare(f"dense_level{index}", cells)
