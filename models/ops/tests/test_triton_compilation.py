"""What the Triton compiler makes of the kernels as the launchers call them: no device is needed or touched."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from ms_deform_attn import triton_gpu
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

pytestmark = pytest.mark.skipif(
    not isinstance(triton_gpu.forward_kernel, triton.JITFunction), reason="Triton interprets here and compiles nothing"
)

LEVELS = ((100, 167), (50, 84), (25, 42), (13, 21))
NAMES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Compilation:
    """Stands in for a kernel: a launch compiles it for the target, with the arguments as Triton would see them."""

    def __init__(self, kernel: Any, capability: int):
        self.kernel = kernel
        self.target = GPUTarget("cuda", capability, 32)
        self.asm: dict[str, Any] = {}
        self.options: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int]):
        return self.launch

    def launch(self, *arguments: Any, **constants: Any) -> None:
        self.options = {name: constants.pop(name) for name in OPTIONS}
        signature: dict[str, Any] = {}
        aligned = {}
        for index, (name, argument) in enumerate(zip(self.kernel.arg_names, arguments, strict=False)):
            if isinstance(argument, torch.Tensor):
                signature[name] = NAMES[argument.dtype]
                aligned[(index,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = ("i64",) * len(argument) if isinstance(argument, tuple) else "i32"
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(self.kernel, signature, constants, aligned)
        self.asm = triton.compile(source, target=self.target, options=self.options).asm

    def uses(self) -> dict[str, int]:
        """Registers, and bytes of stack and local memory, of a thread."""
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        if not tool.exists():
            pytest.skip("this Triton comes without cuobjdump")
        binary = Path(tool.name)
        binary.write_bytes(self.asm["cubin"])
        listed = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True)
        return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", listed.stdout)}


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Call forward and backward of the encoder on the meta device; get what each kernel was compiled to."""
    monkeypatch.chdir(tmp_path)

    def run(
        dtype: torch.dtype,
        coordinates: int,
        levels: tuple[tuple[int, int], ...] = LEVELS[:1],
        capability: int = 90,
        B: int = 1,
        Q: int = 20000,
        H: int = 8,
        C: int = 32,
        P: int = 4,
        backward: bool = True,
    ) -> list[Compilation]:
        kernels = [
            Compilation(kernel, capability) for kernel in (triton_gpu.forward_kernel, triton_gpu.backward_kernel)
        ]
        with monkeypatch.context() as patch:
            patch.setattr(triton_gpu, "forward_kernel", kernels[0])
            patch.setattr(triton_gpu, "backward_kernel", kernels[1])
            patch.setattr(triton_gpu, "_multiprocessors", lambda device: 132)
            cells = sum(h * w for h, w in levels)
            value = torch.empty(B, cells, H, C, dtype=dtype, device="meta")
            points = torch.empty(B, Q, H, len(levels), P, 2, dtype=dtype, device="meta")
            weights = torch.empty(B, Q, H, len(levels), P, dtype=dtype, device="meta")
            given: tuple[Any, ...] = (value, levels, points, weights)
            if coordinates:
                reference = torch.empty(B, Q, len(levels), coordinates, dtype=dtype, device="meta")
                given = (value, levels, reference, points, weights)
            forward, back = (
                (triton_gpu.fused_forward, lambda *args: triton_gpu.fused_backward(*args, True))
                if coordinates
                else (triton_gpu.forward, triton_gpu.backward)
            )
            output = forward(*given)
            assert output.shape == (B, Q, H * C) and output.dtype == dtype
            if backward:
                grads = [grad for grad in back(output, *given) if grad is not None]
                inputs = [tensor for tensor in given if isinstance(tensor, torch.Tensor)]
                assert [(g.shape, g.dtype) for g in grads] == [(t.shape, t.dtype) for t in inputs]
        return kernels if backward else kernels[:1]

    return run


def moved_in_loops(ttgir: str) -> int:
    """How often registers are exchanged between lanes inside the loops over points."""
    return sum("convert_layout" in body for body in re.findall(r"scf\.for.*?scf\.yield", ttgir, re.DOTALL))


