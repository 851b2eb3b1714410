"""Stage 0: what the device can do at best, with which everything after it is compared."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from typing import Any

import measure
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gpu_stages.plan import Scale
from gpu_stages.record import Cases
from gpu_stages.timing import pace, peak_flops, sample_noise
from redraft.errors import UserError
from redraft.network.sizes import from_size

BF16, F32 = torch.bfloat16, torch.float32
SQUARE = "matmul bfloat16"
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
NO_KERNEL = ("No available kernel", "No viable backend")
MASKS = ("plain", "causal", "masked")


def run(cases: Cases, device: torch.device, size: Scale) -> None:
    cases.run("versions", versions, device, needs=0)
    cases.run("copy", copied, device, size)
    cases.run(SQUARE, product, device, BF16, *3 * (size.square,), size.least)
    cases.run("matmul float32", product, device, F32, *3 * (size.square // 2,), size.least)
    for name, shape in shapes(size).items():
        cases.run(name, product, device, BF16, *shape, size.least / 5)
    for (name, backend), mask in ((pair, mask) for pair in BACKENDS.items() for mask in MASKS):
        cases.run(f"attention {name} {mask}", attention, device, size, backend, mask)
    sample_noise(device)


def versions(device: torch.device) -> dict[str, Any]:
    """What there is to work with. Compiling takes a C compiler, on a GPU Triton too."""
    found = measure.machine(device) | {"compiler": shutil.which("gcc") or shutil.which("clang")}
    found |= {"triton": find_spec("triton") is not None, "data_sheet_bfloat16": peak_flops(device)}
    return found | ({"cudnn": torch.backends.cudnn.version()} if device.type != "cpu" else {})


def copied(device: torch.device, size: Scale) -> dict[str, Any]:
    """Bytes a second, read and written ones counted."""
    here, there = (torch.empty(size.copy, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = pace(lambda: there.copy_(here), device, size.least / 5)
    return {"bytes_per_second": 2 * size.copy / seconds}


def product(
    device: torch.device, dtype: torch.dtype, rows: int, inner: int, columns: int, least: float
) -> dict[str, Any]:
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(columns, inner, device=device).to(dtype)
    seconds = pace(lambda: a @ b.T, device, least)
    return {"flops_per_second": 2 * rows * inner * columns / seconds, "shape": [rows, inner, columns]}


def shapes(size: Scale) -> dict[str, tuple[int, int, int]]:
    """The products of a training step, forward: (tokens, inputs, outputs) of each matrix, and a chunk of the head."""
    out = {}
    for name, rows in ((size.small, size.small_rows), (size.large, size.large_rows)):
        shape, tokens = from_size(name, "dit", size.vocab), rows * size.length
        d = shape.width
        out |= {f"matmul {name} qkv": (tokens, d, 3 * d), f"matmul {name} up": (tokens, d, shape.hidden)}
        out |= {
            f"matmul {name} down": (tokens, shape.hidden, d),
            f"matmul {name} head": (min(tokens, 4096), d, size.vocab),
        }
    return out


def attention(device: torch.device, size: Scale, backend: SDPBackend, mask: str) -> dict[str, Any]:
    """Forward and backward, 8 rows of 16 heads of 64; 3.5 times the forward's 4 B H L^2 d FLOPs, a mask saving nothing."""
    rows, heads, length, width = 8, 16, size.kernel, 64
    q, k, v = (torch.randn(rows, heads, length, width, device=device, dtype=BF16, requires_grad=True) for _ in range(3))
    seen = torch.rand(rows, 1, length, length, device=device) < 0.5 if mask == "masked" else None
    up = torch.randn_like(q)

    def once() -> None:
        q.grad = k.grad = v.grad = None
        with sdpa_kernel(backend):
            out: Tensor = scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=mask == "causal")
        out.backward(up)

    try:
        seconds = pace(once, device, size.least / 3)
    except RuntimeError as error:
        if not any(said in str(error) for said in NO_KERNEL):
            raise
        raise UserError("no kernel for this here") from None
    flops = 3.5 * 4 * rows * heads * length**2 * width
    return {"flops_per_second": flops / seconds, "seconds": seconds}
