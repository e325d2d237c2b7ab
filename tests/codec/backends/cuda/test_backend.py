"""codec.backends.cuda.network: the GPU's integers are the reference's.

Without a GPU, Triton's interpreter runs the kernels on the processor, on tiny models; most of that takes minutes
(`-m long`). With one (`-m "gpu or long"`) they are compiled and get models of the record's shape, too.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from codec.archive.writer import Policy
from codec.backends.agree import TRIALS, Trial, agree
from codec.backends.cuda.backend import CudaBackend
from codec.backends.cuda.kernels.attention import VALUE_PLACES, attend_rows, attend_step
from codec.backends.cuda.kernels.elementwise import launch, magnitude, round_int, to_double
from codec.backends.cuda.kernels.matmul import limbs, multiply
from codec.errors import UnsupportedError
from codec.exact.attention import attend
from codec.exact.chunks import CHUNK_UNIT
from codec.exact.linear import ExactLinear
from codec.exact.model import ExactModel
from codec.exact.reference import TorchBackend
from codec.exact.weights import check_known
from codec.model.config import ModelConfig
from codec.numerics import tables
from codec.quantization.quantized import Quantized
from codec.text.open_coder import make_coder
from codec.text.scheduler import Decoding
from tests.codec.exact.test_chunks import in_chunks
from tests.codec.exact.test_model import CONFIGS
from tests.support.helpers import EVERY_OPTION, PLAIN, tiny_pack, weights_with_columns
from trainer.data.sample import val_documents

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

RECORD = ModelConfig(
    vocab_size=8192, window=2048, num_layers=11, num_kv_heads=4, mlp_mult=4, activation="leaky_relu2", rope_dims=16,
    skips="gated", xsa_layers=11, ln_scale=True, loop_start=4, loop_end=6, loop_count=3, attention_gate=True,
    smear_gate=True,
)  # fmt: skip


def with_columns(config: ModelConfig) -> ExactModel:
    """A model of `weights_with_columns`."""
    return ExactModel(weights_with_columns(config), DEVICE)


def check_scores(model: ExactModel, lengths: list[tuple[int, int]]) -> None:
    """Intervals of windows of (tokens, scored) `lengths` are the reference's."""
    generator, size = np.random.default_rng(1), model.config.vocab_size
    inputs = [generator.integers(0, size, length) for length, _ in lengths]
    targets = [generator.integers(0, size, scored) for _, scored in lengths]
    found, expected = CudaBackend(model).score(inputs, targets), TorchBackend(model).score(inputs, targets)
    assert np.array_equal(found[:2], expected[:2])
    assert np.abs(found[2] - expected[2]).max() < 1e-9


@pytest.mark.long
def test_a_pack_scores_as_the_reference_does():
    check_scores(tiny_pack(replace(PLAIN, num_layers=1)).exact(DEVICE), [(5, 5), (1, 1)])


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.window <= 64])
def test_packs_score_as_the_reference_does(name):
    model = tiny_pack(CONFIGS[name]).exact(DEVICE)
    try:
        check_known(CONFIGS[name])
    except UnsupportedError:
        with pytest.raises(UnsupportedError):
            CudaBackend(model)
        return
    check_scores(model, [(31, 31), (20, 7), (1, 1)])


def check_chunks(model: ExactModel, lengths: list[int], chunk: int, window: int) -> None:
    """Intervals of documents of so many tokens, the longest first, chunk by chunk, are the reference's."""
    generator, size = np.random.default_rng(1), model.config.vocab_size
    documents = [generator.integers(0, size, length + 1) for length in lengths]
    fast, slow = (in_chunks(backend, documents, window, chunk) for backend in (CudaBackend(model), TorchBackend(model)))
    for mine, reference in zip(fast, slow, strict=True):
        assert np.array_equal(mine[:2], reference[:2])


@pytest.mark.long
def test_chunks_are_scored_as_the_reference_does():
    model = tiny_pack(replace(PLAIN, num_layers=1, smear_gate=True)).exact(DEVICE)
    check_chunks(model, [70], 64, window=20)


@pytest.mark.long
@pytest.mark.parametrize("config", [PLAIN, EVERY_OPTION], ids=["plain", "every option"])
def test_chunks_of_every_option(config):
    check_chunks(tiny_pack(replace(config, window=80)).exact(DEVICE), [129, 81], 128, window=80)
    check_chunks(tiny_pack(replace(config, window=64)).exact(DEVICE), [130, 65], 64, window=64)


