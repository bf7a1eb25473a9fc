"""Every LRN backend against the formula in float64, and the operator under autograd, compile and export."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from alexnet.models import lrn
from alexnet.models.layers import LocalResponseNorm
from alexnet.models.lrn import Constants, local_response_norm
from alexnet.models.model import create_model

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def reference(x: Tensor, c: Constants) -> Tensor:
    """The formula in float64, with a sum for each channel."""
    x = x.double()
    per_tower = max(x.shape[1] // c.towers, 1)
    channels = []
    for i in range(x.shape[1]):
        first, end = i // per_tower * per_tower, (i // per_tower + 1) * per_tower
        around = x[:, max(first, i - c.size // 2) : min(end, i + (c.size - 1) // 2 + 1)]
        channels.append(x[:, i] / (c.k + c.alpha / c.size * around.square().sum(1)) ** c.beta)
    return torch.stack(channels, 1)


def with_layout(x: Tensor, layout: str) -> Tensor:
    """Return the same values in another memory layout."""
    match layout:
        case "channels last":
            return x.movedim(1, -1).contiguous().movedim(-1, 1)
        case "reversed":
            return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
        case "every second":
            return torch.stack([x, x], -1).flatten(-2)[..., ::2]
    return x.contiguous()


layouts = st.sampled_from(["contiguous", "channels last", "reversed", "every second"])


@st.composite
def cases(draw: Any) -> tuple[tuple[int, ...], Constants]:
    towers = draw(st.integers(1, 3))
    channels = towers * draw(st.integers(1, 9))
    shape = (draw(st.integers(0, 3)), channels, *draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    beta = draw(st.sampled_from([0.75, 0.75, 0.75, 0.5, 1.2]))
    return shape, Constants(draw(st.integers(1, 20)), draw(st.sampled_from([1e-4, 0.5])), beta, 1.5, towers)


@pytest.fixture(params=["C", "chunks"], scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "C":
            if lrn.c_kernel() is None:
                pytest.skip("no C compiler")
        else:
            patch.setattr(lrn, "_compute_in_c", lrn._compute_in_chunks)
        patch.setattr(lrn, "CHUNK", 100)
        yield request.param


def assert_equals_reference(x: Tensor, dy: Tensor, c: Constants) -> None:
    x = x.detach().requires_grad_()
    y = local_response_norm(x, c)
    (dx,) = torch.autograd.grad(y, x, dy)
    exact_x = x.detach().double().requires_grad_()
    exact_y = reference(exact_x, c)
    (exact_dx,) = torch.autograd.grad(exact_y, exact_x, dy.double())
    tolerance = TOLERANCE[x.dtype]
    for found, exact in ((y, exact_y), (dx, exact_dx)):
        assert found.dtype == x.dtype
        assert found.stride() == torch.empty_like(x).stride()
        torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


@settings(max_examples=150, deadline=None, database=None)
@given(
    case=cases(), dtype=st.sampled_from(list(TOLERANCE)), x_layout=layouts, dy_layout=layouts, seed=st.integers(0, 99)
)
def test_every_backend_equals_the_formula(
    backend: str, case: Any, dtype: torch.dtype, x_layout: str, dy_layout: str, seed: int
) -> None:
    shape, c = case
    generator = torch.Generator().manual_seed(seed)
    x, dy = (torch.randn(shape, generator=generator).mul(s).to(dtype) for s in (3, 1))
    assert_equals_reference(with_layout(x, x_layout), with_layout(dy, dy_layout), c)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tensors_on_two_threads(backend: str, layout: str, dtype: torch.dtype) -> None:
    """Several strips of pixels, the last one shorter, with the window size of the networks."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    x, dy = (with_layout(torch.randn(3, 24, 45, 47).to(dtype), layout) for _ in range(2))
    assert_equals_reference(x, dy, Constants(5, 0.5, 0.75, 2.0, 2))


def test_more_channels_than_a_kernel_row_holds() -> None:
    x = with_layout(torch.randn(1, 5000, 1, 3), "channels last")
    c = Constants(5, 0.5, 0.75, 2.0, 1)
    torch.testing.assert_close(
        local_response_norm(x, c).double(), lrn.composed_lrn(x.double(), c), rtol=2e-5, atol=1e-6
    )


