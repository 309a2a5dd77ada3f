"""Dense bf16 peaks of GPUs by the names that torch reports, MIG slices included."""

from __future__ import annotations

import re

# TFLOP/s of one device of torch, with accumulation in fp32 and without sparsity, which data sheets like to print (half
# of it is what dense matrices get). AMD's MI210 to MI250X: torch sees each of their dies as a device.
PEAKS = {
    "GB300": 2500.0,
    "GB200": 2500.0,
    "B300": 2250.0,
    "B200": 2250.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H200 NVL": 835.5,
    "H100": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "H800": 989.4,
    "H800 PCIe": 756.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10": 125.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L20": 119.5,
    "L4": 121.0,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI355X": 2516.6,
    "MI350X": 2306.9,
    "MI325X": 1307.4,
    "MI300X": 1307.4,
    "MI300A": 980.6,
    "MI250X": 191.5,
    "MI250": 181.0,
    "MI210": 181.0,
}
OTHERS = {"laptop", "max", "d", "ti", "super"}  # words of another product, which has no peak here
SLICES = {"A30": 4}  # MIG cuts a GPU into that many compute slices
MOST_SLICES = 7
_SLICE = re.compile(r"\bMIG (?:(\d+)c\.)?(\d+)g\.", re.IGNORECASE)  # 3g.20gb; 1c.3g.20gb: one of those three


def peak_flops(name: str) -> float | None:
    """FLOP/s in bf16 of a GPU that torch calls `name`; None where they are not known.

    All words of a name in the table must be in it, so "A10" is neither an A100 nor an A10G; of several that fit the
    longest is meant. A slice has its share of the whole.
    """
    cut = _SLICE.search(name)
    words = set(re.split(r"[\s\-_/]+", name[: cut.start() if cut else None].lower()))
    fitting = [known for known in PEAKS if set(known.lower().split()) <= words]
    if not fitting or words & OTHERS:
        return None
    known = max(fitting, key=len)
    share = int(cut.group(1) or cut.group(2)) / SLICES.get(known, MOST_SLICES) if cut else 1.0
    return PEAKS[known] * 1e12 * share
