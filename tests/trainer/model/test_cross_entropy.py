"""The chunked loss against the plain one: value and gradients, in chunks that do and do not divide the batch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.cross_entropy import Taught, softcapped_cross_entropy


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    logits = cap * torch.tanh(hidden @ weight.T / cap)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(*shape, generator=generator) for shape in ((3, 7, 16), (29, 16)))
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(29, (3, 7), generator=generator)


@pytest.mark.parametrize("cap", [2.0, 30.0, 1000.0])
@pytest.mark.parametrize("chunk_logits", [1, 29 * 5, 29 * 7, 1 << 20])
def test_value_and_gradients_are_those_of_the_plain_loss(cap: float, chunk_logits: int) -> None:
    hidden, weight, targets = example()
    found = softcapped_cross_entropy(hidden, weight, targets, cap, chunk_logits)
    (3 * found).backward()
    gradients = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    expected = plain(hidden, weight, targets, cap)
    (3 * expected).backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, (hidden.grad, weight.grad))


def test_logits_at_the_cap_do_not_overflow() -> None:
    hidden, weight = torch.full((1, 2, 4), 1e4), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for cap in (60.0, 1000.0):
        found = softcapped_cross_entropy(hidden, weight, torch.tensor([[0, 3]]), cap)
        torch.testing.assert_close(found, plain(hidden, weight, torch.tensor([[0, 3]]), cap))


def test_bfloat16_products_leave_float32_gradients_of_the_embedding() -> None:
    hidden, weight, targets = example()
    half = hidden.detach().bfloat16().requires_grad_()
    softcapped_cross_entropy(half, weight, targets, 30.0).backward()
    found = weight.grad
    weight.grad = None
    plain(hidden, weight, targets, 30.0).backward()
    assert found is not None and weight.grad is not None and half.grad is not None and hidden.grad is not None
    assert found.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(found, weight.grad, atol=2e-3, rtol=0.05)
    torch.testing.assert_close(half.grad.float(), hidden.grad, atol=2e-3, rtol=0.05)


def test_it_compiles_to_one_graph() -> None:
    hidden, weight, targets = example()
    compiled = torch.compile(softcapped_cross_entropy, backend="aot_eager", fullgraph=True, dynamic=False)
    found = compiled(hidden, weight, targets, 30.0, 29 * 5)
    found.backward()
    gradient = weight.grad
    weight.grad = None
    plain(hidden, weight, targets, 30.0).backward()
    torch.testing.assert_close(gradient, weight.grad)


@pytest.mark.parametrize("chunk_logits", [29 * 5, 1 << 20])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_a_teacher(chunk_logits: int, share: float) -> None:
    """Value and gradients are those of cross-entropies added up one by one."""
    hidden, weight, targets = example()
    generator = torch.Generator().manual_seed(4)
    taught = Taught(torch.randn(3, 7, 5, generator=generator), torch.randn(29, 5, generator=generator), 3.0, share)
    found = softcapped_cross_entropy(hidden, weight, targets, 2.0, chunk_logits, taught=taught)
    (3 * found).backward()
    gradients = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    logs = (2.0 * torch.tanh(hidden @ weight.T / 2.0)).log_softmax(-1)
    known = (3.0 * torch.tanh(taught.hidden @ taught.weight.T / 3.0)).softmax(-1)
    total = -share * (known * logs).sum()
    for row in range(3):
        for place in range(7):
            total = total - (1 - share) * logs[row, place, targets[row, place]]
    expected = total / 21
    (3 * expected).backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, (hidden.grad, weight.grad))


def test_a_teacher_compiles_to_one_graph() -> None:
    hidden, weight, targets = example()
    taught = Taught(torch.ones(3, 7, 5), torch.ones(29, 5), 3.0, 0.5)
    compiled = torch.compile(softcapped_cross_entropy, backend="aot_eager", fullgraph=True, dynamic=False)
    found = compiled(hidden, weight, targets, 30.0, 29 * 5, taught=taught)
    expected = softcapped_cross_entropy(hidden, weight, targets, 30.0, taught=taught)
    torch.testing.assert_close(found, expected)
