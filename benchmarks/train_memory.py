"""Peak memory of a training step against the batch size, all activations kept and with ``tokens_in_memory``.

    python benchmarks/train_memory.py --batches 16 32 64 128 256

Each size is a workload of its own (the retrieval batches of `peers/make_workload.py`) in processes of their own. The
last line is the result as one JSON object: ``whole_mb`` and ``chunked_mb`` a batch size, and the time of the second
divided by that of the first. Without a GPU memory is that of the process, libraries included (``idle_mb``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from train_throughput import HERE, OURS, machine, run

_IDLE = """
import resource, boom_utils.training.loop
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def measure(batch: int, tokens_in_memory: int, folder: Path) -> dict[str, Any]:
    """One batch size: two retrieval steps, the first a warm-up."""
    workload = folder / str(batch)
    generator = [sys.executable, str(HERE / "peers" / "make_workload.py"), str(workload)]
    subprocess.run([*generator, "--steps", "8", "--batch", str(batch)], check=True, capture_output=True)
    arguments = [str(workload), str(workload / "models" / "qwen3_tiny"), "--dataset", "retrieval", "--steps", "2"]
    arguments += ["--warmup-steps", "1", "--tokens-per-micro-batch", "1024"]
    whole = run(OURS, arguments)
    chunked = run(OURS, [*arguments, "--tokens-in-memory", str(tokens_in_memory)])
    row = {
        "batch": batch,
        "tokens": whole["distinct_tokens"],
        "whole_mb": whole["peak_memory_mb"],
        "chunked_mb": chunked["peak_memory_mb"],
        "time_ratio": round(chunked["wall_seconds"] / whole["wall_seconds"], 2),
        "loss_difference": round(max(abs(a - b) for a, b in zip(whole["losses"], chunked["losses"], strict=True)), 7),
    }
    print(json.dumps(row), flush=True)  # noqa: T201
    return row


def main() -> None:
    """Measure every batch size; the last line printed is the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--tokens-in-memory", type=int, default=2048, help="most tokens whose activations are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(batch, options.tokens_in_memory, Path(folder)) for batch in options.batches]
    idle = float(subprocess.run([sys.executable, "-c", _IDLE], capture_output=True, text=True, check=True).stdout)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    facts = {"tokens_in_memory": options.tokens_in_memory, "idle_mb": round(idle), "machine": machine()}
    print(json.dumps({**columns, **facts, "measured": time.strftime("%Y-%m-%d", time.gmtime())}))  # noqa: T201


if __name__ == "__main__":
    main()
