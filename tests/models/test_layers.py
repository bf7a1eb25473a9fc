"""The response normalizations against torch and against their formulas, and dropout with given masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alexnet.errors import UserError
from alexnet.models.layers import Dropout, LocalResponseNorm, SpatialResponseNorm, counter_based_dropout


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("shape", [(2, 8, 5, 6), (2, 7, 10), (1, 3, 2, 3, 4)])
def test_lrn_equals_torch_forward_and_backward(size: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=torch.float64) * 5).requires_grad_()
    up = torch.randn(shape, dtype=torch.float64)
    # Large constants make errors visible.
    ours = LocalResponseNorm(size, alpha=0.3, beta=0.6, k=1.5)(x)
    torchs = nn.LocalResponseNorm(size, alpha=0.3, beta=0.6, k=1.5)(x)
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(y, x, up)[0] for y in (ours, torchs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_gradients_pass_gradcheck() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    for towers in (1, 2):
        assert torch.autograd.gradcheck(LocalResponseNorm(5, alpha=0.5, k=1.0, towers=towers), (x,))
    y = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SpatialResponseNorm(3, alpha=0.5), (y,))
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    units = nn.Sequential(nn.Linear(5, 5), Dropout(0.4, 5)).double()
    with counter_based_dropout(units, 4, slice(0, 4), lambda name: 0):
        assert torch.autograd.gradcheck(units, (z,))


def test_lrn_stays_inside_a_tower() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 12, 4, 4, dtype=torch.float64) * 5
    torchs = nn.LocalResponseNorm(5, alpha=0.5, beta=0.75, k=2.0)
    for towers in (1, 2, 3):
        apart = torch.cat([torchs(part) for part in x.chunk(towers, dim=1)], dim=1)
        ours = LocalResponseNorm(5, alpha=0.5, towers=towers)(x)
        torch.testing.assert_close(ours, apart, rtol=1e-12, atol=1e-12)
    assert (LocalResponseNorm(5, alpha=0.5, towers=2)(x) - torchs(x)).abs().max() > 1e-3
    # The boundary between channels 47 and 48 of 2012: the second tower does not affect the first.
    changed = x.clone()
    changed[:, 6:] = 0
    lrn = LocalResponseNorm(5, alpha=0.5, towers=2)
    assert torch.equal(lrn(x)[:, :6], lrn(changed)[:, :6])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [LocalResponseNorm(5, towers=2), SpatialResponseNorm(5)])
def test_half_precision_on_cpu_sums_in_float32(norm: nn.Module, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 8, 6, 6) * 20).to(dtype).requires_grad_()
    y = norm(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert x.grad is not None
    assert x.grad.isfinite().all()
    # Summed in float32: only the last rounding differs. A square of 300 would overflow float16 (65504).
    assert torch.equal(y, norm(x.detach().float()).to(dtype))
    assert norm(torch.full((1, 4, 5, 5), 300.0, dtype=dtype)).isfinite().all()


def test_lrn_accepts_channels_last_and_empty_batches() -> None:
    x = torch.randn(2, 8, 5, 5)
    lrn = LocalResponseNorm(towers=2)
    torch.testing.assert_close(lrn(x.to(memory_format=torch.channels_last)), lrn(x))
    assert lrn(x[:0]).shape == (0, 8, 5, 5)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_spatial_norm_equals_its_formula(size: int) -> None:
    torch.manual_seed(0)
    a = torch.randn(2, 3, 6, 7, dtype=torch.float64) * 10
    alpha, beta, k = 1e-1, 0.75, 1.0
    expected = torch.empty_like(a)
    first = -(size // 2)
    for n in range(2):
        for c in range(3):
            for i in range(6):
                for j in range(7):
                    total = 0.0
                    for u in range(i + first, i + first + size):
                        for v in range(j + first, j + first + size):
                            if 0 <= u < 6 and 0 <= v < 7:
                                total += float(a[n, c, u, v]) ** 2
                    expected[n, c, i, j] = a[n, c, i, j] / (k + alpha / size**2 * total) ** beta
    ours = SpatialResponseNorm(size, alpha=alpha, beta=beta, k=k)(a)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_defaults_are_those_of_2012() -> None:
    x = torch.randn(1, 8, 7, 7) * 50
    torch.testing.assert_close(LocalResponseNorm()(x), nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)(x))
    assert repr(LocalResponseNorm()) == "LocalResponseNorm(5, alpha=0.0001, beta=0.75, k=2.0, towers=1)"
    assert repr(SpatialResponseNorm()) == "SpatialResponseNorm(5, alpha=0.001, beta=0.75, k=1.0)"


def test_dropout_uses_its_part_of_the_full_mask() -> None:
    """Rows (parts of a batch, or processes) and columns (towers) are parts of one mask."""
    full = nn.Sequential(nn.Linear(6, 6), Dropout(0.25, 6))
    left = nn.Sequential(full[0], Dropout(0.25, 6, slice(0, 3)))
    ones = torch.ones(5, 6)

    def mask(model: nn.Sequential, rows: slice, seed: int = 7) -> torch.Tensor:
        with counter_based_dropout(model, 5, rows, {"1": seed}.__getitem__):
            return model[1](ones[rows, model[1].columns])

    full_mask = mask(full, slice(0, 5))
    assert full_mask.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(mask(full, slice(1, 4)), full_mask[1:4])
    assert torch.equal(mask(left, slice(1, 4)), full_mask[1:4, :3])
    assert not torch.equal(mask(full, slice(0, 5), seed=8), full_mask)
    many = nn.Sequential(nn.Linear(1, 1), Dropout(0.25, 1000))
    with counter_based_dropout(many, 1000, slice(0, 1000), lambda name: 0):
        kept = many[1](torch.ones(1000, 1000)) > 0
        assert many[1](torch.ones(1000, 1000, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.002)


def test_dropout_without_a_mask_equals_torchs() -> None:
    ours, theirs, x = Dropout(0.5, 9), nn.Dropout(0.5), torch.ones(3, 9)
    torch.manual_seed(0)
    a = ours(x)
    torch.manual_seed(0)
    assert torch.equal(a, theirs(x))
    model = nn.Sequential(nn.Linear(9, 9), ours).eval()
    with counter_based_dropout(model, 3, slice(0, 3), lambda name: 0):
        assert torch.equal(ours(x), x)
    assert ours.mask is None


def test_invalid_channels_and_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="7 channels, which are not divisible into 2 towers"):
        LocalResponseNorm(towers=2)(torch.zeros(1, 7, 2, 2))
    with pytest.raises(UserError, match="at least 1"):
        LocalResponseNorm(size=0)
    with pytest.raises(UserError, match="at least 1"):
        SpatialResponseNorm(size=0)
