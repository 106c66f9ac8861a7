"""What typically belongs to a class: asked from a file that people edit, or from a language model."""

import os
import re
from abc import ABC, abstractmethod
from pathlib import Path

import yaml

QUESTION = (
    "List {count} different visual concepts (objects, materials or surroundings) that are representative of a photo of "
    "a {name}. One concept a line, at most three words each, no explanations.\n1."
)


class ConceptLister(ABC):
    """Lists concepts of a class, most representative first."""

    @property
    @abstractmethod
    def provider(self) -> str:
        """What a manifest names as the source of the concepts."""

    @abstractmethod
    def list(self, class_name: str, n: int) -> list[str]:
        """At most `n` different concepts of `class_name`, at least one."""


class ConceptFile(ConceptLister):
    """Concepts from a YAML or JSON file `class name: [concept, ...]`, most representative first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such mapping, or has nothing for a class.
    """

    def __init__(self, file: str):
        self.file = Path(file)
        if not self.file.is_file():
            raise FileNotFoundError(f"{file}: no such file; give a YAML or JSON file of `class name: [concept, ...]`.")
        try:
            content = yaml.safe_load(self.file.read_text(encoding="utf-8"))  # JSON is YAML
        except yaml.YAMLError as error:
            raise ValueError(f"{file}: not valid YAML or JSON ({error}).") from None
        if not isinstance(content, dict) or not all(isinstance(concepts, list) for concepts in content.values()):
            raise ValueError(f"{file}: should map each class name to a list of concepts.")
        self.concepts = {str(name): _different(map(str, concepts)) for name, concepts in content.items()}

    @property
    def provider(self) -> str:
        return self.file.name

    def list(self, class_name: str, n: int) -> list[str]:
        if not self.concepts.get(class_name):
            raise ValueError(
                f"{self.file}: no concepts of class {class_name!r}; there are those of {', '.join(self.concepts)}."
            )
        return self.concepts[class_name][:n]


class LanguageModelConcepts(ConceptLister):
    """Concepts asked from a causal language model of the `transformers` library in a local folder, without sampling.

    Args:
        folder: holds the model and its tokenizer as `save_pretrained` writes them.
        question: with the places {count} and {name}.
        max_new_tokens: how long an answer may be.

    Raises:
        FileNotFoundError: there is no such folder.
        ImportError: `transformers` is not installed.
        ValueError: an answer lists no concept.
    """

    def __init__(self, folder: str, question: str = QUESTION, max_new_tokens: int = 200):
        if not os.path.isdir(folder):
            raise FileNotFoundError(
                f"{folder}: no such folder; give one that holds a language model and its tokenizer."
            )
        self.folder, self.question, self.max_new_tokens = Path(folder), question, max_new_tokens
        self._model = None

    @property
    def provider(self) -> str:
        return self.folder.name

    def list(self, class_name: str, n: int) -> list[str]:
        answer = self._answer(self.question.format(count=n, name=class_name.replace("_", " ")))
        concepts = listed_concepts(answer)[:n]
        if not concepts:
            raise ValueError(f"{self.folder}: its answer for class {class_name!r} lists no concept: {answer[:200]!r}")
        return concepts

    def _answer(self, question: str) -> str:
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise ImportError(
                "a language model needs the library transformers: pip install 'lightning_xai[transformers]'"
            ) from None
        if self._model is None:
            self._tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            self._model = AutoModelForCausalLM.from_pretrained(self.folder, local_files_only=True).eval()
        in_chat = self._tokenizer.chat_template is not None
        if in_chat:
            asked = [{"role": "user", "content": question}]
            question = self._tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        # a chat's template writes the special tokens itself
        words = self._tokenizer(question, return_tensors="pt", add_special_tokens=not in_chat)
        ids = self._model.generate(
            **words, do_sample=False, max_new_tokens=self.max_new_tokens, pad_token_id=self._tokenizer.eos_token_id
        )
        return self._tokenizer.decode(ids[0, words["input_ids"].shape[1] :], skip_special_tokens=True)


def listed_concepts(answer: str) -> list[str]:
    """The different concepts of a language model's answer: one a line, without number, bullet and explanation."""
    lines = (re.sub(r"^\s*(?:\d+\s*[.):]|[-*•])?\s*", "", line) for line in answer.splitlines())
    concepts = (re.split(r"\s*(?:[:;.(]|\s[-–—]\s)", line)[0].strip(" \t*_\"'").lower() for line in lines)
    return _different(concept for concept in concepts if concept and len(concept.split()) <= 4)


def _different(concepts) -> list[str]:
    """Without blanks around, without empty ones and repetitions, in the order given."""
    return list(dict.fromkeys(stripped for concept in concepts if (stripped := concept.strip())))
