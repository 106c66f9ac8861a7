"""Speed and memory of every path of the operator beside other implementations, side by side in one process.

usage: python models/ops/bench.py [--shapes encoder decoder ...] [--directions forward both] [--json FILE] ...

Everybody computes the same tensors; whoever's result differs from the reference's is named, not timed, and makes
the program exit with 1. Then all run in turns (A B C, C B A, ...): the time is the median over repetitions, the
ratio is the median over repetitions of the reference's time divided by the contestant's in the same repetition.
`cpu` is that ratio in CPU seconds: with one thread it is the one that other programs disturb least.

reference                the original repository's grid_sample formulation, differentiated by torch
compiled, weighted_rows, triton, grid_sample       paths of this package
...+fused                the fused entry of a path; beside it ("with arithmetic") everybody does the softmax and the
                         location arithmetic in torch first
transformers, deformops  those packages, where they are installed
reference_inductor, embedding_bag, embedding_bag_inductor       formulations, two of them under torch.compile, only
                         where --paths names them (compiling takes a minute)

`limit` is the lower bound that this machine sets (the slower of: rows gathered from the L2 cache, bytes copied once),
with both rates measured at the start; `of limit` is that bound divided by the median. Peak memory is what is needed
beyond inputs and outputs.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import torch
from benchmark.contestants import ON_REQUEST, Contestant, contestants
from benchmark.limits import Limits, gathered_bytes, lower_bound, measured_limits, seconds, unique_bytes
from benchmark.memory import peak_bytes
from benchmark.problems import SHAPES, Case, Inputs, make_inputs
from torch import Tensor

# Largest difference from the reference in units of the largest number of the reference's result.
TOLERANCES = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}

COLUMNS = ("shapes", "B", "dtype", "direction", "threads", "path", "ms", "x reference", "cpu", "limit ms", "of limit")


def smooth(inputs: Inputs) -> Tensor:
    """(B, Q, H, L, P, 2): coordinates far enough from a cell centre, where the gradient of a location jumps.

    There rounding decides which of two cells a formulation takes, and both are right.
    """
    sizes = inputs.shapes.flip(-1)[:, None].to(inputs.locations.device)
    position = inputs.locations.detach().double() * sizes - 0.5
    return (position - position.round()).abs() > 1e-3


def difference(inputs: Inputs, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """The largest difference between two results, each tensor's in units of its own largest number."""
    worst = 0.0
    for our, their in zip(ours, theirs, strict=True):
        if our.shape != their.shape or our.dtype != their.dtype:
            return float("inf")
        error, scale = (our.double() - their.double()).abs(), their.double().abs().max()
        if error.shape == inputs.locations.shape:
            error = error * smooth(inputs)
        worst = max(worst, (error.max() / scale).item()) if error.isfinite().all() else float("inf")
    return worst


def agreeing(case: Case, inputs: Inputs, group: list[Contestant]) -> tuple[list[Contestant], list[str]]:
    """The contestants whose result is that of the first one, and a sentence about each of the others."""
    expected, good, wrong = group[0].run(case, inputs), [group[0]], []
    for contestant in group[1:]:
        error = difference(inputs, contestant.run(case, inputs), expected)
        if error <= TOLERANCES[case.dtype]:
            good.append(contestant)
        else:
            wrong.append(f"{contestant.name} differs from the reference by {error:.1e} in {case}")
    return good, wrong


def timed(case: Case, inputs: Inputs, group: list[Contestant], repetitions: int | None) -> dict[str, list[tuple]]:
    """(wall, CPU) seconds of each repetition of each contestant; all are warm, since their results were compared."""
    first = seconds(lambda: group[0].run(case, inputs), case.device)
    times: dict[str, list[tuple]] = {contestant.name: [] for contestant in group}
    for repetition in range(repetitions or (7 if first > 0.1 else 25)):
        for contestant in group if repetition % 2 == 0 else reversed(group):
            start = time.process_time()
            wall = seconds(lambda: contestant.run(case, inputs), case.device)  # noqa: B023, called at once
            times[contestant.name].append((wall, time.process_time() - start))
    return times


def rows_of(case: Case, threads: int, group: list[Contestant], options: argparse.Namespace) -> tuple[list, list[str]]:
    """What is reported of a case: a row for each contestant, and sentences about wrong ones."""
    inputs = make_inputs(case)
    limits = measured_limits(case.device, threads)
    group, wrong = agreeing(case, inputs, group)
    load = os.getloadavg()[0]
    times = timed(case, inputs, group, options.repetitions)
    rows = []
    for contestant in group:
        pairs = list(zip(times[group[0].name], times[contestant.name], strict=True))
        wall = statistics.median(ours[0] for _, ours in pairs)
        bound = lower_bound(case, inputs, limits)
        rows.append(
            case._asdict()
            | {
                "threads": threads,
                "path": contestant.name,
                "median_s": wall,
                "ratio_to_reference": statistics.median(theirs[0] / ours[0] for theirs, ours in pairs),
                "peak_bytes": None,
                "cpu_median_s": statistics.median(ours[1] for _, ours in pairs),
                "cpu_ratio_to_reference": statistics.median(theirs[1] / max(ours[1], 1e-9) for theirs, ours in pairs),
                "fastest_s": min(ours[0] for _, ours in pairs),
                "repetitions": len(pairs),
                "load": load,
                "lower_bound_s": bound,
                "share_of_bound": bound / wall,
                "unique_bytes": unique_bytes(case, inputs),
                "unique_bytes_per_s": unique_bytes(case, inputs) / wall,
                "share_of_copy": unique_bytes(case, inputs) / wall / limits.copy,
                "gathered_bytes": gathered_bytes(case, inputs),
                "machine": machine(case.device),
                "torch": torch.__version__,
            }
        )
    del inputs
    if options.memory:
        for row, contestant in zip(rows, group, strict=True):
            row["peak_bytes"] = (
                None if contestant.name.endswith("_inductor") else peak_bytes(case, contestant.name, threads)
            )
    return rows, wrong


