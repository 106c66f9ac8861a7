"""convert-arrays: .npy files of Python objects as plain arrays, which are read without unpickling anything."""

import argparse
from pathlib import Path

RISK = (
    "An array of Python objects is a pickle: a program that loads one the usual way runs whatever its author put in. "
    "Here only numbers, strings and lists of them are taken out and anything else is refused; still, convert only "
    "files whose source you trust."
)


def run(command: str, words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "lightning-xai convert-arrays",
        description="Turn .npy files of Python objects (lists of names, of words) into plain arrays, once.",
        epilog=RISK,
    )
    parser.add_argument("files", type=Path, nargs="+", help=".npy files")
    parser.add_argument("--out", type=Path, help="folder for the plain arrays (default: in place, the old one kept)")
    options = parser.parse_args(words)

    import numpy as np

    from lightning_xai.data.plain_arrays import plain_array

    print(RISK)
    refused = []
    for file in options.files:
        try:
            array = plain_array(file)
        except (OSError, ValueError) as error:
            refused.append(str(error))
            continue
        target = file if options.out is None else options.out / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        complete = target.with_name(f"{target.name}.partial")
        with complete.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
        if options.out is None:
            kept = file.with_name(f"{file.name}.objects")
            file.replace(kept)
        complete.replace(target)
        print(f"{target}: {array.dtype} {array.shape}" + (f" (before: {kept})" if options.out is None else ""))
    if refused:
        raise SystemExit("\n".join(f"lightning-xai convert-arrays: {reason}" for reason in refused))
    return 0
