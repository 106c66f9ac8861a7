"""Vision transformers that others wrote, declared as they are: classifiers of timm and of transformers.

Letters: B images, N = prefix + h' * w' tokens, the prefix being class, distillation and register tokens. The network
inside is not changed: it is called as it is, and its own checkpoints fit it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_xai.explain.streams import ObjectQueries, Patches, Site, Stream

TIMM_PREFIX = "timm:"
ATTENTION_NAMES = ("attn", "attention")  # of a block's attention, in timm and in transformers
CLASS_TOKEN_FAMILIES = ("vit", "deit", "vit_msn")  # of transformers, whose classifiers read token 0 alone
CLASSIFIERS = ("classifier", "cls_classifier", "distillation_classifier")  # of transformers


class ViT(nn.Module):
    """A classifier of patches by timm or transformers, together with its sites and streams.

    images (B, 3, h, w), normalised -> {"logits": (B, classes), "features": (B, C), "grid": (h', w')}, the features
    being what the classifier reads, after pooling and norm. Raises TypeError when `net` has no list of blocks with one
    attention each.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.attentions = attention_names(net)

    def forward(self, images: Tensor) -> dict:
        logits, features = self._timm(images) if hasattr(self.net, "forward_head") else self._transformers(images)
        return {"logits": logits, "features": features, "grid": self.grid(images.shape[-2:])}

    def _timm(self, images: Tensor) -> tuple[Tensor, Tensor]:
        patches = getattr(self.net, "patch_embed", None)
        size, strict = getattr(patches, "img_size", None), getattr(patches, "strict_img_size", False)
        if strict and size is not None and tuple(images.shape[-2:]) != tuple(size):
            raise ValueError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels do not fit a network built for {size[0]} x "
                f"{size[1]}: build it with that img_size, or give the data (and its augmentation) the network's size"
            )
        tokens = self.net.forward_features(images)
        features = self.net.forward_head(tokens, pre_logits=True)
        heads = self.classifiers()
        if len(heads) == 1:
            return heads[0](features), features
        return self.net.forward_head(tokens), features  # two heads, for two class tokens

    def _transformers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with inputs_of(self.classifiers()) as features:
            logits = self.net(images).logits
        return logits, torch.stack(features).mean(0)

    @property
    def num_classes(self) -> int:
        return self.net.num_classes if hasattr(self.net, "num_classes") else self.net.config.num_labels

    def classifiers(self) -> list[nn.Module]:
        """The layer that makes logits of features; two of them where two class tokens vote."""
        if hasattr(self.net, "get_classifier"):
            heads = self.net.get_classifier()
            return [heads] if isinstance(heads, nn.Module) else list(heads)
        return [getattr(self.net, name) for name in CLASSIFIERS if hasattr(self.net, name)]

    def blocks(self) -> list[str]:
        """The dotted names of the blocks, in order."""
        return [f"net.{name.rpartition('.')[0]}" for name in self.attentions]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of `size` (h, w)."""
        patches = getattr(self.net, "patch_embed", getattr(self.net, "embeds", None))
        if patches is not None:
            dynamic = hasattr(patches, "dynamic_feat_size")
            return tuple(patches.dynamic_feat_size(tuple(size)) if dynamic else patches.grid_size)
        patch = self.net.config.patch_size
        rows, columns = (patch, patch) if isinstance(patch, int) else patch
        return size[0] // rows, size[1] // columns

    @property
    def prefix(self) -> int:
        """How many tokens stand before the first patch."""
        if hasattr(self.net, "num_prefix_tokens"):
            return self.net.num_prefix_tokens
        embeddings = self.net.base_model.embeddings
        tokens = [getattr(embeddings, name, None) is not None for name in ("cls_token", "distillation_token")]
        return sum(tokens) + getattr(self.net.config, "num_register_tokens", 0)

    @property
    def pools_by_attention(self) -> bool:
        return getattr(self.net, "global_pool", None) == "map"

    def sites(self) -> list[Site]:
        """Every attention of the network, in order of execution."""
        sites = [
            Site(f"net.{name}", "dense", writes="image", reads="image", part="encoder", layer=i)
            for i, name in enumerate(self.attentions)
        ]
        if self.pools_by_attention:
            if self.prefix and not getattr(self.net, "pool_include_prefix", False):
                raise ValueError(
                    f"{type(self.net).__name__} pools its patches by attention but leaves out its {self.prefix} prefix "
                    "tokens: build it without class and register tokens, or with pool_include_prefix=True"
                )
            sites.append(Site("net.attn_pool", "dense", writes="query", reads="image", part="pool", layer=0))
        return sites

    def streams(self, outputs: Mapping) -> dict[str, Stream]:
        """Where the tokens of a forward pass lie, from its outputs."""
        streams = {"image": Stream("image", Patches(outputs["grid"], self.prefix))}
        if self.pools_by_attention:
            streams["query"] = Stream("query", ObjectQueries(len(self.net.attn_pool.latent[0])))
        return streams

    def readout(self, outputs: Mapping) -> dict[str, Tensor]:
        """What of a stream the logits are computed from: of each image the token (B,), or weights (B, N) of a mean.

        Raises ValueError where they are computed from tokens in another way.
        """
        logits = outputs["logits"]
        zeros = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        if self.pools_by_attention:
            return {"query": zeros}
        if hasattr(self.net, "num_prefix_tokens"):
            pooling = "two class tokens" if hasattr(self.net, "head_dist") else f"global_pool='{self.net.global_pool}'"
            reads_class_token, reads_mean = pooling == "global_pool='token'", pooling == "global_pool='avg'"
        else:
            pooling = f"model_type '{self.net.config.model_type}'"
            teacher = hasattr(self.net, "distillation_classifier")
            reads_class_token = self.net.config.model_type in CLASS_TOKEN_FAMILIES and not teacher
            reads_mean = False
        if reads_mean:
            height, width = outputs["grid"]
            weights = torch.ones(len(logits), self.prefix + height * width, device=logits.device)
            if not getattr(self.net, "pool_include_prefix", False):
                weights[:, : self.prefix] = 0
            return {"image": weights / weights.sum(1, keepdim=True)}
        if not reads_class_token:
            raise ValueError(
                f"{type(self.net).__name__} ({pooling}) computes its logits neither from one token nor from a mean of "
                "its tokens: name the token whose relevance you ask for, or use a network that reads its class token "
                "(timm: global_pool='token') or the mean (global_pool='avg')"
            )
        return {"image": zeros}


@contextmanager
def inputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The list of what these modules are given while the context lasts, in order of execution."""
    seen: list[Tensor] = []
    with ExitStack() as hooks:
        for module in modules:
            handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
            hooks.callback(handle.remove)
        yield seen