def machine(device: str) -> str:
    """The name of the processor that computes."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()}, {os.cpu_count()} cores"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {len(names)} cores"


def milliseconds(seconds: float) -> str:
    """Three digits, and never an exponent."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def print_rows(rows: Iterable[dict]) -> None:
    """A line of a Markdown table for each row."""
    rows = list(rows)
    reference = next((row["peak_bytes"] for row in rows if row["path"] == "reference"), None)
    for row in rows:
        peak, share = row["peak_bytes"], "-"
        if peak is not None:
            share = f"{peak / 1e6:.0f} ({peak / reference:.1%})" if reference else f"{peak / 1e6:.0f}"
        entry = "" if row["entry"] == "operator" else " with arithmetic"
        cells = (
            f"{row['shapes']}{'' if row['locations'] == 'local' else ' ' + row['locations']}",
            row["batch"],
            row["dtype"],
            f"{row['direction']}{entry}",
            row["threads"],
            row["path"],
            milliseconds(row["median_s"]),
            f"{row['ratio_to_reference']:.2f}",
            f"{row['cpu_ratio_to_reference']:.2f}" if row["device"] == "cpu" else "-",
            milliseconds(row["lower_bound_s"]),
            f"{row['share_of_bound']:.0%}",
            f"{row['unique_bytes_per_s'] / 1e9:.3g} ({row['share_of_copy']:.0%})",
            share,
        )
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_head(device: str, threads: Iterable[int], limits: dict[int, Limits]) -> None:
    """The machine, its limits and the head of the table."""
    print(f"{machine(device)}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    for count in threads:
        gather = "" if limits[count].gather is None else f", rows from L2 {limits[count].gather / 1e9:.0f} GB/s"
        print(f"{count} thread{'s' * (count > 1)}: copy {limits[count].copy / 1e9:.1f} GB/s{gather}")
    columns = (*COLUMNS, "GB/s (of copy)", "peak MB (of reference)")
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)


def chosen_contestants(device: str, dtype: str, names: list[str] | None) -> list[Contestant]:
    """The contestants with these names (default: all but those on request), always with the reference first."""
    there = contestants(device, dtype)
    if names is None:
        names = [name for name in there if name not in ON_REQUEST]
    unknown = [name for name in names if name not in there]
    if unknown:
        sys.exit(f"--paths names {', '.join(unknown)}; {device} with {dtype} has {', '.join(there)}")
    return [there[name]() for name in ("reference", *(name for name in names if name != "reference"))]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["encoder", "decoder"], choices=SHAPES, metavar="NAME")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N")
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", help="default: what torch is set to")
    parser.add_argument("--directions", nargs="+", default=["forward", "both"], choices=["forward", "both"])
    parser.add_argument("--entries", nargs="+", default=["operator", "fused"], choices=["operator", "fused"])
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=TOLERANCES)
    parser.add_argument("--locations", nargs="+", default=["local"], choices=["local", "uniform"])
    parser.add_argument("--paths", nargs="+", metavar="NAME", help="default: all but the three formulations")
    parser.add_argument(
        "--repetitions", type=int, metavar="N", help="default: 7, or 25 where the reference takes < 0.1 s"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row there")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_arguments()
    threads = (options.threads or [torch.get_num_threads()]) if options.device == "cpu" else [torch.get_num_threads()]
    limits = {}
    for count in threads:
        torch.set_num_threads(count)
        limits[count] = measured_limits(options.device, count)
    print_head(options.device, threads, limits)
    rows, wrong = [], []
    cases = product(
        options.shapes, options.batch, options.dtype, options.locations, options.entries, options.directions
    )
    for (shapes, batch, dtype, locations, entry, direction), count in product(cases, threads):
        case = Case(shapes, batch, dtype, locations, options.device, entry, direction)
        group = [one for one in chosen_contestants(options.device, dtype, options.paths) if one.enters(case)]
        torch.set_num_threads(count)
        new, complaints = rows_of(case, count, group, options)
        print_rows(new)
        rows += new
        wrong += complaints
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    for complaint in wrong:
        print(complaint, file=sys.stderr)
    if options.device == "cpu" and any(row["load"] > sum(threads) / len(threads) + 0.5 for row in rows):
        print(
            "other programs were running: trust the cpu ratios of one thread, and no time of several", file=sys.stderr
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
