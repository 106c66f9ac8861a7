"""The masked autoencoder: a vision transformer that sees a quarter of the patches and paints the others.

Letters: B images, P = h' * w' patches, of which K are kept, p the side of a patch in pixels, C and D channels of the
encoder and of the decoder. Keys of the state dict are those of the original repository.
Source: He et al., CVPR 2022, arXiv 2111.06377.
"""

from collections.abc import Mapping
from functools import partial

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lightning_xai.explain.streams import ChosenPatches, Patches, Site, Stream

# The published networks; their decoders are alike.
ARCHITECTURES = {
    "mae_vit_base_patch16": {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "mae_vit_large_patch16": {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16},
    "mae_vit_huge_patch14": {"patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16},
}


class MaskedAutoencoder(nn.Module):
    """Encode the kept patches, decode all of them from the kept ones' codes and a mask token.

    img_size: (h, w) of the images in pixels, or one number for square ones. The position embeddings of both parts are
    fixed sines and cosines. Raises ValueError where patches do not fill the image or widths do not suit the heads.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if any(side % patch_size for side in self.img_size):
            raise ValueError(f"img_size={img_size} is no multiple of patch_size={patch_size}")
        for name, width, heads in (
            ("embed_dim", embed_dim, num_heads),
            ("decoder_embed_dim", decoder_embed_dim, decoder_num_heads),
        ):
            if width % heads or width % 4:
                raise ValueError(f"{name}={width} must be a multiple of its {heads} heads and, for the positions, of 4")
        self.patch_size = patch_size
        self.grid = tuple(side // patch_size for side in self.img_size)
        tokens = 1 + self.grid[0] * self.grid[1]

        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim), requires_grad=False)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, tokens, decoder_embed_dim), requires_grad=False)
        self.patch_embed = PatchEmbed(self.img_size, patch_size, 3, embed_dim)
        self.blocks = _blocks(depth, embed_dim, num_heads, mlp_ratio)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.decoder_blocks = _blocks(decoder_depth, decoder_embed_dim, decoder_num_heads, mlp_ratio)
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * 3)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for position in (self.pos_embed, self.decoder_pos_embed):
            position.copy_(sincos_position_embedding(position.shape[-1], self.grid, cls_token=True)[None])
        for token in (self.cls_token, self.mask_token):
            nn.init.normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))  # as a matrix of pixels to channels

    def forward(self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None) -> dict:
        """Paint the hidden patches of images (B, 3, h, w), normalised.

        noise: (B, P), of each image the int(P * (1 - mask_ratio)) patches with the smallest stay visible; None draws it
        uniformly. Returns pred (B, P, 3 p^2), latent (B, 1 + K, C) with the class token first and then the kept patches
        by noise, mask (B, P), 1 where a patch was hidden, ids_kept (B, K), ids_restore (B, P): the place of each patch
        in the order by noise, and grid (h', w'). Raises ValueError: images of another size, nothing kept or hidden.
        """
        if tuple(images.shape[-2:]) != self.img_size:
            raise ValueError(
                f"images are {tuple(images.shape[-2:])} pixels high and wide, but the network was built for "
                f"{self.img_size}: resize them, or build it with that img_size"
            )
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]
        if noise is None:
            noise = torch.rand(tokens.shape[:2], device=tokens.device)
        ids_kept, ids_restore, mask = random_masking(noise, mask_ratio)
        latent = self.encode(tokens.gather(1, ids_kept[..., None].expand(-1, -1, tokens.shape[-1])))
        pred = self.decode(latent, ids_restore)
        return {
            "pred": pred,
            "latent": latent,
            "mask": mask.to(images.dtype),
            "ids_kept": ids_kept,
            "ids_restore": ids_restore,
            "grid": self.grid,
        }

    def encode(self, tokens: Tensor) -> Tensor:
        """Codes (B, 1 + K, C) of the class token and of embedded patches (B, K, C)."""
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([cls, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def decode(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """Pixels (B, P, 3 p^2) of every patch, from the codes (B, 1 + K, C) of the class token and the kept ones."""
        codes = self.decoder_embed(latent)
        hidden = ids_restore.shape[1] + 1 - codes.shape[1]
        tokens = torch.cat([codes[:, 1:], self.mask_token.expand(len(codes), hidden, -1)], 1)
        tokens = tokens.gather(1, ids_restore[..., None].expand(-1, -1, tokens.shape[-1]))
        tokens = torch.cat([codes[:, :1], tokens], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]

    def sites(self) -> list[Site]:
        """Every attention: the encoder's among visible patches, then the decoder's among all of them."""
        return [
            Site(f"{blocks}.{i}.attn", "dense", writes=stream, reads=stream, part=part, layer=i)
            for part, blocks, stream in (("encoder", "blocks", "visible"), ("decoder", "decoder_blocks", "image"))
            for i in range(len(getattr(self, blocks)))
        ]

    def streams(self, outputs: Mapping) -> dict[str, Stream]:
        """Where the tokens of a forward pass lie, from its outputs."""
        return {
            "visible": Stream("visible", ChosenPatches(self.grid, outputs["ids_kept"], prefix=1)),
            "image": Stream("image", Patches(self.grid, prefix=1)),
        }


def _blocks(depth: int, width: int, heads: int, mlp_ratio: float) -> nn.ModuleList:
    norm = partial(nn.LayerNorm, eps=1e-6)
    return nn.ModuleList(Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth))


def kept_patches(patches: int, mask_ratio: float) -> int:
    """int(patches * (1 - mask_ratio)). Raises ValueError where that keeps or hides no patch."""
    kept = int(patches * (1 - mask_ratio))
    if not 0 < kept < patches:
        raise ValueError(
            f"mask_ratio={mask_ratio} keeps {kept} of {patches} patches: at least one must be kept and one hidden"
        )
    return kept


def random_masking(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which patches stay visible, from noise (B, P): ids_kept (B, K), ids_restore (B, P), mask (B, P).

    The K = `kept_patches` with the smallest noise stay, in its order. ids_restore: the place of each patch in that
    order. mask: True where a patch is hidden.
    """
    kept = kept_patches(noise.shape[1], mask_ratio)
    order = noise.argsort(1)
    ids_restore = order.argsort(1)
    return order[:, :kept], ids_restore, ids_restore >= kept


def sincos_position_embedding(channels: int, grid: tuple[int, int], cls_token: bool = False) -> Tensor:
    """Fixed positions ((1 +) h * w, channels): half the channels from the column, half from the row.

    Each half is [sin(x w_i), cos(x w_i)] with w_i = 10000^(-i / (channels / 4)), computed in float64; the class token's
    row, the first, is zero. Raises ValueError where `channels` is no multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"sin-cos positions need channels that are a multiple of 4, not {channels}")
    frequencies = 10000.0 ** (-torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [coordinate.flatten()[:, None] * frequencies for coordinate in (columns, rows)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)
    if cls_token:
        table = torch.cat([torch.zeros(1, channels, dtype=table.dtype), table])
    return table.float()


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, 3, h, w) as patches (B, P, p * p * 3); a patch's numbers go by row, column, channel."""
    cells = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # (B, 3, h', p, w', p)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Patches (B, P, p * p * 3) as images (B, 3, h, w): the inverse of `patchify`."""
    cells = patches.unflatten(2, (patch_size, patch_size, 3)).unflatten(1, grid)  # (B, h', w', p, p, 3)
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
