"""Measures that judge a whole image by one explanation of it."""

from lightning_xai.explain.explanation import Explanation


def one_target_an_image(explanation: Explanation) -> list[int]:
    """The sample that each target is of, all different; raises ValueError where an image has several targets."""
    samples = explanation.samples.tolist()
    if len(set(samples)) < len(samples):
        raise ValueError("an image has several explanations, but this measure needs one each: a class, not a query")
    return samples