@pytest.mark.gpu
def test_chunks_of_the_record_class():
    check_chunks(with_columns(RECORD), [6200, 4097, 2048], 2048, window=2048)


@pytest.mark.long
@pytest.mark.parametrize("config", [PLAIN, EVERY_OPTION], ids=["plain", "every option"])
def test_column_steps_and_wide_integers(config):
    check_scores(with_columns(replace(config, window=96)), [(96, 3), (40, 40)])


def test_products_of_every_number_of_limbs():
    """Against int64 products, operands and weights at their limits."""
    generator = torch.Generator().manual_seed(0)
    for peak, operand, dim in ((127, 1 << 14, 70), (32_639, 1 << 14, 40), (100, 1 << 28, 33)):
        weights = torch.randint(-peak, peak + 1, (130, dim), generator=generator)
        weights[0] = peak
        matrix = limbs(linear(weights), operand)
        x = torch.randint(-operand, operand + 1, (128, dim), generator=generator)
        x[0], x[1] = operand, -operand
        pairs = (x,) if operand == 1 << 14 else ((x + (1 << 14)) % (1 << 15) - (1 << 14),)
        if operand != 1 << 14:
            pairs += ((x - pairs[0]) >> 15,)
        parts = [part for pair in pairs for part in split(pair)]
        padded = torch.zeros(len(parts), 128, matrix.inputs, dtype=torch.int8)
        padded[:, :, :dim] = torch.stack(parts).to(torch.int8)
        found = multiply(padded.to(DEVICE), matrix).cpu()[:, :130].long()
        assert torch.equal(found, x @ weights.T)


@pytest.mark.parametrize("inputs, counts", [(200, [2, 0, 2]), (300, [2, 0, 4])])  # in blocks of 128 and of 64
def test_few_second_limbs(inputs, counts):
    """Second limbs in some blocks of a tile of outputs, in none of the next, in all of the last or most."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randint(-127, 128, (384, inputs), generator=generator)
    for row, column, value in ((3, 190, 32_639), (127, 70, -20_000), (256, 0, 128), (300, 64, -129), (383, 130, 1000)):
        weights[row, column] = value
    weights[260, 199] = 300
    matrix = limbs(linear(weights))
    assert matrix.counts.tolist() == counts
    x = torch.randint(-(1 << 14), (1 << 14) + 1, (128, inputs), generator=generator)
    operand = torch.zeros(2, 128, matrix.inputs, dtype=torch.int8)
    operand[:, :, :inputs] = torch.stack(split(x)).to(torch.int8)
    assert torch.equal(multiply(operand.to(DEVICE), matrix).cpu()[:, :384].long(), x @ weights.T)


def linear(weights: torch.Tensor) -> ExactLinear:
    """Of integers [R, C], without column steps."""
    rows = np.ones(len(weights), np.float32)
    return ExactLinear("test", Quantized(weights.numpy().astype(np.int32), rows), 1 << 14, torch.device(DEVICE))


def split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    low = (x + 128) % 256 - 128
    return low, (x - low) >> 8


@pytest.mark.long
@pytest.mark.parametrize("config", [replace(PLAIN, window=80), EVERY_OPTION])
def test_backends_agree(config):
    """Check what decides whether the backend is used: scores, and slots that decode what is coded by them."""
    model = tiny_pack(config).exact(DEVICE)
    trial = Trial((100, 7), (CHUNK_UNIT + 6, 20), (80, 48), CHUNK_UNIT)
    assert agree(CudaBackend(model), TorchBackend(model), config, trial)


@pytest.mark.long
def test_documents_decode_on_fewer_slots():
    """Archives of the processor, by slots that go far beyond a window, are loaded while others run, and are dropped."""
    pack = tiny_pack(replace(PLAIN, window=4, num_layers=1))
    coder = make_coder(pack, Policy(4))
    documents = [d[:n] for n, d in zip((1, 12, 0, 9), val_documents(), strict=False)]
    payloads = dict(enumerate(r.payload for r in coder.encode(documents, model_only=True)))
    backend = CudaBackend(pack.exact(DEVICE))
    decoding = Decoding(backend, coder.tokenizer, payloads, 4, slots=2, room=0, threads=2)
    assert dict(decoding.documents(lambda _: None)) == dict(enumerate(documents))


@pytest.mark.gpu
def test_record_class():
    check_scores(with_columns(RECORD), [(2048, 2048), (2000, 1), (700, 700)])


@pytest.mark.gpu
def test_record_class_decodes():
    """Slots of a whole graph against the reference's steps."""
    model = with_columns(replace(RECORD, window=256))
    assert agree(CudaBackend(model), TorchBackend(model), model.config, TRIALS["cuda"])


