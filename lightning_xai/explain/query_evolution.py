"""How a decoder's object queries move and change their mind from layer to layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.explain.sampling_points import ImageFrame


@dataclass(frozen=True)
class QueryEvolution:
    """D decoder layers of Q queries, positions in pixels of the original picture.

    references: (D + 1, Q, 2), the initial reference points and those after each layer. centres: (D, Q, 2) of the
    predicted boxes. labels: (D, Q), the likeliest class. scores: (D, Q), its sigmoid.
    """

    references: Tensor
    centres: Tensor
    labels: Tensor
    scores: Tensor

    def arrows_between_layers(self) -> Tensor:
        """From the centre predicted by each layer to that of the next: (D - 1, Q, 2)."""
        return self.centres[1:] - self.centres[:-1]

    def arrows_from_reference(self) -> Tensor:
        """From each query's initial reference point to its final predicted centre: (Q, 2)."""
        return self.centres[-1] - self.references[0]


def query_evolution(references: Tensor, logits: Tensor, boxes: Tensor, frame: ImageFrame) -> QueryEvolution:
    """Put one image's decoder layers together.

    references: (D + 1, Q, 2) in [0, 1] of the image. logits: (D, Q, classes). boxes: (D, Q, 4) cxcywh in [0, 1].
    """
    best, labels = logits.float().max(-1)
    return QueryEvolution(
        frame.from_image(references.float()), frame.from_image(boxes[..., :2].float()), labels, best.sigmoid()
    )


def evolution_of(outputs: dict, frame: ImageFrame, image: int = 0) -> QueryEvolution:
    """The evolution of image number `image` from a network's outputs.

    Needs the outputs of every decoder layer; raises ValueError when the network was built without auxiliary outputs.
    """
    layers = [*outputs.get("aux_outputs", ()), outputs]
    references = outputs["reference_points"]
    if len(references) != len(layers) + 1:
        raise ValueError(
            f"the network gave boxes of {len(layers)} decoder layers and reference points of {len(references) - 1}; "
            "build it with aux_loss=True to see how its queries evolve"
        )
    return query_evolution(
        torch.stack([reference[image, :, :2] for reference in references]),
        torch.stack([layer["pred_logits"][image] for layer in layers]),
        torch.stack([layer["pred_boxes"][image] for layer in layers]),
        frame,
    )
