"""Merging five checkpoints of Qwen3-0.6B shape: this kit beside mergekit, and beside what the disk allows at most.

    python benchmarks/merge_throughput.py --family /tmp/family --pairs 3 --mergekit --output result.json

The family of `peers/make_merge_family.py` is made if it is not there; with ``--mergekit`` so is an environment of its
own with mergekit, which is only ever run as a program. Every pair begins with the floor: all bytes of the inputs read
once, as many as the output has written once and synced (of writing through the page cache and past it, the faster),
nothing computed. Then both sides merge the same recipe in turns, with warm inputs. Afterwards every tensor is compared
with a float64 computation that shares no code with either.

A table, and as the last line one JSON object: ``ratio_mergekit`` is the median over all pairs (none is dropped) of
mergekit's wall time divided by ours (null without it), ``ratio_floor`` that of ours divided by the floor's,
``anonymous_gib`` the most memory of our own that any of our runs held, ``max_relative_error`` our worst tensor's.
Our runs sync their output to the disk, as the floor does; mergekit's do not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from make_merge_family import SHAPES, FamilyOptions, existing_family, write_family
from merge_reference import relative_errors
from process_meter import Measured, measure

HERE = Path(__file__).parent
WEIGHTS = [0.2, 0.4, 0.6, 0.8, 1.0]
BLOCK = 16 << 20  # bytes read or written at once by the floor
THREADS = 2
MERGEKIT = ["torch==2.13.0", "mergekit==0.1.5"]  # in this order: torch first, so that no other build is pulled in
QUICK = {"GOMP_SPINCOUNT": "2000", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Sides:
    """Commands of what is compared, without recipe and output, and their environments."""

    commands: Mapping[str, Sequence[str]]
    environments: Mapping[str, Mapping[str, str]]
    options: Mapping[str, Sequence[str]]


def make_sides(mergekit: Path | None) -> Sides:
    """Ours, and mergekit's where its environment is given.

    mergekit gets huge pages for torch's allocations, which halve its time.
    """
    commands: dict[str, Sequence[str]] = {"ours": [sys.executable, "-m", "boom_utils", "merge"]}
    if mergekit is not None:
        commands["mergekit"] = [str(mergekit / "bin" / "mergekit-yaml")]
    environment = {**os.environ, **QUICK}
    environments = {"ours": environment, "mergekit": {**environment, "THP_MEM_ALLOC_ENABLE": "1"}}
    lazy = ["--lazy-unpickle", "--num-threads", str(THREADS), "--no-copy-tokenizer"]  # the inputs have no tokenizer
    return Sides(commands, environments, {"ours": [], "mergekit": lazy})


def make_mergekit(folder: Path) -> Path:
    """An environment with mergekit; one that is there is kept."""
    if not (folder / "bin" / "mergekit-yaml").is_file():
        print(f"installing {' and '.join(MERGEKIT)} in {folder}", flush=True)  # noqa: T201
        venv.create(folder, with_pip=True, symlinks=True)
        for package in MERGEKIT:
            subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", package], check=True)
    return folder


def make_family(folder: Path, options: FamilyOptions) -> tuple[list[Path], dict[str, Any]]:
    """Folders of the members and what they were made of; a family that is there is kept."""
    place = folder / f"{options.shape}-{options.dtype}"
    meta = existing_family(place, options)
    if meta is None:
        print(f"writing a family in {place}", flush=True)  # noqa: T201
        meta = write_family(place, options)
    return [place / name for name in meta["members"]], meta


def write_recipe(path: Path, members: Sequence[Path]) -> None:
    """The recipe both sides merge: multislerp with the weights 0.2 to 1.0, in float32. JSON is YAML, too."""
    models = [
        {"model": str(member.resolve()), "parameters": {"weight": weight}}
        for member, weight in zip(members, WEIGHTS, strict=True)
    ]
    path.write_text(json.dumps({"merge_method": "multislerp", "models": models, "dtype": "float32"}, indent=1))


def weight_files(folders: Sequence[Path]) -> list[Path]:
    """All weight files of model folders."""
    return [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]


def size_of(paths: Sequence[Path]) -> int:
    """Bytes of files."""
    return sum(path.stat().st_size for path in paths)


def read_all(paths: Sequence[Path]) -> None:
    """Read files from start to end, block after block, with two threads; each has one buffer that it reuses."""
    blocks = ((path, start) for path in paths for start in range(0, path.stat().st_size, BLOCK))
    lock = threading.Lock()
    threads = [threading.Thread(target=_read_blocks, args=(blocks, lock)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _read_blocks(blocks: Iterator[tuple[Path, int]], lock: threading.Lock) -> None:
    buffer, opened, file = bytearray(BLOCK), None, -1
    while True:
        with lock:
            path, start = next(blocks, (None, 0))
        if path != opened and file >= 0:
            os.close(file)
        if path is None:
            return
        if path != opened:
            opened, file = path, os.open(path, os.O_RDONLY)
        os.preadv(file, [buffer], start)


def write_synced(path: Path, size: int, flags: int = 0) -> float:
    """Write at least so many bytes from one buffer and wait until the disk has them; returns the seconds."""
    buffer = mmap.mmap(-1, BLOCK)  # begins at a page, as writing past the page cache asks
    buffer.write(os.urandom(1 << 20) * (BLOCK >> 20))
    began = time.perf_counter()
    number = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    try:
        for start in range(0, size, BLOCK):
            os.pwrite(number, buffer, start)
        os.fsync(number)
    finally:
        os.close(number)
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def floor(inputs: Sequence[Path], scratch: Path, output_bytes: int) -> dict[str, float]:
    """Seconds to read the inputs once and write the output once, with warm inputs; of two ways to write, the faster."""
    os.sync()
    read_all(inputs)
    began = time.perf_counter()
    read_all(inputs)
    read = time.perf_counter() - began
    cached = write_synced(scratch / "floor", output_bytes)
    direct = math.inf
    with suppress(OSError, AttributeError):  # not every system and file system can be written past its cache
        direct = write_synced(scratch / "floor", output_bytes, os.O_DIRECT)
    return {
        "read_seconds": round(read, 3),
        "write_seconds": round(min(cached, direct), 3),
        "write_through_cache_seconds": round(cached, 3),
    }


def run(side: str, sides: Sides, inputs: Sequence[Path], scratch: Path) -> dict[str, Any]:
    """One merge in a process of its own; its output stays at ``scratch``/``side`` until the next one."""
    output = scratch / side
    shutil.rmtree(output, ignore_errors=True)
    os.sync()  # what others wrote is not to be waited for in this run
    read_all(inputs)
    command = [*sides.commands[side], str(scratch / "recipe.yaml"), str(output), *sides.options[side]]
    measured = measure(command, sides.environments[side], HERE.parent)
    return row(measured, size_of(inputs) + size_of(weight_files([output])))


def row(measured: Measured, moved: int) -> dict[str, Any]:
    """A run as it is recorded; ``moved`` is the bytes of inputs and output."""
    anonymous = measured.anonymous_bytes
    return {
        "wall_seconds": round(measured.wall_seconds, 3),
        "cpu_seconds": round(measured.cpu_seconds, 3),
        "anonymous_gib": None if anonymous is None else round(anonymous / 2**30, 3),
        "gb_per_second": round(moved / measured.wall_seconds / 1e9, 3),
    }


def run_pair(number: int, sides: Sides, inputs: Sequence[Path], scratch: Path, output_bytes: int) -> dict[str, Any]:
    """The floor, then every side once; the side that begins alternates."""
    parts = floor(inputs, scratch, output_bytes)
    order = list(sides.commands) if number % 2 else list(sides.commands)[::-1]
    runs = {side: run(side, sides, inputs, scratch) for side in order}
    ours, theirs = runs["ours"], runs.get("mergekit")
    seconds = parts["read_seconds"] + parts["write_seconds"]
    return {
        "floor": parts,
        "ours": ours,
        "mergekit": theirs,
        "ratio_floor": round(ours["wall_seconds"] / seconds, 3),
        "ratio_mergekit": theirs and round(theirs["wall_seconds"] / ours["wall_seconds"], 3),
    }


def summary(pairs: Sequence[Mapping[str, Any]], errors: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The result: medians over all pairs, the most memory, the worst tensor."""
    against = [pair["ratio_mergekit"] for pair in pairs if pair["ratio_mergekit"] is not None]
    memory = [pair["ours"]["anonymous_gib"] for pair in pairs]
    return {
        "ratio_mergekit": round(statistics.median(against), 3) if against else None,
        "ratio_floor": round(statistics.median(pair["ratio_floor"] for pair in pairs), 3),
        "anonymous_gib": None if None in memory else max(memory),
        "max_relative_error": max(errors["ours"].values()),
    }


