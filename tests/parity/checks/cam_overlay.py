"""Relevance laid over a photograph, as the notebooks do it."""

import torch
import torch.nn.functional as F
from reference_arrays import tolerate

from checks import check
from lightning_xai.draw.overlay import heat_overlay, scaled
from lightning_xai.evaluate.relevance_masks import otsu_threshold


@check("chefer/cam_overlay")
def cam_overlay(case):
    tolerate(case, lambda name: (1.0, 0.0) if name.startswith("overlay") else (1e-6, 0.0))
    photo = case.inputs["image"].permute(1, 2, 0).numpy()
    for given, relevance in case.inputs.items():
        if not given.startswith("relevance_"):
            continue
        name = given.removeprefix("relevance_")
        side = round(relevance.numel() ** 0.5)
        grid = relevance.reshape(1, 1, side, side)
        heat = scaled(F.interpolate(grid, photo.shape[:2], mode="bilinear")[0, 0].numpy())
        case.compare(f"heatmap_{name}", torch.from_numpy(heat[::4, ::4].copy()))
        compare_overlay(case, f"overlay_{name}", photo, heat)
        if f"binary_{name}" in case.outputs:
            levels = torch.from_numpy((255 * heat).astype("uint8"))
            threshold = otsu_threshold(levels[None])[0]
            binary = (levels > threshold).to(torch.uint8)
            case.compare(f"otsu_threshold_{name}", threshold)
            case.compare(f"binary_{name}", binary[::2, ::2])
            compare_overlay(case, f"overlay_otsu_{name}", photo, binary.numpy())


def compare_overlay(case, name: str, photo, heat) -> None:
    """The reference swaps the photograph's red and blue, which is done here to its input."""
    ours = heat_overlay(photo[..., ::-1], heat)[::2, ::2]
    case.compare(name, torch.from_numpy(ours.copy()).float(), reference=case.outputs[name].float())
