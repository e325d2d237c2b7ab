"""Attention within documents: the mask against its definition, and the kernels against each other."""

import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from codec.model.tokenizer import BOS
from trainer.model.attention import attend, block_mask, dense_mask, document_mask


def some_rows(batch: int, length: int) -> torch.Tensor:
    """int64 [batch, length]: documents of many lengths, rows that begin within one, a row without BOS."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 50, (batch, length), generator=generator)
    tokens[torch.rand(batch, length, generator=generator) < 0.03] = BOS
    tokens[0, 7:9] = BOS
    tokens[-1] = 5
    return tokens


def some_heads(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(batch, heads, length, 16, generator=generator) for heads in (4, 2, 2))
    return q, k, v


def test_the_mask_is_causal_and_within_documents() -> None:
    tokens = some_rows(3, 40)
    mask = document_mask(tokens)
    assert isinstance(mask, torch.Tensor)
    for row, seen in zip(tokens.tolist(), mask[:, 0].tolist(), strict=True):
        for query in range(40):
            start = max([t for t in range(query + 1) if row[t] == BOS], default=0)
            assert seen[query] == [start <= key <= query for key in range(40)]


def test_attention_under_a_mask_is_softmax_over_what_is_seen() -> None:
    tokens, (q, k, v) = some_rows(3, 40), some_heads(3, 40)
    mask = dense_mask(tokens)
    scores = (q @ k.repeat_interleave(2, 1).mT / 4).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(attend(q, k, v, mask), scores.softmax(-1) @ v.repeat_interleave(2, 1))
    whole = attend(q, k, v)
    torch.testing.assert_close(attend(q, k, v, dense_mask(torch.full((3, 40), 5))), whole)
    assert not torch.allclose(attend(q, k, v, mask)[0], whole[0])


def test_flex_attention_computes_the_same() -> None:
    tokens, heads = some_rows(3, 160), some_heads(3, 160)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow without a compiler
        found = attend(*heads, block_mask(tokens))
    torch.testing.assert_close(found, attend(*heads, dense_mask(tokens)), atol=1e-5, rtol=1e-4)


def test_all_batches_of_one_shape_are_one_graph() -> None:
    counter = CompileCounterWithBackend("eager")

    @torch.compile(backend=counter, fullgraph=True, dynamic=False)
    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, block_mask(tokens))

    heads = some_heads(3, 160)
    for shift in (0, 3, 50):
        tokens = some_rows(3, 160).roll(shift, 1)
        torch.testing.assert_close(masked(*heads, tokens), attend(*heads, dense_mask(tokens)), atol=1e-5, rtol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.gpu
def test_the_compiled_kernel_of_a_gpu_and_its_gradients() -> None:
    tokens, counter = some_rows(3, 2048).cuda(), CompileCounterWithBackend("inductor")

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, document_mask(tokens))

    generator = torch.Generator("cuda").manual_seed(0)
    heads = [
        torch.randn(3, count, 2048, 64, device="cuda", dtype=torch.bfloat16, generator=generator, requires_grad=True)
        for count in (8, 4, 4)
    ]
    compiled = torch.compile(masked, backend=counter, fullgraph=True, dynamic=False)
    weights = torch.randn(3, 8, 2048, 64, device="cuda", dtype=torch.bfloat16, generator=generator)
    for shift in (0, 3, 50):
        shifted, found = tokens.roll(shift, 1), []
        for function in (compiled, masked):
            y = function(*heads, shifted)
            found.append((y, *torch.autograd.grad((y * weights).sum(), heads)))
        for mine, reference in zip(*found, strict=True):
            error = (mine.float() - reference.float()).square().mean().sqrt()
            assert error < 0.01 * reference.float().square().mean().sqrt()
    assert counter.frame_count == 1
