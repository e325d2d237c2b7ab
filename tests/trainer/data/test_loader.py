"""The loader hands out what `Batches` gives, in any order asked for, and its errors where the batch is asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codec.errors import MismatchError
from trainer.data.batches import Batches
from trainer.data.loader import open_loader
from trainer.data.shards import write_shard

CPU = torch.device("cpu")


def batches(folder: Path, vocab_size: int = 100) -> Batches:
    path = folder / "x_train_000000.bin"
    write_shard(path, np.arange(90))
    return Batches([path], seq_len=4, vocab_size=vocab_size)


def test_batches_come_as_asked_for(tmp_path: Path) -> None:
    plain = batches(tmp_path)
    with open_loader([plain], CPU) as loader:
        for n in (0, 1, 2, 7, 8, 3, 3):
            found = loader.take(2 * n, 2)
            for rows, expected in zip(found, plain.take(2 * n, 2), strict=True):
                assert rows.dtype == torch.int64 and rows.numpy().tolist() == expected.tolist()


def test_an_error_comes_with_its_batch(tmp_path: Path) -> None:
    plain = batches(tmp_path, vocab_size=85)
    bad = [n for n in range(10) if max(row.max() for row in plain_or_empty(plain, n)) < 0]
    assert 0 < len(bad) < 10
    with open_loader([plain], CPU) as loader:
        for n in range(10):
            if n in bad:
                with pytest.raises(MismatchError, match="token"):
                    loader.take(2 * n, 2)
            else:
                loader.take(2 * n, 2)


def plain_or_empty(plain: Batches, n: int) -> tuple[np.ndarray, ...]:
    """Batch `n`, or -1 where it has a token outside the vocabulary."""
    try:
        return plain.take(2 * n, 2)
    except MismatchError:
        return (np.array([-1]),)


@pytest.mark.gpu
def test_a_gpu_gets_the_same(tmp_path: Path) -> None:
    plain, device = batches(tmp_path), torch.device("cuda", 0)
    with open_loader([plain], device) as loader:
        for n in (0, 1, 5, 6):
            for rows, expected in zip(loader.take(2 * n, 2), plain.take(2 * n, 2), strict=True):
                assert rows.is_cuda and rows.cpu().numpy().tolist() == expected.tolist()
