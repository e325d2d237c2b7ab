"""trainer.model.transformer: what calibration and budgets do with models of open families."""

import pytest
import torch

import codec
from codec.model.parameters import parameters
from tests.support.families import FAMILIES, byte_pairs, family_weights
from trainer.fit.calibrate import calibrate
from trainer.fit.correct import groups
from trainer.model.build import float_network
from trainer.model.transformer import Transformer


def text(model: Transformer, rows: int, generator: torch.Generator) -> torch.Tensor:
    """Sample rows of 64 tokens: of 60 tokens alike, or from a model whose embedding is its head.

    The moments of such an embedding take tokens to be looked up as often as the model finds them likely.
    """
    if model.lm_head is not None:
        return torch.randint(0, 60, (rows, 64), generator=generator)
    found = torch.zeros(rows, 1, dtype=torch.int64)
    with torch.no_grad():
        while found.shape[1] < 64:
            chances = model(found)[:, -1].softmax(-1)
            found = torch.cat((found, torch.multinomial(chances, 1, generator=generator)), 1)
    return found


@pytest.mark.parametrize("name", ["llama, scaled rotations and a head of its own", "gpt2"])
def test_calibration_and_a_budget(name):
    """Every matrix has moments, and calibration makes a pack of the same size diverge less."""
    config, weights = FAMILIES[name], family_weights(FAMILIES[name])
    model = float_network(config)
    assert isinstance(model, Transformer)
    model.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    tokens = text(model, 12, generator)
    moments = calibrate(model, [tokens[:6], tokens[6:]])
    matrices = {name for name, parameter in parameters(config).items() if parameter.role != "vector"}
    assert moments.keys() == matrices == {name for group in groups(config).values() for name in group}
    assert all(torch.from_numpy(found.outputs).count_nonzero() for found in moments.values())
    held = text(model, 16, generator)
    with torch.inference_mode():
        truth = model(held).log_softmax(-1)
        costs = []
        for calibration in (None, moments):
            blob = codec.compress(weights, config, byte_pairs(config.begin, config.end), 30_000, calibration)
            assert len(blob) <= 30_000
            other = Transformer(config)
            other.load_state_dict(codec.decompress(blob))
            costs.append(float((truth.exp() * (truth - other(held).log_softmax(-1))).sum(-1).mean()))
    assert costs[1] < costs[0]