def attention_names(net: nn.Module) -> list[str]:
    """The dotted names of the attention modules of `net`, block after block."""
    found = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module):
            for attention in ATTENTION_NAMES:
                if all(isinstance(getattr(block, attention, None), nn.Module) for block in module):
                    found[name] = [f"{name}.{i}.{attention}" for i in range(len(module))]
    if len(found) != 1 or not (hasattr(net, "num_prefix_tokens") or hasattr(net, "base_model")):
        raise TypeError(
            f"{type(net).__name__} is no plain vision transformer of timm or transformers: it has {len(found)} lists "
            "of blocks that hold one attention each (named 'attn' or 'attention'), expected one, and prefix tokens "
            "that it counts. Write its sites() and streams() beside it instead."
        )
    (names,) = found.values()
    return names


def build_vit(name: str, arguments: Mapping[str, object] | None = None, weights: str | Path | None = None) -> ViT:
    """The vision transformer called `name`, in evaluation mode.

    name: "timm:" and a name of timm ("timm:vit_base_patch16_224"), or a local folder in transformers' layout, which
    holds its own weights. arguments: keyword arguments of the timm network. weights: a checkpoint for a timm network
    (see `vit_checkpoints`), or None for random ones. Raises ValueError for an unknown name, FileNotFoundError for a
    missing folder or file.
    """
    arguments = dict(arguments or {})
    if not name.startswith(TIMM_PREFIX):
        if arguments or weights is not None:
            raise ValueError(f"vit '{name}' brings its own arguments and weights: give none, or '{TIMM_PREFIX}' names.")
        return ViT(_from_folder(Path(name))).eval()
    import timm

    short = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(short):
        raise ValueError(f"vit '{name}': timm has no network '{short}' (see timm.list_models('*vit*')).")
    try:
        net = timm.create_model(short, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"vit '{name}' cannot be built with arguments {arguments}: {error}") from error
    vit = ViT(net)
    if weights is not None:
        from lightning_xai.nets.vit_checkpoints import load_vit_checkpoint

        load_vit_checkpoint(vit, weights)
    return vit.eval()


def _from_folder(folder: Path) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"vit '{folder}': no folder with a config.json, and no name of timm ('{TIMM_PREFIX}vit_base_patch16_224')."
        )
    from transformers import AutoModelForImageClassification

    return AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
