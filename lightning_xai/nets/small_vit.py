"""A vision transformer of 200,000 weights, which learns small pictures from scratch on a processor in a minute.

Its patches overlap: a convolutional stem finds edges and corners, which patches cut out without overlap would have to
learn from far more pictures. Source: Xiao et al., Early Convolutions Help Transformers See Better.
"""

from functools import partial

from lightning_xai.nets.vit import ViT


def build_small_vit(
    num_classes: int,
    image_size: int = 64,
    channels: tuple[int, int] = (24, 48),
    embed_dim: int = 64,
    depth: int = 3,
    num_heads: int = 4,
    global_pool: str = "avg",
    drop_path_rate: float = 0.0,
) -> ViT:
    """timm's VisionTransformer over a stem of three convolutions of stride 2, so one token each 8 x 8 pixels.

    `channels` are those between the convolutions. The logits are read from the mean of the patches, as MAE fine-tunes.
    Raises ValueError for an image size that is no multiple of 8.
    """
    from timm.layers import HybridEmbed
    from timm.models import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    if image_size % 8:
        raise ValueError(f"image_size={image_size} must be a multiple of 8, the stride of the stem")
    stem = ConvStem(depth=3, channels=(*channels, embed_dim), stride=(2, 2, 2))
    net = VisionTransformer(
        img_size=image_size,
        embed_layer=partial(HybridEmbed, backbone=stem, proj=False),
        patch_size=1,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        num_classes=num_classes,
        global_pool=global_pool,
        drop_path_rate=drop_path_rate,
    )
    return ViT(net).eval()