@triton.jit
def _sums_kernel(integers, reals, doubles, rounded, upper, count, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    real = tl.load(reals + at, mask=at < count, other=0.0)
    tl.store(doubles + at, to_double(tl.load(integers + at, mask=at < count, other=0)), mask=at < count)
    tl.store(rounded + at, round_int(real), mask=at < count)
    tl.store(upper + at, magnitude(real), mask=at < count)


def test_sums_convert():
    """Integers to float64 and back, and the upper halves of numbers, at their limits."""
    least, most = -(1 << 31), (1 << 31) - 1
    integers = torch.tensor([0, 1, -1, least, most, least + 1, 127, -128], dtype=torch.int32, device=DEVICE)
    reals = [0.0, -0.0, 0.5, 1.5, -2.5, 5e-324, least + 0.25, most - 0.25]
    inputs = torch.tensor(reals, dtype=torch.float64, device=DEVICE)
    doubles, rounded, upper = torch.empty_like(inputs), torch.empty_like(integers), torch.empty_like(integers)
    launch(_sums_kernel, (1,), integers, inputs, doubles, rounded, upper, len(reals), BLOCK=8)
    assert torch.equal(doubles, integers.double())
    assert not torch.signbit(doubles[0])
    assert torch.equal(rounded, inputs.round().to(torch.int32))
    assert torch.equal(upper.long(), inputs.abs().view(torch.int64) >> 32)


def in_blocks(v: torch.Tensor) -> torch.Tensor:
    """Values [..., places, D] as attention has them, [..., places / 64, D, 64]."""
    return v.unflatten(-2, (-1, VALUE_PLACES)).transpose(-1, -2)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [64, 2048])
