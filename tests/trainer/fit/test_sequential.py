"""trainer.fit.sequential: later groups make up for earlier ones, at the steps of the pack."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import codec
from codec.errors import MismatchError
from codec.model.checkpoint import Checkpoint
from codec.model.parameters import parameters
from codec.quantization.quantizers import RowAbsmax
from codec.quantization.sensitivity import SensitivityGrid
from tests.support.helpers import EVERY_OPTION, PLAIN, random_weights
from tests.trainer.fit.test_retune import CONFIG, batches, checkpoint, cost, model
from trainer.data.sample import sp1024
from trainer.fit.calibrate import calibrate
from trainer.fit.retune import HELD_TOKENS, retune_pack
from trainer.fit.sequential import again, quantization_order, requantize


def test_every_matrix_is_in_one_group_and_blocks_come_in_order():
    for config in (CONFIG, PLAIN, EVERY_OPTION):
        groups = quantization_order(config)
        names = [name for group in groups for name in group]
        assert sorted(names) == sorted(n for n, p in parameters(config).items() if p.role != "vector")
        assert "tok_emb.weight" in groups[0] and not any(name.startswith("blocks.") for name in groups[0])
        for block, group in enumerate(groups[1:]):
            assert group and all(name.startswith(f"blocks.{block}.") for name in group)


def test_the_same_weights_become_the_same_integers():
    """With moments, a trellis, and rows and columns off it."""
    weights = random_weights(CONFIG)
    moments = calibrate(model(weights), batches(3))
    blob = codec.compress(weights, CONFIG, calibration=moments, quantizer=SensitivityGrid(0.1))
    matrices = codec.open(blob).matrices
    assert any(matrix.states for matrix in matrices.values())
    for name, matrix in matrices.items():
        empty = replace(matrix, symbols=np.zeros_like(matrix.symbols))
        assert np.array_equal(again(empty, weights[name], moments[name].inputs).symbols, matrix.symbols)


def test_later_groups_make_up_for_earlier_ones(monkeypatch):
    """The divergence falls below that of the pack, at its steps."""
    monkeypatch.setattr("trainer.fit.sequential.LEARNING_RATE", 3e-3)
    weights, held, told = random_weights(CONFIG), batches(2, 6), []
    blob = codec.compress(weights, CONFIG, quantizer=SensitivityGrid(0.5))
    matrices, plain = codec.open(blob).matrices, model(codec.decompress(blob))
    reference, trained = model(weights), model(weights)
    found = requantize(reference, trained, matrices, None, batches(10), 20, told.append)
    assert len(told) == 20 * (len(quantization_order(CONFIG)) - 1)
    assert cost(reference, trained, held) < 0.8 * cost(reference, plain, held)
    for name, matrix in found.items():
        assert matrix.grid is matrices[name].grid
        assert torch.equal(trained.state_dict()[name], torch.from_numpy(matrix.dequantize()))
    assert not np.array_equal(found["blocks.1.attn.c_q.weight"].symbols, matrices["blocks.1.attn.c_q.weight"].symbols)
    assert all(torch.equal(t, weights[name]) for name, t in reference.state_dict().items())


def test_packs_are_made_again(monkeypatch):
    monkeypatch.setitem(HELD_TOKENS, "cpu", 512)
    monkeypatch.setattr("trainer.fit.sequential.LEARNING_RATE", 3e-3)
    monkeypatch.setattr("trainer.fit.retune.TUNING_RATE", 0.0)
    monkeypatch.setattr("trainer.fit.retune.LEARNING_RATE", 0.0)
    blob = codec.compress(random_weights(PLAIN), PLAIN, sp1024(), quantizer=SensitivityGrid(0.5))
    made, found = retune_pack(blob, checkpoint(), None, 1, again=5)
    assert found.after < found.before and abs(len(made) - len(blob)) < 0.02 * len(blob)
    before, after = codec.open(blob).matrices, codec.open(made).matrices
    assert all(np.array_equal(q.rows, after[name].rows) for name, q in before.items())
    assert any(not np.array_equal(q.symbols, after[name].symbols) for name, q in before.items())
    monkeypatch.setattr("trainer.fit.sequential.LEARNING_RATE", 10.0)  # ruins the model: the pack given comes back
    worse, found = retune_pack(blob, checkpoint(), None, 1, again=5)
    assert worse == blob and found.after == found.before
    with pytest.raises(MismatchError, match="no steps by row and column"):
        by_row = codec.compress(random_weights(PLAIN), PLAIN, sp1024(), quantizer=RowAbsmax(4))
        retune_pack(by_row, Checkpoint(random_weights(PLAIN), PLAIN, sp1024()), None, 1, again=1)
