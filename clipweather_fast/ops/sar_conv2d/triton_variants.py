"""Which kernel variant a call of sar_conv2d runs in Triton, and with which tile.

There is no tuning at run time: it would synchronise, break CUDA-graph capture and make the order of
sums depend on a race. Tiles come from tables over shapes, so the same call gives the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from clipweather_fast.ops._triton import interpreted

#: Every sum is short and nothing diverges: four warps hide latency as well as eight and leave small
#: tiles enough elements per thread for wide loads. The loads feed no dot product, so there is
#: nothing to pipeline. Fused multiply-add by name, because Triton 3.10 turns its default off.
OPTIONS: dict[str, Any] = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}

#: Programs that fill an H100 or H200 (132 multiprocessors) twice. A constant: sums whose order
#: asked the device would change with it.
FULL_DEVICE = 264

#: Rows and columns of every tile under TRITON_INTERPRET=1, where time goes by the program and not
#: by the element: a quarter of the programs, and still several for a test's image.
INTERPRETED_TILE: tuple[int, int] | None = (8, 16) if interpreted() else None


def sides(rows: int, columns: int) -> dict[str, int]:
    """A tile of so many pixels on a GPU."""
    rows, columns = INTERPRETED_TILE or (rows, columns)
    return {"TILE_H": rows, "TILE_W": columns}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def block_c(channels: int, most: int) -> int:
    """Channels per program: a power of two, no more than needed, at least 64 bytes of fp32."""
    return min(most, max(16, 1 << (channels - 1).bit_length()))


class Variant(NamedTuple):
    """What selects the compiled kernels and tiles of a call, dtypes aside."""

    n: int
    c: int
    h: int
    w: int
    kernels: int
    kernel_size: int
    gate: str
    gelu: bool
    bias: bool
    static: bool
    residual: bool  # whether the mixed branch is used apart from y

    @property
    def folded(self) -> bool:
        """Whether the last mixed kernel is taken into the plain one, see pack_kernels_kernel."""
        # A single map is always 1, but NaN where its logit is not finite: it stays in the sum.
        return self.gate == "softmax" and self.kernels > 1 and not self.residual

    @property
    def mixed(self) -> int:
        """Kernels mixed by maps."""
        return self.kernels - self.folded

    @property
    def plain(self) -> bool:
        """Whether there is a kernel without a map."""
        return self.static or self.folded

    @property
    def sums(self) -> int:
        """Kernel gradients summed; folded, the static kernel's is the sum of the others'."""
        return self.kernels + (self.static and not self.folded)

    def tiles(self, tile: dict[str, Any]) -> int:
        """How many tiles cover the pixels."""
        return self.n * ceil_div(self.h, tile["TILE_H"]) * ceil_div(self.w, tile["TILE_W"])

    def blocks(self, tile: dict[str, Any]) -> int:
        """How many blocks cover the channels."""
        return ceil_div(self.c, tile["BLOCK_C"])

    def gather_tile(self) -> dict[str, Any]:
        """The tile of the kernels that gather one result per element (forward, image).

        Large images take 16 elements per thread, so that a packed kernel value once loaded serves
        several pixels; 8 where that would leave multiprocessors idle or many maps need registers.
        """
        block = {"BLOCK_C": block_c(self.c, 64)}
        tile = {**sides(4, 8), **block}
        if self.mixed <= 3 and self.tiles(tile) * self.blocks(tile) >= FULL_DEVICE:
            return tile
        return {**sides(4, 4), **block}

    def maps_tile(self) -> dict[str, Any]:
        """The tile of the pass over the maps, whose program runs through every channel.

        8 elements per thread, as each kernel takes two sums per element; 4 where there are too few
        pixels to fill the device.
        """
        block = {"BLOCK_C": block_c(self.c, 64)}
        tile = {**sides(4, 4), **block}
        if self.kernels and self.tiles(tile) < FULL_DEVICE:
            return {**sides(2, 4), **block}
        return tile

    def kernels_tile(self) -> dict[str, Any]:
        """The tile of the pass over the kernels: as many elements per thread as its sums allow.

        A 3 × 3 kernel with few maps is summed by one program, which reads g and x once; others are
        summed row by row.
        """
        rows = self.kernel_size if self.kernel_size == 3 and self.sums <= 4 else 1
        count = (rows * self.kernel_size + 1) * self.sums
        tile = sides(4, 8) if count <= 8 else sides(4, 4) if count <= 16 else sides(2, 4)
        if count > 40:
            tile = sides(2, 2)
        return {"ROWS": rows, **tile, "BLOCK_C": block_c(self.c, 64)}

    def forward_constants(self) -> dict[str, Any]:
        return {
            "KERNELS": self.kernels,
            "MIXED": self.mixed,
            "PLAIN": self.plain,
            "KERNEL_SIZE": self.kernel_size,
            "GATE": self.gate,
            "GELU": self.gelu,
            "BIAS": self.bias,
            **self.gather_tile(),
        }

    def maps_constants(self) -> dict[str, Any]:
        return {
            "KERNELS": self.kernels,
            "MIXED": self.mixed,
            "PLAIN": self.plain,
            "KERNEL_SIZE": self.kernel_size,
            "GATE": self.gate,
            "BIAS": self.bias,
            **self.maps_tile(),
        }

    def kernels_constants(self) -> dict[str, Any]:
        return {
            "KERNELS": self.kernels,
            "SUMS": self.sums,
            "KERNEL_SIZE": self.kernel_size,
            **self.kernels_tile(),
        }

    def image_constants(self) -> dict[str, Any]:
        return {
            "MIXED": self.mixed,
            "PLAIN": self.plain,
            "KERNEL_SIZE": self.kernel_size,
            **self.gather_tile(),
        }


#: Hidden tensors (N, C, H, W) of the networks, at sizes whose tiles differ: 256 × 256 alone and in
#: a batch for training, and 1080p.
SHIPPED_IMAGES = (
    (1, 128, 64, 64),
    (1, 640, 16, 16),
    (32, 128, 64, 64),
    (32, 640, 16, 16),
    (1, 256, 135, 240),
)


def shipped_variants() -> list[Variant]:
    """What the networks launch: SARFFN, alone and when R is distilled; SARConv2d; ConvMlp."""
    return [
        Variant(n, c, h, w, kernels, 3, gate, gelu, True, static, residual)
        for n, c, h, w in SHIPPED_IMAGES
        for kernels, gate, gelu, static, residual in (
            (3, "softmax", True, True, False),
            (3, "softmax", True, True, True),
            (3, "softmax", False, False, False),
            (0, "none", True, True, False),
        )
    ]
