"""What people say about explanations: concepts of each class, and how difficult images are."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from lightning_xai.data.class_folders import classes_of, named, pictures_in
from lightning_xai.data.concepts import class_concepts, write_concepts
from lightning_xai.data.crowd_tasks import CrowdAnswer, read_answers, read_crowd_tasks
from lightning_xai.data.difficulty import image_difficulties, read_names, without_hard, write_names


def concepts(command: str, words: list[str]) -> int:
    """concepts: valid and confounded concepts of each class, from two rounds of crowd tasks about its failures."""
    parser = argparse.ArgumentParser(
        "lightning-xai debugset concepts",
        description="Compare what people see in explanations of failures with what they say should matter.",
    )
    parser.add_argument("--model_tasks", type=Path, required=True, help="tasks.json on attributions of failures")
    parser.add_argument("--human_tasks", type=Path, required=True, help="tasks.json on what should matter")
    parser.add_argument("--failures", type=Path, required=True, help="the failures' images: a folder for each class")
    parser.add_argument("--keep", type=int, default=10, help="concepts of each kind and class (default: 10)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for G-TG-human-prompt --concepts")
    options = parser.parse_args(words)
    class_of = _classes_of_failures(options.failures)
    model, human = _answers(options.model_tasks), _answers(options.human_tasks)
    images = {answer.image for answer in (*model, *human)}
    if strange := sorted(images - class_of.keys()):
        print(f"{len(strange)} images with answers are none of {options.failures}: {named(strange)}.", file=sys.stderr)
    found = class_concepts(model, human, class_of, options.keep)
    if not found:
        raise ValueError(
            f"no picture in {options.failures} has answers in both files of tasks, whose images are called "
            f"{named(sorted(images))}; a task's metadata.filename should be p1_<image name>__<anything>.jpg."
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_concepts(options.out, found)
    for name, of in found.items():
        print(f"{name}: valid {_listed(of.valid)}; confounded {_listed(of.confounded)}")
    print(f"concepts of {len(found)} classes: {options.out}")
    return 0


def difficulty(command: str, words: list[str]) -> int:
    """difficulty: score of every rated image, and a split without the hardest ones."""
    parser = argparse.ArgumentParser(
        "lightning-xai debugset difficulty",
        description="Rate images by crowd tasks about their explanations (1 easy, 0 hard); leave the hardest out.",
    )
    parser.add_argument("--tasks", type=Path, required=True, help="tasks.json with relevance ratings")
    parser.add_argument("--out", type=Path, help="JSON file with the score of each image, easiest first")
    parser.add_argument("--split", type=Path, help="names of a split, such as val_sub_names.npy")
    parser.add_argument("--split_out", type=Path, help="names that stay, such as val_sub_opt_names.npy")
    parser.add_argument("--features", type=Path, help="array whose rows are the split's images, such as val_sub_ft.npy")
    parser.add_argument("--features_out", type=Path, help="rows that stay, such as val_sub_opt_ft.npy")
    parser.add_argument("--threshold", type=float, default=0.4, help="images below are left out (default: 0.4)")
    parser.add_argument("--drop_unrated", action="store_true", help="leave images without a rating out as well")
    options = parser.parse_args(words)
    for given, out in (("split", "split_out"), ("features", "features_out")):
        if (getattr(options, given) is None) != (getattr(options, out) is None):
            parser.error(f"--{given} and --{out} belong together")
    if options.features is not None and options.split is None:
        parser.error("--features belong to a --split")
    scores = image_difficulties(read_crowd_tasks(options.tasks))
    for image, score in scores.items():
        print(f"{image}: {score:.2f}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    if options.split is not None:
        _write_split(options, scores)
    return 0


def _write_split(options: argparse.Namespace, scores: dict[str, float]) -> None:
    names = read_names(options.split)
    stay = without_hard(names, scores, options.threshold, keep_unrated=not options.drop_unrated)
    if options.features is not None:
        rows = np.load(options.features, allow_pickle=False, mmap_mode="r")
        if len(rows) != len(names):
            raise ValueError(f"{options.features}: {len(rows)} rows for the {len(names)} names of {options.split}.")
        np.save(options.features_out, rows[stay])
    write_names(options.split_out, [name for name, kept in zip(names, stay, strict=True) if kept])
    print(f"{stay.sum()} of {len(names)} images stay at threshold {options.threshold:g}: {options.split_out}")


def _classes_of_failures(folder: Path) -> dict[str, str]:
    """The class of each picture by the name that crowd tasks call it by: its file's without ending."""
    file_of: dict[str, Path] = {}
    for name in classes_of(folder):
        for picture in pictures_in(folder / name):
            file = folder / name / picture
            if (other := file_of.setdefault(file.stem, file)) is not file:
                raise ValueError(
                    f"{other} and {file} have one name, by which tasks cannot tell them apart; rename one."
                )
    return {stem: file.relative_to(folder).parts[0] for stem, file in file_of.items()}


def _answers(file: Path) -> list[CrowdAnswer]:
    read = read_answers(read_crowd_tasks(file))
    for reason in read.aside:
        print(f"{file}: {reason}; put aside.", file=sys.stderr)
    return read.answers


def _listed(weights: dict[str, float]) -> str:
    return ", ".join(f"{concept} ({weight:g})" for concept, weight in weights.items()) or "none"
