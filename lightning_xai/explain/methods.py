"""Every explanation method by its name, so that commands and tables can list them."""

from dataclasses import fields
from typing import Any

from lightning_xai.explain.attn_lrp import AttnLRP
from lightning_xai.explain.generic_relevance import GenericRelevance
from lightning_xai.explain.generic_relevance_lrp import GenericRelevanceLRP
from lightning_xai.explain.gradcam import AttentionGradCAM
from lightning_xai.explain.gradient_rollout import GradientRollout
from lightning_xai.explain.input_gradients import GradientXInput, IntegratedGradients, Occlusion
from lightning_xai.explain.input_relevance import FullLRP
from lightning_xai.explain.method import Method
from lightning_xai.explain.partial_lrp import PartialLRP
from lightning_xai.explain.random_control import CentreControl, RandomControl
from lightning_xai.explain.raw_attention import RawAttention
from lightning_xai.explain.rollout import Rollout
from lightning_xai.explain.transformer_attribution import TransformerAttribution

METHODS: dict[str, type[Method]] = {
    "raw_attention": RawAttention,
    "rollout": Rollout,
    "attention_gradcam": AttentionGradCAM,
    "gradient_rollout": GradientRollout,
    "generic_relevance": GenericRelevance,
    "generic_relevance_lrp": GenericRelevanceLRP,
    "transformer_attribution": TransformerAttribution,
    "partial_lrp": PartialLRP,
    "full_lrp": FullLRP,
    "attn_lrp": AttnLRP,
    "gradient_x_input": GradientXInput,
    "integrated_gradients": IntegratedGradients,
    "occlusion": Occlusion,
    "random": RandomControl,
    "centre": CentreControl,
}


def method(name: str, **options: Any) -> Method:
    """The method of a name, with options; raises ValueError that says which names and options there are."""
    if name not in METHODS:
        raise ValueError(f"there is no explanation method {name!r}; choose from {', '.join(METHODS)}")
    known = [field.name for field in fields(METHODS[name])]
    for option in options:
        if option not in known:
            there = f"its options are {', '.join(known)}" if known else "it has no options"
            raise ValueError(f"the method {name} has no option {option!r}; {there}")
    return METHODS[name](**options)
