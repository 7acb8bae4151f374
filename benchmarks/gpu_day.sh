#!/usr/bin/env bash
# What one CUDA device does with this kit, in at most eight minutes, with nothing but the repository and its lock:
#     benchmarks/gpu_day.sh [FOLDER]                        FOLDER: results/benchmarks where there is a GPU
# writes FOLDER/gpu_PART.json: rate of a matrix product; training of Qwen3-0.6B's shape on texts of one and of mixed
# lengths, with and without torch.compile; 4B with LoRA; sentence-transformers on the same batches, its plain and its cached
# loss; gradients beside those of the CPU; encoding; the tests that need CUDA. Every part is a process with a limit of its
# own, and none starts when the time is over: one that fails leaves the others. The last line sums up.
# Without a GPU it does the same with tiny shapes, to try it, into FOLDER or a temporary folder.
#     PYTHON=python3 MINUTES=8 benchmarks/gpu_day.sh
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || PYTHON=python3
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-2000}
W=$(mktemp -d)
trap 'rm -rf "$W"' EXIT
END=$((60 * ${MINUTES:-8} - 10))
DONE=() FAILED=()

if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    OUT=${1:-results/benchmarks} SHAPE=qwen3-0.6b MODEL=models/qwen3-0.6b PRECISION=bf16
    SIZE=(--steps 8) LORA=(--shape qwen3-4b --batch 16 --steps 5)
    WORKLOAD=(--steps 10 --batch 16 --max-length 512) STEPS=10 BF16=(--bf16) CACHED=32
    ENCODE=(--pairs 3 --texts 4000 --max-length 512 --steps 100)
else
    OUT=${1:-$(mktemp -d)} SHAPE=tiny MODEL=models/qwen3_tiny PRECISION=fp32
    SIZE=(--shape tiny --batch 4 --length 32 --group 2 --steps 3 --tokens-per-micro-batch 256 --tokens-in-memory 512) LORA=("${SIZE[@]}")
    WORKLOAD=(--steps 4 --batch 4 --max-length 48) STEPS=4 BF16=() CACHED=4
    ENCODE=(--pairs 1 --texts 24 --steps 4 --max-length 48 --vocabulary 512)
    export TORCHDYNAMO_DISABLE=1 # compiling for a processor takes minutes
    echo "no GPU: tiny shapes, only to see that every part runs; results are in $OUT"
fi
mkdir -p "$OUT"

# part NAME SECONDS COMMAND…: the last line it prints is its result, as JSON or, of tests, in words.
part() {
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    if ((END - SECONDS < 15)); then FAILED+=("$name (no time left)") && return; fi
    ((limit > END - SECONDS)) && limit=$((END - SECONDS))
    timeout --kill-after=5 "$limit" "$@" >"$W/out" 2>"$W/err"
    local code=$?
    if ((code == 0)) && "$PYTHON" - "$OUT/gpu_$name.json" "$W/out" "$W/rate" <<'PY'; then
import json
import sys
from pathlib import Path

target, out, rate = map(Path, sys.argv[1:])
last = out.read_text().splitlines()[-1]
facts = json.loads(last) if last.startswith("{") else {"said": last}
if target.stem == "gpu_rate":
    rate.write_text(json.dumps({name: facts[name] for name in ("machine", "measured")}))
facts = {**facts, **json.loads(rate.read_text())} if rate.exists() else facts
temporary = target.with_suffix(".tmp")
temporary.write_text(json.dumps(facts, indent=2) + "\n")
temporary.replace(target)
PY
        DONE+=("$name")
        echo "$name, $((SECONDS - began)) s: $(tail -n 1 "$W/out" | cut -c1-200)"
    else
        FAILED+=("$name (exit code $code)")
        echo "$name FAILED with exit code $code after $((SECONDS - began)) s (limit $limit): $(tail -n 3 "$W/err")"
    fi
}

train() { local name=$1 limit=$2 && shift 2 && part "$name" "$limit" "$PYTHON" benchmarks/train_gpu.py --precision $PRECISION "$@"; }
peer() { local name=$1 && shift && part "$name" 60 "$PYTHON" "$@" --steps "$STEPS" --warmup-steps 2 "${BF16[@]}"; }

part rate 40 "$PYTHON" benchmarks/train_throughput.py --rate
train uniform 60 "${SIZE[@]}"
train mixed 60 "${SIZE[@]}" --mixed
train gradients 40 --shape $SHAPE --length 128 --group 4 --against-cpu
mapfile -t FILES < <(grep -l 'mark\.cuda' tests/test_*.py)
part tests 60 "$PYTHON" -m pytest -q -m cuda "${FILES[@]}"
if "$PYTHON" benchmarks/peers/make_workload.py "$W/w" "${WORKLOAD[@]}" >"$W/out" 2>&1 &&
    { [ $SHAPE = tiny ] || "$PYTHON" benchmarks/train_gpu.py --write-model "$W/w" >"$W/out" 2>&1; }; then
    FLASH=(--attention "$("$PYTHON" -c 'import importlib.util as u
print("flash_attention_2" if u.find_spec("flash_attn") else "sdpa")')")
    peer same_batches_ours benchmarks/boom_train.py "$W/w" "$W/w/$MODEL" --tokens-per-micro-batch 16384
    peer same_batches_theirs benchmarks/peers/sentence_transformers_train.py "$W/w" "$W/w/$MODEL" "${FLASH[@]}"
    peer same_batches_theirs_cached benchmarks/peers/sentence_transformers_train.py "$W/w" "$W/w/$MODEL" "${FLASH[@]}" \
        --cached "$CACHED"
else
    FAILED+=("same batches ($(tail -n 1 "$W/out"))")
fi
part encode 60 "$PYTHON" benchmarks/encode_throughput.py "${ENCODE[@]}"
train lora 75 "${LORA[@]}" --lora
train uniform_compiled 90 "${SIZE[@]}" --compile
train mixed_compiled 90 "${SIZE[@]}" --mixed --compile

echo "$OUT: ${#DONE[@]} parts in $SECONDS s (${DONE[*]}); failed: ${FAILED[*]:-none}"
((${#FAILED[@]} == 0))
