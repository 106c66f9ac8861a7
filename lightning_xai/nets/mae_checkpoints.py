"""Reads checkpoints of masked autoencoders: the original repository's and this project's."""

from pathlib import Path

from lightning_xai.nets.mae import MaskedAutoencoder
from lightning_xai.nets.vit_checkpoints import check_fit, unwrap
from lightning_xai.nets.weight_files import read_weight_file

POSITIONS = "pos_embed"
DECODER = ("mask_token", "decoder_")


def load_mae_checkpoint(net: MaskedAutoencoder, path: str | Path, encoder_only: bool = False) -> None:
    """Load a checkpoint file into a masked autoencoder.

    encoder_only: leave the decoder as it is; most released files hold none. Raises FileNotFoundError or ValueError: no
    file, missing or unexpected keys (all named), other shapes. The network is unchanged when it raises.
    """
    weights, own = unwrap(read_weight_file(path), path), net.state_dict()
    if encoder_only:
        weights, own = ({k: v for k, v in d.items() if not k.startswith(DECODER)} for d in (weights, own))
    elif POSITIONS in weights and not any(key.startswith(DECODER) for key in weights):
        raise ValueError(
            f"checkpoint '{path}' holds an encoder without decoder, as most released files do: take the file with the "
            "decoder (mae_pretrain_vit_base_full.pth, mae_visualize_vit_large.pth), or load with encoder_only=True and "
            "train a new decoder"
        )
    positions = weights.get(POSITIONS)
    if positions is not None and positions.shape[1:2] != own[POSITIONS].shape[1:2]:
        raise ValueError(
            f"checkpoint '{path}' is of a network of {positions.shape[1] - 1} patches, this one has "
            f"{own[POSITIONS].shape[1] - 1}: build it with the img_size and patch_size of the checkpoint"
        )
    check_fit(net, weights, own, path)
    net.load_state_dict(weights, strict=False)
