"""The embedded world as pairs of a drawn scene and a sentence about it, with no download."""

from torch import Tensor
from torch.utils.data import Dataset

from lightning_xai.data.detection_transforms import Draws, sample_seed
from lightning_xai.data.embedded_detection import EmbeddedDetection
from lightning_xai.data.image_text_module import ImageTextModule, Pair
from lightning_xai.data.scene import SceneRecipe
from lightning_xai.data.scene_captions import caption_vocabulary, captions

DEFAULT_RECIPE = SceneRecipe(height=64, width=64, min_objects=1, max_objects=2, max_size=40.0)


class EmbeddedCaptions(Dataset):
    """Scenes number 0 to `n_scenes` - 1 of a split, each with one of its `per_scene` captions.

    Evaluation takes the first, which lists all objects; training draws one from (seed, epoch, index).
    """

    def __init__(self, recipe: SceneRecipe, split: str, n_scenes: int, seed: int = 0, per_scene: int = 5):
        self.scenes = EmbeddedDetection(recipe, split, n_scenes, seed)
        self.split, self.seed, self.per_scene = split, seed, per_scene

    def __len__(self) -> int:
        return len(self.scenes)

    def texts(self, index: int) -> tuple[str, ...]:
        """What can be said of scene `index`."""
        return tuple(caption.text for caption in captions(self.scenes.scene(index), self.per_scene))

    def load(self, index: int) -> Pair:
        """Scene `index` with its first caption."""
        return self._image(index), {"text": self.texts(index)[0], "index": index}

    def __getitem__(self, key: int | tuple[int, int]) -> Pair:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if self.split != "train":
            return self.load(index)
        text = Draws(sample_seed(self.seed, epoch, index)).choice(self.texts(index))
        return self._image(index), {"text": text, "index": index}

    def _image(self, index: int) -> Tensor:
        return self.scenes.load(index)[0]


class EmbeddedCaptionsModule(ImageTextModule):
    """Pairs of the embedded world: finite splits of square scenes, each a function of (seed, split, index).

    captions: how many captions of a scene training draws from; 1 lists all objects. Raises ValueError for scenes that
    are not square.
    """

    def __init__(
        self,
        recipe: SceneRecipe = DEFAULT_RECIPE,
        n_train: int = 4000,
        n_val: int = 200,
        n_test: int = 200,
        captions: int = 1,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ):
        if recipe.height != recipe.width:
            raise ValueError(f"scenes of {recipe.height} x {recipe.width} pixels: images of pairs are square")
        super().__init__(recipe.height, batch_size, eval_batch_size, num_workers, seed=seed)
        self.recipe, self.captions = recipe, captions
        self.sizes = {"train": n_train, "val": n_val, "test": n_test, "predict": n_test}
        self._splits: dict[str, EmbeddedCaptions] = {}

    @property
    def vocabulary(self) -> list[str]:
        """Every word that captions of these scenes hold."""
        return caption_vocabulary(self.recipe)

    def dataset(self, split: str) -> EmbeddedCaptions:
        split = "test" if split == "predict" else split
        if split not in self._splits:
            self._splits[split] = EmbeddedCaptions(self.recipe, split, self.sizes[split], self.seed, self.captions)
        return self._splits[split]