def test_expanded_gradients_and_single_pixels_equal_the_formula(backend: str) -> None:
    x = torch.randn(2, 6, 3, 3, requires_grad=True)
    c = Constants(3, 0.5, 0.75, 1.0, 1)
    assert_equals_reference(x, torch.ones(()).expand(2, 6, 3, 3), c)
    for shape in ((2, 6, 1, 1), (2, 1, 3, 3), (1, 1, 1), (2, 6, 1, 5)):
        for layout in ("contiguous", "channels last"):
            assert_equals_reference(with_layout(torch.randn(shape), layout), torch.randn(shape), c)


def test_non_finite_values_stay_within_their_windows(backend: str) -> None:
    x = torch.ones(1, 12, 2, 2)
    x[0, 5, 0, 0] = torch.inf
    y = local_response_norm(x, Constants(3, 0.5, 0.75, 2.0, 1))
    assert y[0, :, 0, 0].isfinite().tolist() == [i != 5 for i in range(12)]
    assert y[0, :, 0, 1].isfinite().all()
    nan = torch.full((1, 4, 3), torch.nan, dtype=torch.bfloat16)
    assert local_response_norm(nan, Constants(5, 0.5, 0.75, 2.0, 1)).isnan().all()


def test_only_the_input_is_saved() -> None:
    saved: list[Tensor] = []

    def save(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    x = torch.randn(2, 8, 5, 5).relu_().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        LocalResponseNorm(towers=2)(x)
    assert [t.data_ptr() for t in saved] == [x.data_ptr()]


@pytest.mark.parametrize(
    ("layout", "checks"),
    [
        ("channels last", ("test_schema", "test_autograd_registration", "test_faketensor")),
        *(pytest.param(x, None, marks=pytest.mark.slow) for x in ("contiguous", "channels last")),
    ],
)
def test_the_operator_passes_opcheck(layout: str, checks: tuple[str, ...] | None) -> None:
    """By default without the slow check of AOT compilation, which the test below does with a static shape."""
    options = {"test_utils": checks} if checks else {}
    x = with_layout(torch.randn(2, 6, 3, 4), layout).requires_grad_()
    constants = (5, 0.5, 0.75, 2.0, 2)
    torch.library.opcheck(torch.ops.alexnet.lrn, (x, *constants), **options)
    torch.library.opcheck(torch.ops.alexnet.lrn_backward, (x, torch.randn(2, 6, 3, 4), *constants), **options)


def test_the_operator_differentiates_twice() -> None:
    x = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(LocalResponseNorm(3, alpha=0.5, k=1.0, towers=2), (x,))


def test_compiles_and_keeps_the_dtype_under_autocast() -> None:
    lrn = LocalResponseNorm(towers=2)
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    compiled = torch.compile(lrn, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), lrn(x))
    gradients = [torch.autograd.grad(f(x).square().sum(), x)[0] for f in (compiled, lrn)]
    torch.testing.assert_close(*gradients)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lrn(nn.functional.conv2d(x, torch.randn(8, 8, 1, 1))).dtype == torch.bfloat16
        assert lrn(x).dtype == torch.float32


def test_export_uses_standard_operations() -> None:
    model = create_model("paper", num_classes=10, width=0.125).eval()
    x = torch.randn(2, 3, 224, 224)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    assert "alexnet" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), model(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, x)
    assert "alexnet::" not in str(traced.inlined_graph)
    more = torch.randn(3, 3, 224, 224)
    torch.testing.assert_close(traced(more), model(more))


@pytest.mark.slow
def test_onnx_export_equals_torch() -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = create_model("paper", num_classes=10, width=0.125).eval()
    x = torch.randn(2, 3, 224, 224)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    more = torch.randn(3, 3, 224, 224)
    (logits,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(more), rtol=1e-4, atol=1e-4)


