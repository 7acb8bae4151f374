"""Our trainer beside sentence-transformers on the same batches from the same weights, alternating.

    python benchmarks/peers/make_workload.py /tmp/workload --steps 24
    python benchmarks/train_throughput.py --workload /tmp/workload --pairs 5

Every line is one JSON object; the last is the result: ``ratio`` is the median over all pairs (none is dropped) of our
examples per second divided by theirs, ``max_loss_difference`` the largest over all steps and pairs, ``mfu`` the share
of the measured matrix-product rate of this machine that our credited operations used.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
THEIRS, OURS = HERE / "peers" / "sentence_transformers_train.py", HERE / "boom_train.py"


def run(script: Path, arguments: list[str]) -> dict[str, Any]:
    """Run one side in a process of its own and read its report.

    Raises:
        RuntimeError: It failed; its last lines are in the message.
    """
    environment = {"GOMP_SPINCOUNT": "2000", **os.environ, "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def product_rate(precision: str) -> float:
    """Operations per second of a large matrix product in this process now, the best of twelve."""
    import torch

    device, dtype = (
        "cuda" if torch.cuda.is_available() else "cpu",
        {"fp32": torch.float32}.get(precision, torch.bfloat16),
    )
    size, best = 8192 if device == "cuda" else 2048, 0.0
    generator = torch.Generator(device)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    for _ in range(12):
        began = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def matrix_product_rate(precision: str) -> float:
    """The same in a process of its own."""
    command = [sys.executable, "-c", f"import train_throughput as t; print(t.product_rate({precision!r}))"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE).stdout)


def machine() -> str:
    """Processor or GPU, and cores; no host name."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def today() -> str:
    """The day of a measurement."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def compare(workload: Path, pairs: int, arguments: list[str], precision: str) -> dict[str, Any]:
    """Alternate the two sides and sum up."""
    found, reports = [], []
    for number in range(pairs):
        order = [THEIRS, OURS] if number % 2 == 0 else [OURS, THEIRS]
        rates = [matrix_product_rate(precision)]
        both = {script: run(script, arguments) for script in order}
        rates.append(matrix_product_rate(precision))
        theirs, ours = both[THEIRS], both[OURS]
        gap = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
        pair = {
            "ratio": round(ours["examples_per_second"] / theirs["examples_per_second"], 3),
            "ours": ours["examples_per_second"],
            "theirs": theirs["examples_per_second"],
            "mfu": round(ours["flops"] / ours["wall_seconds"] / max(rates), 3),
            "gflops": round(max(rates) / 1e9),
            "loss_difference": round(gap, 7),
        }
        print(json.dumps(pair), flush=True)  # noqa: T201
        found.append(pair)
        reports.append((ours, theirs))
    return summary(workload, found, reports)


def summary(
    workload: Path, found: list[dict[str, Any]], reports: list[tuple[dict[str, Any], dict[str, Any]]]
) -> dict[str, Any]:
    """The result: medians over all pairs."""
    ours, theirs = reports[-1]
    return {
        "ratio": statistics.median(pair["ratio"] for pair in found),
        "pairs": [pair["ratio"] for pair in found],
        "max_loss_difference": max(pair["loss_difference"] for pair in found),
        "mfu": statistics.median(pair["mfu"] for pair in found),
        "matrix_product_gflops": statistics.median(pair["gflops"] for pair in found),
        "examples_per_second": {side: statistics.median(pair[side] for pair in found) for side in ("ours", "theirs")},
        "padding_share": {
            "ours": 0.0 if ours["padding_share"] < 0 else ours["padding_share"],
            "theirs": theirs["padding_share"],
        },
        "peak_memory_mb": {"ours": ours["peak_memory_mb"], "theirs": theirs["peak_memory_mb"]},
        "implementations": [ours["implementation"], theirs["implementation"]],
        "workload": json.loads((workload / "meta.json").read_text())["stats"],
        "machine": machine(),
        "measured": today(),
    }


def main() -> None:
    """Compare as the command line asks; the last line printed is the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=Path, help="folder of peers/make_workload.py")
    parser.add_argument("--rate", action="store_true", help="only the rate of matrix products")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side (5)")
    parser.add_argument("--steps", type=int, default=12, help="steps of the plan a run trains (12)")
    parser.add_argument("--model", choices=["qwen3_tiny", "minilm"], default="qwen3_tiny")
    parser.add_argument("--bf16", action="store_true", help="both sides in bfloat16")
    options = parser.parse_args()
    if options.rate:
        rates = {precision: round(product_rate(precision) / 1e12, 3) for precision in ("fp32", "bf16")}
        print(json.dumps({"matrix_product_tflops": rates, "machine": machine(), "measured": today()}))  # noqa: T201
        return
    if options.workload is None:
        parser.error("--workload or --rate")
    pooling = "mean" if options.model == "minilm" else "lasttoken"
    arguments = [str(options.workload), str(options.workload / "models" / options.model), "--steps", str(options.steps)]
    arguments += ["--pooling", pooling, *(["--bf16"] if options.bf16 else [])]
    result = compare(options.workload, options.pairs, arguments, "bf16" if options.bf16 else "fp32")
    shares = run(OURS, [*arguments, "--profile"])["time_shares"]
    print(json.dumps({**result, "model": options.model, "steps": options.steps, "our_time_shares": shares}))  # noqa: T201


if __name__ == "__main__":
    main()