def table(pairs: Sequence[Mapping[str, Any]]) -> str:
    """All runs, one a line."""
    lines = [f"{'pair':>4} {'':>9} {'wall s':>8} {'CPU s':>8} {'anon GiB':>9} {'GB/s':>6}  ratio"]
    for number, pair in enumerate(pairs, start=1):
        parts = pair["floor"]
        read, write = parts["read_seconds"], parts["write_seconds"]
        split = f"read {read:.2f} + write {write:.2f} ({parts['write_through_cache_seconds']:.2f} through the cache)"
        lines.append(f"{number:>4} {'floor':>9} {read + write:>8.2f}  {split}")
        for side in ("ours", "mergekit"):
            if found := pair[side]:
                memory = "-" if found["anonymous_gib"] is None else f"{found['anonymous_gib']:.3f}"
                spent = f"{found['wall_seconds']:>8.2f} {found['cpu_seconds']:>8.2f} {memory:>9}"
                ratio = {"ours": f"{pair['ratio_floor']} x the floor", "mergekit": f"{pair['ratio_mergekit']} x ours"}[
                    side
                ]
                lines.append(f"{number:>4} {side:>9} {spent} {found['gb_per_second']:>6.2f}  {ratio}")
    return "\n".join(lines)


def worst_tensor(errors: Mapping[str, float]) -> dict[str, Any]:
    """The tensor with the largest error, the median one, and the embedding, which is the largest tensor."""
    name = max(errors, key=errors.__getitem__)
    return {
        "tensor": name,
        "max": errors[name],
        "median": statistics.median(errors.values()),
        "embedding": errors["model.embed_tokens.weight"],
    }