@pytest.mark.parametrize("dtype, coordinates", [(torch.float32, 0), (torch.bfloat16, 2)], ids=["plain", "fused"])
def test_hopper_reads_and_adds_in_vectors_and_moves_nothing(compiled, dtype: torch.dtype, coordinates: int) -> None:
    forward, backward = compiled(dtype, coordinates, LEVELS)
    # A point reads four cells of 32 channels, 16 bytes a load by two lanes; the code has it once a level.
    pieces = 32 * dtype.itemsize // 32
    assert len(re.findall(r"ld\.global\.v4\.b32", forward.asm["ptx"])) >= 4 * pieces * len(LEVELS)
    added = re.findall(r"(?:red|atom)\.global\.gpu\.relaxed\.add(\S*)", backward.asm["ptx"])
    assert set(added) == {".v4.f32"} and len(added) == 4 * 2 * len(LEVELS)
    for kernel in (forward, backward):
        assert moved_in_loops(kernel.asm["ttgir"]) == 0
        assert "bar.sync" not in kernel.asm["ptx"]
        uses = kernel.uses()
        assert uses["STACK"] == uses["LOCAL"] == 0 and uses["REG"] <= 96


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_compile(compiled, dtype: torch.dtype) -> None:
    for kernel in compiled(dtype, 4):
        assert kernel.asm["cubin"]


@pytest.mark.parametrize("capability", [80, 100])
def test_other_capabilities_compile(compiled, capability: int) -> None:
    for kernel in compiled(torch.bfloat16, 0, capability=capability):
        assert f"sm_{capability}" in kernel.asm["ptx"]


def test_deterministic_kernel_adds_integers(compiled) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        _, backward = compiled(torch.bfloat16, 0)
    finally:
        torch.use_deterministic_algorithms(False)
    assert re.search(r"(?:red|atom)\.global\.gpu\.relaxed\.add\.u64", backward.asm["ptx"])


def test_few_queries_spread_over_more_lanes(compiled) -> None:
    (decoder,) = compiled(torch.bfloat16, 2, LEVELS, Q=300, backward=False)
    assert moved_in_loops(decoder.asm["ttgir"]) == 0
    assert triton_gpu.forward_layout(300 * 8, 32, 2, 132) == triton_gpu.Layout(rows=8, width=32, chunks=1, warps=1)
    assert triton_gpu.forward_layout(22223 * 8, 32, 2, 132) == triton_gpu.Layout(rows=16, width=16, chunks=2, warps=1)


@pytest.mark.parametrize("C", [1, 3, 30, 64, 71, 1025, 3096])
def test_layouts_cover_every_channel_with_little_to_spare(C: int) -> None:
    layouts = [triton_gpu.forward_layout(rows, C, size, 132) for rows in (100, 10**6) for size in (2, 4, 8)]
    for layout in [*layouts, triton_gpu.backward_layout(C, 2), triton_gpu.backward_layout(C, 4)]:
        assert C <= layout.width * layout.chunks < 2 * C and layout.chunks <= triton_gpu.MAX_PIECES
        assert layout.rows >= 1 and layout.rows & (layout.rows - 1) == 0


def test_large_tables_are_addressed_with_64_bits(compiled) -> None:
    small, large = (torch.empty(1, S, 8, 32, device="meta") for S in (22223, 2**22))
    points = torch.empty(1, 5, 8, 1, 4, 2, device="meta")
    layout = triton_gpu.backward_layout(32, 4)
    assert triton_gpu._constants(small, points, None, layout, tl.float32)["OFFSET"] == tl.int32
    assert triton_gpu._constants(large, points, None, layout, tl.float32)["OFFSET"] == tl.int64
    for kernel in compiled(torch.bfloat16, 0, H=2**12, C=40, P=1, Q=8):
        assert kernel.asm["cubin"]


def test_sizes_of_levels_never_lead_to_another_compilation() -> None:
    for number in triton_gpu.packed_levels(((1, 1), (16, 32), (2**20, 2**31))):
        assert number % 2 == 1 and 2**31 < number < 2**63
