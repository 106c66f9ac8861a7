"""A debug set on the disk: an ImageFolder tree beside `manifest.jsonl`, which says where every image comes from."""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_xai.data.debugset_manifest import MANIFEST, Entry, check_below, manifest_text
from lightning_xai.data.image_generators import ImageGenerator

FILES = ("copy", "symlink")


def write_debugset(
    entries: Sequence[Entry],
    out: str | os.PathLike,
    class_names: Sequence[str],
    generator: ImageGenerator | None = None,
    files: str = "copy",
    batch_size: int = 8,
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the images of `entries` and their manifest; the folder appears under its name when it is complete.

    Until then it is called `<out>.partial`, and a second call with the same entries goes on where the first ended.
    A complete folder of the same entries is left as it is, one that lost images gets them again. Each of `class_names`
    has a folder, be it empty.

    Args:
        generator: makes the images that have a prompt.
        files: "copy" selected images or "symlink" them.
        batch_size: how many images the generator is asked for at once.
        size: (h, w) of generated images; None leaves it to the generator.
        overwrite: replace a debug set of other entries at `out`.

    Raises:
        ValueError: two entries share a path, a path or class leads out of the folder, a class is not one of
            `class_names`, or prompts come without generator.
        FileExistsError: `out` holds something else.
        OSError: an image cannot be copied or written.
    """
    out, text = Path(out), manifest_text(entries)
    _check(entries, class_names, generator, files)
    there = out.exists() and _is(out, text)
    if there and all((out / entry.path).is_file() for entry in entries):
        return out
    if not there and out.exists() and any(out.iterdir()):
        is_set = (out / MANIFEST).is_file()
        if not (overwrite and is_set):
            what = "another debug set, which `overwrite` would replace" if is_set else "other files"
            raise FileExistsError(f"{out}: holds {what}; give another folder.")
    prompts = [entry for entry in entries if entry.prompt is not None]
    if generator is not None:
        generator.check([entry.prompt for entry in prompts], [entry.seed for entry in prompts])
    partial = out if there else _begin(out, text)
    for name in class_names:
        (partial / name).mkdir(exist_ok=True)
    for entry in entries:
        if entry.source is not None and not (partial / entry.path).is_file():
            _take(entry, partial / entry.path, files)
    left = [entry for entry in prompts if not (partial / entry.path).is_file()]
    for start in range(0, len(left), batch_size):
        _generate(left[start : start + batch_size], partial, generator, size)
    if not there:
        if out.exists():
            shutil.rmtree(out)
        os.replace(partial, out)
    return out


def _is(folder: Path, text: str) -> bool:
    file = folder / MANIFEST
    return file.is_file() and file.read_text(encoding="utf-8") == text


def _check(entries: Sequence[Entry], class_names: Sequence[str], generator: ImageGenerator | None, files: str) -> None:
    if files not in FILES:
        raise ValueError(f"files={files!r} should be one of {', '.join(FILES)}.")
    if not entries:
        raise ValueError("a debug set needs at least one image, but the strategy found none.")
    path, times = Counter(entry.path for entry in entries).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{times} images of the debug set would be {path!r}; every image needs a path of its own.")
    for name in class_names:
        if Path(name).name != name or name in (".", ".."):
            raise ValueError(f"class {name!r} cannot be the name of a folder; give names without '/'.")
    for entry in entries:
        check_below(entry.path, "debug set")
        if entry.class_name not in class_names:
            raise ValueError(f"{entry.path}: class {entry.class_name!r} is none of {', '.join(class_names)}.")
        if (entry.source is None) == (entry.prompt is None):
            raise ValueError(f"{entry.path}: an entry has either a source to copy or a prompt to draw.")
        if entry.prompt is not None and generator is None:
            raise ValueError(f"{entry.path}: its prompt {entry.prompt!r} needs an image generator.")


def _begin(out: Path, text: str) -> Path:
    """`<out>.partial` with the manifest in it: as an interrupted call with the same entries left it, or a new one."""
    partial = out.with_name(out.name + ".partial")
    if partial.exists() and not _is(partial, text):
        if not (partial / MANIFEST).is_file() and any(partial.iterdir()):
            raise FileExistsError(f"{partial}: holds other files; remove it or give another folder.")
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / MANIFEST).write_text(text, encoding="utf-8")
    return partial


def _take(entry: Entry, target: Path, files: str) -> None:
    source = Path(entry.source).absolute()
    if not source.is_file():
        raise FileNotFoundError(f"{entry.source}: no such file any more; it was chosen for {entry.path}.")
    if files == "symlink":
        target.unlink(missing_ok=True)
        os.symlink(source, target)
        return
    half = target.with_name(target.name + ".half")
    shutil.copyfile(source, half)
    os.replace(half, target)


def _generate(entries: Sequence[Entry], folder: Path, generator: ImageGenerator, size: tuple[int, int] | None) -> None:
    images = generator.generate(
        [entry.prompt for entry in entries],
        [entry.seed for entry in entries],
        [entry.negative_prompt or "" for entry in entries],
        size,
    )
    if len(images) != len(entries):
        raise ValueError(f"{generator.provider} gave {len(images)} images for {len(entries)} prompts.")
    for entry, image in zip(entries, images, strict=True):
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"{generator.provider} gave {image.dtype} {image.shape} for {entry.prompt!r}; "
                "an image should be uint8 (h, w, 3)."
            )
        half = (folder / entry.path).with_name(Path(entry.path).name + ".half")
        Image.fromarray(image).save(half, format="PNG")
        os.replace(half, folder / entry.path)
