"""codec.exact.families: near the float model, the same integers in any company, every bound checked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import codec
from codec.errors import FormatError
from codec.exact.families import transformer as exact
from codec.exact.families.transformer import ExactTransformer
from codec.exact.families.weights import TransformerWeights, query_bits
from codec.numerics.widths import SNAP_BITS, total_bits
from codec.pack.reader import Pack
from tests.support.families import FAMILIES, LLAMA, byte_pairs, family_pack, family_weights
from trainer.model.transformer import Transformer

FAMILY = pytest.mark.parametrize("name", FAMILIES)


def some_tokens(rows: int, length: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(rows * length).integers(0, 400, (rows, length)))


def float_model(pack: Pack) -> Transformer:
    model = Transformer(pack.config).eval()
    model.load_state_dict(pack.state_dict())
    return model


@FAMILY
def test_near_the_float_model(name):
    """By 10^-6 nats a token: fixed point costs nothing."""
    pack, tokens = family_pack(FAMILIES[name]), some_tokens(3, 64)
    model = pack.exact()
    levels = model.levels(*model.forward(tokens)).double() / exact.LEVELS_PER_NAT
    with torch.inference_mode():
        logits = float_model(pack)(tokens).double()
    assert logits.std() > 1  # not a degenerate model
    assert (levels - logits).abs().max() < 0.02
    divergence = (logits.softmax(-1) * (logits.log_softmax(-1) - levels.log_softmax(-1))).sum(-1).mean()
    assert divergence < 3e-6


@FAMILY
def test_the_same_integers_in_any_company(name):
    """Whole, alone, with padding behind, step by step, and in chunks of a document that begins anew."""
    model, tokens = family_pack(FAMILIES[name]).exact(), some_tokens(2, 64)
    hidden, steps = model.forward(tokens)
    alone = model.forward(tokens[1:, :40])
    assert torch.equal(alone[0], hidden[1:, :40]) and torch.equal(alone[1], steps[1:, :40])
    window, before = 24, tokens[:, 0]
    whole = [model.forward(tokens[:, at : at + window]) for at in range(0, 64, window)]
    expected = torch.cat([part[0] * part[1] for part in whole], 1)
    cache, past, chunks = model.new_cache(2, window), model.new_past(2, window), []
    for at in range(0, 64, 16):  # windows end within chunks
        part = model.forward(tokens[:, at : at + 16], past=past)
        chunks.append(part[0] * part[1])
    assert torch.equal(torch.cat(chunks, 1), expected)
    for t in range(64):
        part = model.step(tokens[:, t], before, torch.full((2,), t), cache)
        before = tokens[:, t]
        assert torch.equal((part[0] * part[1])[:, 0], expected[:, t])


def test_products_of_queries_and_keys_stay_within_31_bits():
    for dim in range(2, 129, 2):
        bits = query_bits(dim)
        assert dim << (bits - 1 + SNAP_BITS - 1) <= 1 << 30
        assert bits == SNAP_BITS or dim << (bits + SNAP_BITS - 1) > 1 << 30


@pytest.mark.parametrize(
    "fault",
    [
        lambda layer: replace(layer, key_scale=layer.key_scale * 2),
        lambda layer: replace(layer, value_scale=layer.value_scale / 2),
        lambda layer: replace(layer, up=replace(layer.up, bias=torch.full((100,), 0.01))),
    ],
)
def test_a_fault_shows(fault):
    """What the tests above compare depends on every grid and bias."""
    pack, tokens = family_pack(LLAMA), some_tokens(2, 30)
    model, broken = pack.exact(), pack.exact()
    broken.layers[1] = fault(broken.layers[1])
    assert not torch.equal(model.forward(tokens)[0], broken.forward(tokens)[0])


def test_keys_and_values_do_not_saturate():
    """Bounds from the weights hold for what any text makes; the grids follow from them."""
    model, seen = family_pack(FAMILIES["gpt2"]).exact(), []
    right = exact._saturated
    try:
        exact._saturated = lambda x: seen.append(float(x.abs().max())) or right(x)
        model.forward(some_tokens(4, 64))
    finally:
        exact._saturated = right
    assert max(seen) <= 1 << (SNAP_BITS - 1)
    assert max(seen) > 1 << (SNAP_BITS - 6)  # and are not far above them


def test_weights_beyond_the_range_are_refused():
    pack, huge = family_pack(LLAMA), {}
    for name in ("blocks.1.mlp.fc.weight", "blocks.1.mlp.proj.weight"):
        huge[name] = replace(pack.matrices[name], rows=np.full_like(pack.matrices[name].rows, 1e38))
    vectors = {name: np.full(vector.shape, 1e38, np.float32) for name, vector in pack.vectors.items()}
    with pytest.raises(FormatError, match="beyond the range"):
        ExactTransformer(TransformerWeights(pack.config, {**pack.matrices, **huge}, vectors))


def test_every_document_comes_back():
    """By the pack's own tokenizer and tokens before and behind a document, longer than a window too."""
    for name in ("llama, scaled rotations and a head of its own", "gpt2"):
        pack = family_pack(FAMILIES[name])
        documents = [b"", b"Once upon a time " * 30, bytes(range(256)), "<|endoftext|> Größe 漢字\r\n".encode() * 3]
        assert codec.decode(pack, codec.encode(pack, documents)) == documents
    assert byte_pairs(1, 2).end == 2


def test_a_pack_of_a_family_keeps_config_and_tokenizer():
    pack, config = family_pack(FAMILIES["qwen3"]), FAMILIES["qwen3"]
    assert pack.config == config
    assert pack.tokenizer.model == byte_pairs().model
    assert pack.state_dict().keys() == family_weights(config).keys()
    assert total_bits(config.vocab_size) == 24