def test_a_failing_compiler_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXNET_COMPILER", "false")
    lrn.c_kernel.cache_clear()
    try:
        with pytest.warns(UserWarning, match="runs without its C kernel, several times slower: .*false failed"):
            y = LocalResponseNorm()(torch.ones(1, 4, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(LocalResponseNorm()(torch.ones(1, 4, 2)), y)
            monkeypatch.setenv("ALEXNET_COMPILER", "none")  # requested, so no warning
            lrn.c_kernel.cache_clear()
            assert lrn.c_kernel() is None
    finally:
        monkeypatch.undo()
        lrn.c_kernel.cache_clear()


TRITON = """
import torch
from alexnet.models import lrn_triton
from alexnet.models.lrn import Constants, composed_lrn
torch.manual_seed(0)
for shape, size, beta in (
    *(((3, 7, 10), 5, 0.75), ((3, 7, 10), 4, 0.6), ((9, 150, 1), 5, 0.75), ((9, 150, 1), 4, 0.6)),
    *(((40, 33, 1), 5, 0.75), ((5, 1, 3), 5, 0.75), ((2, 40, 70), 5, 0.75)),
):
    x, dy = torch.randn(2, *shape)
    exact = x.double().requires_grad_()
    y = composed_lrn(exact, Constants(size, 0.3, beta, 1.5, 1))
    (dx,) = torch.autograd.grad(y, exact, dy.double())
    for gradient, expected in ((None, y.detach()), (dy, dx)):
        out = torch.full_like(x, torch.nan)
        lrn_triton.run(x, gradient, out, size, 0.3, beta, 1.5)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
def test_the_triton_kernel_in_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when Triton is imported
    subprocess.run([sys.executable, "-c", TRITON], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_triton_kernel_compiles_for_a_gpu(backward: bool, dtype: str) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from alexnet.models import lrn_triton

    constants = {"beta": 0.75, "size": 5, "backward": backward, "tile_c": 32, "tile_p": 64}
    types = dict.fromkeys(("x_ptr", "dy_ptr", "out_ptr"), f"*{dtype}")
    types |= {"positions": "i32", "channels": "i32", "inner": "i32", "alpha": "fp32", "k": "fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(lrn_triton._kernel, signature=types, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_kernels_equal_the_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for layout in ("contiguous", "channels last"):
        x, dy = (with_layout(torch.randn(3, 48, 13, 11).to("cuda", dtype), layout) for _ in range(2))
        assert_equals_reference(x, dy, Constants(5, 0.5, 0.75, 2.0, 2))


# ── building C: cached atomically, shared by several builders, and unavailable with a reason ──────


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ALEXNET_COMPILER", raising=False)
    try:
        lrn._find_compiler()
    except lrn.KernelUnavailable as error:
        pytest.skip(str(error))
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


def test_a_library_is_built_once_and_cached(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert [lib.answer() for lib in pool.map(lrn.load_library, [source] * 4)] == [42] * 4
    (cached,) = (source.parent / "cache" / "native").iterdir()  # a single file, no partial ones
    assert cached.name.startswith("answer-")
    monkeypatch.setattr("alexnet.models.lrn.subprocess.run", lambda *a, **k: pytest.fail("built again"))
    assert lrn.load_library(source).answer() == 42


def test_another_source_builds_another_library(source: Path) -> None:
    assert lrn.load_library(source).answer() == 42
    source.write_text("int answer(void) { return 7; }\n")
    assert lrn.load_library(source).answer() == 7


def test_a_damaged_library_is_rebuilt(source: Path) -> None:
    folder = source.parent / "cache" / "native"
    folder.mkdir(parents=True)
    name = lrn._library_path(source).name
    (folder / name).write_text("not a library")
    assert lrn.load_library(source).answer() == 42


def test_a_cache_that_cannot_be_written(source: Path) -> None:
    (source.parent / "cache").write_text("a file where the folder should be")
    assert lrn.load_library(source).answer() == 42


def test_reasons_why_a_kernel_is_unavailable(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text("int answer(void) { return }\n")
    with pytest.raises(lrn.KernelUnavailable, match=r"failed: .*answer\.c"):
        lrn.load_library(source)
    source.write_text("int missing(void); int answer(void) { return missing(); }\n")
    with pytest.raises(lrn.KernelUnavailable, match="cannot be used: .*missing"):
        lrn.load_library(source)
    monkeypatch.setenv("ALEXNET_COMPILER", "no-such-compiler")
    with pytest.raises(lrn.KernelUnavailable, match="there is no no-such-compiler") as raised:
        lrn.load_library(source)
    assert not raised.value.expected
    monkeypatch.setenv("ALEXNET_COMPILER", "none")
    with pytest.raises(lrn.KernelUnavailable, match="ALEXNET_COMPILER is none") as raised:
        lrn.load_library(source)
    assert raised.value.expected
