"""A word for what a class looks like: learned from its images by textual inversion, or the class's own name.

Source: Gal et al., "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion".
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

EMBEDDINGS = (".safetensors", ".bin", ".pt")


class TokenLearner(ABC):
    """Gives each class the word that stands for its look in prompts."""

    @property
    @abstractmethod
    def provider(self) -> str:
        """What a manifest names as the source of the words."""

    @abstractmethod
    def learn(self, class_name: str, images: Sequence[str], init_word: str) -> str:
        """The word of `class_name`.

        Args:
            images: training images of the class.
            init_word: an ordinary word that the learned one starts from.
        """


class ClassNameToken(TokenLearner):
    """Learns nothing: the word is `init_word`, so that G-TG becomes G-LLM."""

    @property
    def provider(self) -> str:
        return "class names"

    def learn(self, class_name: str, images: Sequence[str], init_word: str) -> str:
        return init_word


class EmbeddingFolder(TokenLearner):
    """Words that were learned elsewhere: `<folder>/<class name>.safetensors` (or .bin, .pt), one a class.

    The word of class `c` is `<c>` in angle brackets; the image generator reads the same folder under these words.

    Raises:
        FileNotFoundError: the folder, or the file of a class, does not exist.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: no such folder; give one with a file <class>.safetensors for each class."
            )

    @property
    def provider(self) -> str:
        return "folder of embeddings"

    def learn(self, class_name: str, images: Sequence[str], init_word: str) -> str:
        if find_embedding(self.folder, class_name) is None:
            raise FileNotFoundError(
                f"{self.folder / class_name}.safetensors: no such file; each class needs its learned embedding."
            )
        return token_of(class_name)


def token_of(class_name: str) -> str:
    """The word that stands for the learned look of a class."""
    return f"<{class_name}>"


def find_embedding(folder: Path, class_name: str) -> Path | None:
    """The embedding file of a class, whatever its format."""
    files = (folder / f"{class_name}{ending}" for ending in EMBEDDINGS)
    return next((file for file in files if file.is_file()), None)
