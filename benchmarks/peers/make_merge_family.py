"""Write checkpoints that one merge can be measured on: fine-tunes of one base, the same bytes from the same seed.

    python benchmarks/peers/make_merge_family.py OUT [--shape qwen3_0.6b] [--dtype fp32] [--seed 0]

The folder holds ``member_1`` to ``member_5``, each with ``config.json`` and ``model.safetensors`` as transformers
writes them, and ``meta.json`` with what they were made of and a ``fingerprint`` of their bytes.

A member is the base and an update of about one per cent of its size; the updates of two members have a cosine of about
0.3, as fine-tunes of one base on different data do. Drawing all numbers would take minutes, so each member has a pool
of a few million, and every stretch of a tensor is a window of that pool at a place of its own, times the tensor's
scale. Tensors are written in stretches: memory stays small.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

FORMAT = 1  # another number when the same options give other bytes
STRETCH = 1 << 20  # elements written at once
UPDATE = 0.01  # size of an update divided by that of the base
COSINE = 0.3  # between the updates of two members

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 model, and of the pool its weights come from."""

    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    pool: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, sorted by name; the embedding is tied, so there is no ``lm_head``."""
        found: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            "model.norm.weight": (self.hidden,),
        }
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for layer in range(self.layers):
            parts = {
                "input_layernorm": (self.hidden,),
                "mlp.down_proj": (self.hidden, self.intermediate),
                "mlp.gate_proj": (self.intermediate, self.hidden),
                "mlp.up_proj": (self.intermediate, self.hidden),
                "post_attention_layernorm": (self.hidden,),
                "self_attn.k_norm": (self.head_dim,),
                "self_attn.k_proj": (keys, self.hidden),
                "self_attn.o_proj": (self.hidden, queries),
                "self_attn.q_norm": (self.head_dim,),
                "self_attn.q_proj": (queries, self.hidden),
                "self_attn.v_proj": (keys, self.hidden),
            }
            found |= {f"model.layers.{layer}.{part}.weight": sizes for part, sizes in parts.items()}
        return dict(sorted(found.items()))

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(sizes) for sizes in self.tensors().values())


SHAPES = {
    "qwen3_0.6b": Shape(151936, 1024, 28, 3072, 16, 8, 128, 1 << 22),
    "tiny": Shape(512, 64, 2, 96, 4, 2, 16, 1 << 14),
}


@dataclass(frozen=True)
class FamilyOptions:
    """What a family is made of.

    Attributes:
        shape: A name of ``SHAPES``.
        dtype: ``fp32`` or ``bf16``, of the stored weights.
        members: How many checkpoints.
        seed: Seed of all weights; a family in bf16 is the one in fp32 rounded.

    Raises:
        ValueError: A name is unknown, or there are fewer than two members.
    """

    shape: str = "qwen3_0.6b"
    dtype: str = "fp32"
    members: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES or self.dtype not in ("fp32", "bf16") or self.members < 2:
            raise ValueError(f"no family is made of {self}")


def write_family(folder: Path, options: FamilyOptions) -> dict[str, Any]:
    """Write all members and ``meta.json``; files of these names are replaced.

    Returns:
        The content of ``meta.json``.
    """
    (folder / "meta.json").unlink(missing_ok=True)  # it says that all is there, so it goes first and comes last
    pools = make_pools(options)
    names = [f"member_{number}" for number in range(1, options.members + 1)]
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config(options), indent=2, sort_keys=True) + "\n")
    with ThreadPoolExecutor(2) as threads:
        paths = [folder / name / "model.safetensors" for name in names]
        hashes = list(threads.map(lambda path, pool: write_weights(path, pool, options), paths, pools))
    meta = {
        **facts(options),
        "members": names,
        "parameters": SHAPES[options.shape].parameters,
        "bytes": [path.stat().st_size for path in paths],
        "sha256": hashes,
        "fingerprint": hashlib.sha256("".join(hashes).encode()).hexdigest(),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return meta


def facts(options: FamilyOptions) -> dict[str, Any]:
    """What decides the bytes of a family."""
    return {"format": FORMAT, "options": asdict(options), "update": UPDATE, "cosine_of_updates": COSINE}


def existing_family(folder: Path, options: FamilyOptions) -> dict[str, Any] | None:
    """``meta.json`` of a finished family of these options at ``folder``; None if it is another, or not whole."""
    if not (folder / "meta.json").is_file():
        return None
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
    if any(meta.get(name) != value for name, value in facts(options).items()):
        return None
    paths = [folder / name / "model.safetensors" for name in meta["members"]]
    whole = all(path.is_file() and path.stat().st_size == size for path, size in zip(paths, meta["bytes"], strict=True))
    return meta if whole else None


def make_pools(options: FamilyOptions) -> list[Floats]:
    """One pool a member: the base's numbers and the member's update, which is partly common to all members."""
    rng, size = np.random.default_rng(options.seed), SHAPES[options.shape].pool
    base, common = (rng.standard_normal(size, dtype=np.float32) for _ in range(2))
    pools = []
    for _ in range(options.members):
        own = rng.standard_normal(size, dtype=np.float32)
        shared, alone = np.float32(UPDATE * math.sqrt(COSINE)), np.float32(UPDATE * math.sqrt(1 - COSINE))
        pools.append(base + shared * common + alone * own)
    return pools


def write_weights(path: Path, pool: Floats, options: FamilyOptions) -> str:
    """Write one safetensors file and return its SHA-256."""
    width, name = (2, "BF16") if options.dtype == "bf16" else (4, "F32")
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    tensors = SHAPES[options.shape].tensors()
    for tensor, sizes in tensors.items():
        start, end = end, end + width * math.prod(sizes)
        entries[tensor] = {"dtype": name, "shape": list(sizes), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        _put(file, digest, len(header).to_bytes(8, "little") + header)
        for values in _stretches(tensors, pool, options):
            _put(file, digest, _bf16(values) if options.dtype == "bf16" else values.data)
    return digest.hexdigest()


def _put(file: BinaryIO, digest: Any, content: bytes | memoryview) -> None:
    file.write(content)
    digest.update(content)


def _stretches(tensors: dict[str, tuple[int, ...]], pool: Floats, options: FamilyOptions) -> Iterator[Floats]:
    """All weights of a member in the order of the file.

    Scales and places come from a generator of their own that is the same for all members, so that their updates keep
    their cosines.
    """
    rng = np.random.default_rng([options.seed, 1])
    longest = min(STRETCH, pool.size // 2)
    for name, sizes in tensors.items():
        scale, left = np.float32(rng.uniform(0.01, 0.05)), math.prod(sizes)
        while left:
            length = min(left, longest)
            place = int(rng.integers(pool.size - length))
            values = pool[place : place + length] * scale
            yield values + np.float32(1) if name.endswith("norm.weight") else values
            left -= length


def _bf16(values: Floats) -> bytes:
    """Rounded to the nearest bfloat16, to even in a tie."""
    bits = values.view(np.uint32)
    return ((bits + ((bits >> 16 & 1) + np.uint32(0x7FFF))) >> 16).astype("<u2").tobytes()


def config(options: FamilyOptions) -> dict[str, Any]:
    """``config.json`` of a Qwen3 model."""
    shape = SHAPES[options.shape]
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": "bfloat16" if options.dtype == "bf16" else "float32",
        "eos_token_id": None,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "layer_types": ["full_attention"] * shape.layers,
        "max_position_embeddings": 32768,
        "max_window_layers": shape.layers,
        "model_type": "qwen3",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": None,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": True,
        "transformers_version": "5.23.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocabulary,
    }


def main() -> None:
    """Write a family as the command line asks; the line printed is its fingerprint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the family")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3_0.6b")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of the stored weights (fp32)")
    parser.add_argument("--members", type=int, default=5, help="checkpoints (5)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    meta = write_family(arguments.pop("out"), FamilyOptions(**arguments))
    print(json.dumps({"fingerprint": meta["fingerprint"], "parameters": meta["parameters"]}))  # noqa: T201


if __name__ == "__main__":
    main()