def test_attention(length):
    """Against float64 products, for gains of both signs."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    exp2 = torch.from_numpy(tables.exp2_table(20).astype(np.float64)).to(DEVICE)

    def rows(*shape: int) -> torch.Tensor:
        x = torch.randn(*shape, generator=generator, device=DEVICE, dtype=torch.float64)
        return torch.round(x / x.norm(dim=-1, keepdim=True) * 16384)

    q, k, v = rows(2, 8, length, 64), rows(2, 4, length, 64), rows(2, 4, length, 64)
    positions = torch.arange(length, device=DEVICE).expand(2, length)
    for gain in (1.0, 6.0, -3.0):
        scale = torch.full((8,), gain * 1.76e-4, device=DEVICE, dtype=torch.float64)
        first = positions - length + 1
        expected = attend(q.view(2, 4, 2, length, 64), k, v, first, positions, scale.view(4, 2, 1, 1), exp2)
        expected = expected.reshape(2, 8, length, 64).transpose(1, 2).reshape(2 * length, 512)
        parts = (x.contiguous().long() for x in (q.transpose(1, 2), k, in_blocks(v)))
        limbs = (torch.stack(split(x)).to(torch.int8) for x in parts)
        found = attend_rows(*limbs, 0, length, scale, 64)
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "window, begin, length, group",
    [
        (20, 0, 64, 2),
        (20, 64, 64, 2),
        (64, 192, 64, 2),
        (100, 128, 128, 2),
        (128, 384, 128, 2),
        (192, 192, 128, 1),  # the end of a document; it begins within a tile of queries
        (1, 64, 64, 3),
    ],
)
def test_attention_of_chunks(window, begin, length, group):
    """Against the reference with all keys: rings have a chunk and what it sees, and other keys elsewhere."""
    generator, end, places = torch.Generator(DEVICE).manual_seed(0), begin + length, 2 * -(-window // 64) * 64

    def draw(bits: int, *shape: int) -> torch.Tensor:
        bound = 1 << bits
        return torch.randint(-bound, bound + 1, shape, generator=generator, device=DEVICE).double()

    q, k, v = draw(12, 2, 2 * group, length, 64), draw(11, 2, 2, end, 64), draw(14, 2, 2, end, 64)
    scale = torch.linspace(-(2.0**-7), 2.0**-9, 2 * group, dtype=torch.float64, device=DEVICE)
    exp2 = torch.tensor(tables.exp2_table(20), dtype=torch.float64, device=DEVICE)
    rings = draw(11, 2, 2, places, 64), draw(14, 2, 2, places, 64)
    kept = torch.arange(max(0, begin - window + 1), end, device=DEVICE)
    for ring, whole in zip(rings, (k, v), strict=True):
        ring[:, :, kept % places] = whole[:, :, kept]
    parts = (x.contiguous().long() for x in (q.transpose(1, 2), rings[0], in_blocks(rings[1])))
    integers = (torch.stack(split(x)).to(torch.int8) for x in parts)
    found = attend_rows(*integers, begin, window, scale, 64)
    last = torch.arange(begin, end, device=DEVICE).expand(2, length)
    expected = attend(q.view(2, 2, group, length, 64), k, v, last - window + 1, last, scale.view(2, group, 1, 1), exp2)
    assert torch.equal(found, expected.flatten(1, 2).transpose(1, 2).reshape(2 * length, -1))


@pytest.mark.parametrize("group", [1, 2, 3])
def test_attention_of_sequences_behind_each_other(group):
    """Against the reference: each block of 64 rows sees its own sequence alone."""
    generator, sizes = torch.Generator(DEVICE).manual_seed(0), (128, 64, 192)
    length = sum(sizes)
    begins = torch.tensor([0, 0, 128, 192, 192, 192], device=DEVICE)

    def draw(bits: int, heads: int) -> torch.Tensor:
        bound = 1 << bits
        return torch.randint(-bound, bound + 1, (1, heads, length, 64), generator=generator, device=DEVICE).double()

    q, k, v = draw(12, 2 * group), draw(11, 2), draw(14, 2)
    scale = torch.linspace(-(2.0**-7), 2.0**-9, 2 * group, dtype=torch.float64, device=DEVICE)
    exp2 = torch.tensor(tables.exp2_table(20), dtype=torch.float64, device=DEVICE)
    parts = (x.contiguous().long() for x in (q.transpose(1, 2), k, in_blocks(v)))
    found = attend_rows(*(torch.stack(split(x)).to(torch.int8) for x in parts), 0, length, scale, 64, begins)
    at = 0
    for size in sizes:
        own = [x[:, :, at : at + size] for x in (q, k, v)]
        last = torch.arange(size, device=DEVICE)[None]
        queries = own[0].view(1, 2, group, size, 64)
        expected = attend(queries, *own[1:], last * 0, last, scale.view(2, group, 1, 1), exp2)
        assert torch.equal(found[at : at + size], expected.flatten(1, 2).transpose(1, 2).reshape(size, -1))
        at += size


@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_attention_of_steps(group):
    """Against the reference: slots at the first, the last and other positions, gains of either sign."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    window, positions = 384, torch.tensor([0, 127, 128, 300, 383])
    pages = torch.randperm(18, generator=torch.Generator().manual_seed(1)).view(6, 3)

    def draw(bits: int, *shape: int) -> torch.Tensor:
        bound = 1 << bits
        return torch.randint(-bound, bound + 1, shape, generator=generator, device=DEVICE).double()

    q, k, v = draw(12, 5, 2, group, 64), draw(11, 6, 2, window, 64), draw(14, 6, 2, window, 64)
    scale = torch.linspace(-(2.0**-7), 2.0**-9, 2 * group, dtype=torch.float64, device=DEVICE)
    exp2 = torch.tensor(tables.exp2_table(20), dtype=torch.float64, device=DEVICE)
    kept = [torch.zeros(18, 2, 128, 64, dtype=torch.float64, device=DEVICE) for _ in range(2)]
    for cache, x in zip(kept, (k, v), strict=True):
        cache[pages] = x.unflatten(2, (3, 128)).transpose(1, 2)
    rows = q.flatten(1, 2), kept[0], in_blocks(kept[1])
    parts = (torch.stack(split(x.contiguous().long())).to(torch.int8) for x in rows)
    slots, order = torch.tensor([3, 0, 5, 1, 2]), torch.tensor([2, 4, 0, 3, 1])
    found = attend_step(*parts, *(x.to(DEVICE) for x in (positions, pages[slots], order)), scale, 64)
    for n, (position, slot) in enumerate(zip(positions.tolist(), slots.tolist(), strict=True)):
        seen = torch.tensor([[position]], device=DEVICE)
        rows = (x[slot, None, :, : position + 1] for x in (k, v))
        expected = attend(q[n, None, :, :, None], *rows, seen - window + 1, seen, scale.view(2, group, 1, 1), exp2)
        assert torch.equal(found[n], expected.flatten())
