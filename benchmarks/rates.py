"""What the machine could do: FLOP/s by its data sheet, and those that one large matmul reaches."""

import statistics

import torch

from measures import clock

DATASHEET = {
    "NVIDIA B200": 2250e12,
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100": 989.5e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
}
"""Dense bf16 FLOP/s by the beginning of the name that the driver gives. Data sheets of newer cards print twice as much, with sparsity."""


def datasheet_rate(name: str) -> float | None:
    """The FLOP/s of the device called so, None where the table does not have it."""
    known = [key for key in DATASHEET if name == key or name.startswith((f"{key} ", f"{key}-"))]
    return DATASHEET[max(known, key=len)] if known else None


def matmul_ceiling(device: torch.device, dtype: torch.dtype, *, size: int, tries: int = 5, calls: int = 10) -> float:
    """FLOP/s of square matmuls of `size`: the median of some tries, each of so many calls."""
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    found = []
    torch.mm(one, other)
    for _ in range(tries):
        started = clock()
        for _ in range(calls):
            torch.mm(one, other)
        found.append(2 * size**3 * calls / (clock() - started))
    return statistics.median(found)