_VERSIONS = """
import importlib.metadata, json, platform
names = ["mergekit", "torch", "transformers", "safetensors", "numpy"]
print(json.dumps({"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}))
"""


def versions(mergekit: Path | None) -> dict[str, Any]:
    """Versions of what ran on each side."""
    names = ["boom_utils", "numba", "numpy", "safetensors"]
    ours = {name: importlib.metadata.version(name) for name in names}
    found: dict[str, Any] = {"ours": {"python": platform.python_version(), **ours}}
    if mergekit is not None:
        said = subprocess.run([str(mergekit / "bin" / "python"), "-c", _VERSIONS], capture_output=True, check=True)
        found["mergekit"] = json.loads(said.stdout)
    return found


def processor() -> str:
    """Processor, cores and memory; no host name. A GPU would not be used."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"


def benchmark(folder: Path, options: FamilyOptions, pairs: int, mergekit: Path | None) -> dict[str, Any]:
    """Make what is missing, run all pairs, compare, and return the whole record."""
    members, meta = make_family(folder, options)
    sides = make_sides(make_mergekit(mergekit) if mergekit is not None else None)
    inputs, output_bytes = weight_files(members), 4 * SHAPES[options.shape].parameters
    with tempfile.TemporaryDirectory(dir=folder, prefix="merged-") as name:  # the family's own disk
        scratch = Path(name).resolve()
        write_recipe(scratch / "recipe.yaml", members)
        found = []
        for number in range(1, pairs + 1):
            found.append(run_pair(number, sides, inputs, scratch, output_bytes))
            print(f"pair {number} of {pairs}: {json.dumps(found[-1])}", flush=True)  # noqa: T201
        errors = {side: relative_errors(members, WEIGHTS, scratch / side) for side in sides.commands}
    return {
        **summary(found, errors),
        "relative_error": {side: worst_tensor(of_side) for side, of_side in errors.items()},
        "pairs": found,
        "method": "multislerp",
        "weights": WEIGHTS,
        "dtypes": {"inputs": options.dtype, "output": "fp32"},
        "input_bytes": size_of(inputs),
        "output_bytes": output_bytes,
        "family": meta,
        "versions": versions(mergekit),
        "machine": processor(),
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main() -> None:
    """Compare as the command line asks; the last line printed is the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, metavar="FOLDER", help="keep the checkpoints here, use those there")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3_0.6b")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of the inputs; the output is fp32")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side (3)")
    parser.add_argument("--mergekit", action="store_true", help="beside mergekit, installed in its own environment")
    parser.add_argument("--mergekit-env", type=Path, metavar="FOLDER", help="that environment (FAMILY/mergekit-env)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the whole record here")
    options = parser.parse_args()
    if options.pairs < 1:
        parser.error("--pairs is 1 or more")
    with tempfile.TemporaryDirectory(prefix="merge-family-") as temporary:
        folder = options.family or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        mergekit = (options.mergekit_env or folder / "mergekit-env").absolute() if options.mergekit else None
        record = benchmark(folder, FamilyOptions(options.shape, options.dtype), options.pairs, mergekit)
    if options.output is not None:
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record["pairs"]))  # noqa: T201
    for side, worst in record["relative_error"].items():
        print(f"{side}: relative error at most {worst['max']:.2e} ({worst['tensor']}), ", end="")  # noqa: T201
        print(f"median {worst['median']:.2e}, embedding {worst['embedding']:.2e}")  # noqa: T201
    keys = ("ratio_mergekit", "ratio_floor", "anonymous_gib", "max_relative_error")
    print(json.dumps({key: record[key] for key in keys}))  # noqa: T201


if __name__ == "__main__":
    main()
