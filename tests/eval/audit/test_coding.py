"""eval.audit.coding: what is noted of distributions, and predictors of any kind coded."""

import numpy as np
import pytest

from eval.audit.coding import Mass, Place, decode, encode, levels
from tests.support.audit_claims import claim_of


def test_mass_remembers_the_first_and_the_worst():
    mass = Mass()
    for n, p in enumerate([[0.5, 0.5], [0.5, 0.50009], [0.5, 0.6], [3.0, 4.0]]):
        mass.see(0, n, np.array(p))
    assert (mass.first, mass.exceeded, mass.tokens) == (Place(0, 2), 2, 4)
    assert mass.worst == 6
    assert mass.first_sum == pytest.approx(1.1)


def test_levels_take_anything():
    found = levels(np.array([[1.0, 0.5, 0.0, -1.0, np.nan, np.inf, 4.0]]))
    assert found.tolist() == [[0, -4096, -40 * 4096, -40 * 4096, -40 * 4096, 40 * 4096, 2 * 4096]]


def test_encode_takes_any_predictor():
    class Half:
        def reset(self, documents):
            self.rows = len(documents)

        def update(self, tokens):
            pass

        def distribution(self):
            p = np.full((self.rows, 260), 0.5 / 259)
            p[:, 70] = 0.5
            return p

    found = encode(Half(), claim_of([5, 3]))
    assert found.bits[0].tolist() == [1.0] * 5
    assert found.ideal_bits == pytest.approx(8, abs=1e-3)
    assert len(found.stream) == 1


class Noisy:
    """Random distributions that depend on all that came."""

    def reset(self, documents):
        self.seen = [documents]

    def update(self, tokens):
        self.seen.append(tokens)

    def distribution(self):
        generator = np.random.default_rng(np.concatenate(self.seen) + 1)
        p = generator.random((len(self.seen[0]), 260)) ** 9
        return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("ends_coded", [True, False])
def test_what_is_coded_decodes(ends_coded):
    claim = claim_of([6, 1, 9, 4, 3], order=[2, 0, 4, 1, 3], ends_coded=ends_coded)
    for row in claim.rows:
        row.targets[:] = np.random.default_rng(len(row.targets)).integers(4, 260, len(row.targets))
        row.targets[-1] = 1
    found = encode(Noisy(), claim)
    assert decode(Noisy(), claim, found.stream) is None
    assert 0 <= 8 * len(found.stream) - found.ideal_bits + 1 <= 16
    damaged = bytes([found.stream[0], found.stream[1] ^ 64, *found.stream[2:]])
    assert decode(Noisy(), claim, damaged) is not None
    claim.rows[4].targets[1] = 77
    assert decode(Noisy(), claim, found.stream) == Place(4, 1)
