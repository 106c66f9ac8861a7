"""AttnLRP: layer-wise relevance propagation with rules of its own for softmax, products and layer norms."""

from dataclasses import dataclass

from lightning_xai.explain.input_relevance import FullLRP


@dataclass(frozen=True)
class AttnLRP(FullLRP):
    """Relevance of the inputs by AttnLRP, starting as the target's score: (T, N), see `FullLRP`.

    Epsilon rule for linear maps, sums and the centring of layer norms; softmax by its Taylor expansion,
    R_x = x (R - p sum R); halves for products; all of it through functions that are 0 at 0 and standard deviations.
    What adds a constant absorbs its share: biases, norms, position embeddings.
    Source: Achtibat et al., ICML 2024, eq. 7-9 and propositions 3.1-3.4, with the epsilon rule in every linear map.
    """

    rules: str = "attn_lrp"
    from_score: bool = True
