"""The curves of a training log."""

import torch

from checks import check
from lightning_xai.draw.training_log import series


@check("deformable_detr/plot_logs")
def plot_logs(case):
    log = [dict(entry) for entry in case.info["log_lines"]]
    for com in case.config["ewm_com"]:
        prefix = "com" + f"{com:g}".replace(".", "p")
        for field in case.config["fields"]:
            # The reference calls entry 1 of the COCO numbers mAP; it is AP50.
            if field == "mAP":
                (curve,) = series(log, "AP50", com)
                case.compare(f"{prefix}_mAP", torch.from_numpy(curve.values))
                continue
            for curve in series(log, field, com):
                case.compare(f"{prefix}_{curve.split}_{field}", torch.from_numpy(curve.values))
    epochs = torch.tensor([entry["epoch"] for entry in log])
    if not torch.equal(epochs, case.inputs["epoch"]):
        case.failures.append("epochs of the log lines differ from the input")
