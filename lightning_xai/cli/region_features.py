"""region-features: what a captioner reads of new pictures and of the boxes of their graphs, computed into files."""

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_xai.data.feature_folder import FeatureFolder
    from lightning_xai.data.picture_split import Computed, PictureSplit
    from lightning_xai.data.vocabulary import Vocabulary

REPORT_EVERY = 10.0  # seconds
BUILD = "build"
WHAT = (
    "Compute what a captioner reads of new pictures: a feature of each picture (a ResNet, averaged over the whole "
    "picture) and of each box of its graphs (the box head of a Faster R-CNN), by torchvision's networks, as files of "
    "the published layout. A run that was ended goes on where it stopped; what is there is not computed again."
)
CONFIG, BATCH = "configs/ega_new_pictures.yaml", 32  # what it trains on at once


def run(command: str, words: list[str]) -> int:
    options = _parser().parse_args(words)

    from lightning_xai.cli.our_sentence import our_sentence

    try:
        _run(options)
    except Exception as error:
        sentence = our_sentence(error)
        if sentence is None and isinstance(error, OSError) and error.filename is not None:
            sentence = f"{error.filename}: {error.strerror}"
        if sentence is None:  # a mistake of ours, to be seen where it is
            raise
        raise SystemExit(f"lightning-xai region-features: {sentence}") from error
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lightning-xai region-features", description=WHAT, allow_abbrev=False)
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="pictures; an id is a file name before the first dot")
    add("--graphs", type=Path, required=True, metavar="DIR", help="<image id>.json, the regions of each picture")
    add("--out", type=Path, required=True, metavar="ROOT", help="root of the published layout, begun or gone on with")
    add(
        "--split",
        required=True,
        metavar="NAME",
        help="trn, val, tst or another; where ROOT has lists of it these are followed, else it has all graphs",
    )
    add("--relist", action="store_true", help="the split shall have all graphs, whatever its lists in ROOT say")
    add("--leave_out", action="store_true", help="do without pictures and regions that have a fault, instead of ending")
    add(
        "--boxes",
        choices=("inclusive", "exclusive"),
        default="inclusive",
        help="whether a box in the files ends at its last pixel (MSCOCO, default) or behind it (Visual Genome)",
    )
    add("--image_weights", metavar="FILE|download", help="state dict of the image network, or torchvision's own")
    add("--box_weights", metavar="FILE|download", help="state dict of the box network, or torchvision's own")
    add("--image_network", default="resnet101", metavar="NAME", help="a ResNet (default: resnet101)")
    add(
        "--box_network",
        default="fasterrcnn_resnet50_fpn",
        metavar="NAME",
        help="a Faster R-CNN (default: fasterrcnn_resnet50_fpn)",
    )
    add(
        "--short_side",
        type=int,
        default=256,
        metavar="N",
        help="pixels of a picture as the image network sees it (default: 256)",
    )
    add("--image_feature_name", metavar="NAME", help="below ordered_feature/MP (default: torchvision.<image network>)")
    add("--box_feature_name", metavar="NAME", help="below ordered_feature/SA (default: torchvision.<box network>)")
    add(
        "--vocabulary",
        metavar="build|FILE",
        help="the words: built of this split's phrases, to train with, or the int2word.npy or word2int.json of a "
        "trained captioner (default: those that ROOT has)",
    )
    add(
        "--min_count",
        type=int,
        default=1,
        metavar="N",
        help="words that are rarer are unknown to a vocabulary built (default: 1)",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1 and so on (default: a GPU where there is one)")
    return parser


def _run(options: argparse.Namespace) -> None:
    from lightning_xai.data.feature_folder import FeatureFolder
    from lightning_xai.data.node_features import import_h5py
    from lightning_xai.data.picture_split import compute_features, keep_regions, missing_features, picture_split
    from lightning_xai.data.torchvision_features import TorchvisionFeatures

    if Path(options.split).name != options.split:
        raise ValueError(f"--split {options.split!r} is part of file names, so it must be a name such as trn.")
    if options.min_count < 1:
        raise ValueError(f"--min_count {options.min_count} must be at least 1.")
    import_h5py()
    networks = TorchvisionFeatures(
        options.image_weights,
        options.box_weights,
        options.image_network,
        options.box_network,
        options.short_side,
        options.device,
    )
    folder = FeatureFolder(
        options.out,
        options.image_feature_name or f"torchvision.{options.image_network}",
        options.box_feature_name or f"torchvision.{options.box_network}",
    )
    inclusive = options.boxes == "inclusive"
    split = picture_split(folder, options.split, options.images, options.graphs, inclusive, options.relist)
    for note in split.notes:
        print(note)
    stop_or_leave_out(split, options.leave_out)
    _vocabulary(options, split)  # so that a missing one is said before anything is written
    folder.claim(networks.image_origin, {**networks.box_origin, "boxes": options.boxes})
    keep_regions(split, folder, options.graphs)
    tasks = missing_features(split, folder)
    stop_or_leave_out(split, options.leave_out)
    if (vocabulary := _vocabulary(options, split)) is not None:
        folder.check_vocabulary(vocabulary)
    folder.check_names(options.split, split.file_names())
    if tasks:
        networks.load()
    print(f"{len(tasks)} of {len(split.pictures)} pictures to compute on {networks.device}", flush=True)
    done = compute_features(tasks, split, folder, networks, _progress(len(tasks)))
    stop_or_leave_out(split, options.leave_out)
    folder.finish(options.split, split.file_names(), split.samples())
    if (vocabulary := _vocabulary(options, split)) is not None:  # of what was not left out
        folder.write_vocabulary(vocabulary)
    for line in _summary(options, split, folder, done, (networks.image_size, networks.box_size)):
        print(line)


def stop_or_leave_out(split: "PictureSplit", leave_out: bool) -> None:
    """Print what is left out of a split. Raises ValueError for faults that may not be, and for a split without rest."""
    faults, split.faults = split.faults, []
    if faults and not (leave_out and split.pictures):
        many = "" if len(faults) == 1 else f"{len(faults)} faults in split {split.name!r}, the first: "
        advice = "or add --leave_out to do without it" if split.pictures else "nothing else is left"
        raise ValueError(f"{many}{faults[0].rstrip('.')}; repair that, {advice}.")
    for fault in faults:
        print(f"left out: {fault}")


def _vocabulary(options: argparse.Namespace, split: "PictureSplit") -> "Vocabulary | None":
    from lightning_xai.data.feature_folder import read_words, words_of

    if options.vocabulary == BUILD:
        words = words_of(split.phrases(), options.min_count)
        if len(words) == 3:
            rare = f" with words that come at least {options.min_count} times" if any(split.phrases()) else ""
            raise ValueError(f"no region of split {options.split!r} has a phrase{rare} to build a vocabulary of.")
        return words
    return None if options.vocabulary is None else read_words(options.vocabulary)


def _progress(total: int) -> Callable[[int, float], None]:
    said = 0.0

    def report(done: int, seconds: float) -> None:
        nonlocal said
        if seconds - said >= REPORT_EVERY:
            said = seconds
            left = (total - done) * seconds / done / 60
            print(f"{done} of {total} pictures, {done / seconds:.2f} pictures/s, {left:.0f} min left", flush=True)

    return report


def _summary(
    options: argparse.Namespace,
    split: "PictureSplit",
    folder: "FeatureFolder",
    done: "Computed",
    sizes: tuple[int, int],
) -> list[str]:
    image_name, box_name = folder.image_folder.name, folder.box_folder.name
    boxes = sum(len(picture.boxes) for picture in split.pictures.values())
    speed = f" in {done.seconds:.1f} s, {done.pictures / done.seconds:.2f} pictures/s" if done.pictures else ""
    lines = [
        f"computed now: features of {done.pictures} pictures and {done.boxes} boxes{speed}",
        f"{folder.image_folder / f'{options.split}_ft.npy'}: {len(split.pictures)} pictures x {sizes[0]}",
        f"{folder.boxes}: {boxes} boxes x {sizes[1]}",
        f"{folder.samples_file(options.split)}: {len(split.samples())} regions",
    ]
    if silent := sum(not phrase.strip() for phrase in split.phrases()):
        lines.append(f"{silent} regions have no phrase: captions of them can be written, but not trained or measured")
    words = folder.vocabulary()
    if words is None:
        lines.append(
            f"no vocabulary in {folder.annotations}: add --vocabulary build for the training split, or give the "
            "int2word.npy of the captioner that shall be used"
        )
        return lines
    command = ["lightning-xai", "fit", "--config", CONFIG, "--data.root", str(options.out)]
    command += ["--model.net.vocabulary", str(len(words))]
    command += [] if options.boxes == "inclusive" else ["--data.boxes", options.boxes]
    for name, given, usual in (
        ("--data.image_feature_name", image_name, "torchvision.resnet101"),
        ("--data.box_feature_name", box_name, "torchvision.fasterrcnn_resnet50_fpn"),
        ("--model.net.global_dim", sizes[0], 2048),
        ("--model.net.feature_dim", sizes[1], 1024),
    ):
        command += [] if given == usual else [name, str(given)]
    if options.split == "trn" and len(split.samples()) < BATCH:
        command += ["--data.batch_size", str(len(split.samples()))]
    return [*lines, f"{len(words)} words; with splits trn, val and tst a captioner is trained by:", shlex.join(command)]
