import errno
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from boom_utils.merging import weight_files
from boom_utils.merging.weight_files import BLOCK_BYTES, BlockFile

SIZES = [1, 4096, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 17]


def pieces_of(size, seed=0):
    """Where the pieces of a file of ``size`` bytes begin and end, in a random order."""
    generator = np.random.default_rng(seed)
    cuts = np.unique(generator.integers(0, size + 1, 12))
    cuts = np.concatenate(([0], cuts, [size]))
    pieces = [(int(a), int(b)) for a, b in itertools.pairwise(cuts) if b > a]
    return [pieces[n] for n in generator.permutation(len(pieces))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["direct", "not supported", "refused"])
def test_pieces_in_any_order_from_several_threads_make_the_file(tmp_path, monkeypatch, size, way):
    if way == "not supported":
        monkeypatch.delattr(os, "O_DIRECT")
    if way == "refused":  # a file system that opens a file so, and then does not take the blocks
        real, refused = os.pwrite, []

        def pwrite(number, data, place):
            if number == file._direct and number is not None:
                refused.append(place)
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(number, data, place)

        monkeypatch.setattr(weight_files.os, "pwrite", pwrite)
    expected = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    file = BlockFile(tmp_path / "file", size)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda piece: file.write(piece[0], expected[piece[0] : piece[1]].copy()), pieces_of(size)))
    file.close()
    file.close()
    assert (tmp_path / "file").read_bytes() == expected.tobytes()


def test_a_file_with_missing_bytes_is_not_called_complete(tmp_path):
    file = BlockFile(tmp_path / "file", 100)
    file.write(0, np.zeros(99, dtype=np.uint8))
    with pytest.raises(ValueError, match="not written whole"):
        file.close()
