"""GPUs: dense bf16 peaks by the names that torch reports, MIG slices included, and how much memory they have."""

from __future__ import annotations

import re
from dataclasses import dataclass

from distft.errors import UserError

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
_PART = re.compile(r"\d+g\.\d+gb|\bmig\b", re.IGNORECASE)


def peak_flops(name: str) -> float | None:
    """FLOP/s in bf16 of a GPU that torch calls `name`; None where they are not known.

    All words of a name in the table must be in it, so "A10" is neither an A100 nor an A10G; of several that fit the
    longest is meant. A slice has its share of the whole.
    """
    cut = _SLICE.search(name)
    known = _kind(_words(name[: cut.start() if cut else None]))
    if known is None:
        return None
    share = int(cut.group(1) or cut.group(2)) / SLICES.get(known, MOST_SLICES) if cut else 1.0
    return PEAKS[known] * 1e12 * share


def _words(name: str) -> set[str]:
    return set(re.split(r"[\s\-_/]+", name.lower()))


def _kind(words: set[str]) -> str | None:
    """The product that words name, as PEAKS calls it."""
    fitting = [known for known in PEAKS if set(known.lower().split()) <= words]
    return max(fitting, key=len) if fitting and not words & OTHERS else None


MIB = 1 << 20
# MiB that torch reports as a whole GPU's, ECC taken off, by name and by the size that is printed on it.
MEMORY = {
    "GB300-288GB": 284_000,
    "GB200-186GB": 189_500,
    "B300-288GB": 275_000,
    "B200-180GB": 182_500,
    "GH200-96GB": 97_000,
    "H200-141GB": 143_156,
    "H200 NVL-141GB": 143_156,
    "H100-80GB": 81_079,
    "H100 NVL-94GB": 95_250,
    "H100 PCIe-80GB": 81_079,
    "H800-80GB": 81_079,
    "H800 PCIe-80GB": 81_079,
    "H20-96GB": 97_280,
    "A100-80GB": 81_050,
    "A100-40GB": 40_326,
    "A800-80GB": 81_050,
    "A40-48GB": 45_416,
    "A30-24GB": 24_060,
    "A10-24GB": 22_502,
    "A10G-24GB": 22_502,
    "L40S-48GB": 45_372,
    "L40-48GB": 45_372,
    "L20-48GB": 45_372,
    "L4-24GB": 22_486,
    "RTX 6000 Ada-48GB": 48_500,
    "RTX A6000-48GB": 48_536,
    "RTX 5090-32GB": 32_100,
    "RTX 4090-24GB": 24_080,
    "RTX 3090-24GB": 24_135,
    "MI355X-288GB": 294_000,
    "MI350X-288GB": 294_000,
    "MI325X-256GB": 261_000,
    "MI300X-192GB": 196_300,
    "MI300A-128GB": 130_500,
    "MI250X-64GB": 65_400,
    "MI250-64GB": 65_400,
    "MI210-64GB": 65_400,
}
LINKS = {  # GB/s that one GPU sends to others of its node, one direction
    "GB300": 900.0,
    "GB200": 900.0,
    "B300": 900.0,
    "B200": 900.0,
    "GH200": 450.0,
    "H200": 450.0,
    "H100": 450.0,
    "H800": 200.0,
    "H20": 450.0,
    "A100": 300.0,
    "A800": 200.0,
    "MI355X": 537.0,
    "MI350X": 537.0,
    "MI325X": 448.0,
    "MI300X": 448.0,
}
PCIE = 25.0
BANDWIDTHS = {  # GB/s of a device's memory, by data sheets
    "GB300": 8000.0,
    "GB200": 8000.0,
    "B300": 8000.0,
    "B200": 8000.0,
    "GH200": 4000.0,
    "H200": 4800.0,
    "H200 NVL": 4800.0,
    "H100": 3350.0,
    "H100 NVL": 3900.0,
    "H100 PCIe": 2000.0,
    "H800": 3350.0,
    "H800 PCIe": 2000.0,
    "H20": 4000.0,
    "A100": 2039.0,
    "A100-40GB": 1555.0,
    "A800": 2039.0,
    "A40": 696.0,
    "A30": 933.0,
    "A10": 600.0,
    "A10G": 600.0,
    "L40S": 864.0,
    "L40": 864.0,
    "L20": 864.0,
    "L4": 300.0,
    "RTX 6000 Ada": 960.0,
    "RTX A6000": 768.0,
    "RTX 5090": 1792.0,
    "RTX 4090": 1008.0,
    "RTX 3090": 936.0,
    "MI355X": 8000.0,
    "MI350X": 8000.0,
    "MI325X": 6000.0,
    "MI300X": 5300.0,
    "MI300A": 5300.0,
    "MI250X": 1638.0,
    "MI250": 1638.0,
    "MI210": 1638.0,
}
# Share of the peak that the fastest matrix product in bf16 reached: measured by S. Bekman with torch 2.5 to 2.10
# (github.com/stas00/ml-engineering, compute/accelerator/README.md, 744d01e, "MAMF"). H200 "is the same" as H100.
MATMULS = {
    "A100": 0.869,
    "A800": 0.869,
    "GH200": 0.838,
    "H100": 0.803,
    "H200": 0.803,
    "H800": 0.803,
    "B300": 0.786,
    "B200": 0.776,
    "GB200": 0.729,
    "MI355X": 0.680,
    "MI325X": 0.604,
    "MI300X": 0.514,
}
MATMUL = 0.75  # where nobody is known to have measured it
BETWEEN_NODES = 25.0  # GB/s that one GPU sends to other nodes: 200 Gbit/s, as a DGX A100 has
FASTER = {  # where the maker's own servers have more: 400 Gbit/s in a DGX H100 to B200, 800 in a DGX B300
    "GB300": 100.0,
    "GB200": 50.0,
    "B300": 100.0,
    "B200": 50.0,
    "GH200": 50.0,
    "H200": 50.0,
    "H100": 50.0,
    "H800": 50.0,
    "H20": 50.0,
    "MI355X": 50.0,
    "MI350X": 50.0,
    "MI325X": 50.0,
    "MI300X": 50.0,
}


@dataclass(frozen=True)
class Device:
    """A GPU to plan for, where it stands.

    Attributes:
        memory: bytes that torch reports; None: they are not known.
        flops: FLOP/s in bf16, dense; None: they are not known.
        link: bytes per second to GPUs of the same node.
        bandwidth: bytes per second of its memory; 0: not known.
        matmul: share of `flops` that matrix products can reach.
        between: bytes per second to other nodes.
        reached: share of `flops` that training was measured to reach; None: it is reckoned.
    """

    name: str
    memory: int | None
    flops: float | None
    link: float
    bandwidth: float
    matmul: float = MATMUL
    between: float = BETWEEN_NODES * 1e9
    reached: float | None = None


def device(name: str) -> Device:
    """A GPU by its name in the table, with its size where there are several ("A100-80GB", "h100").

    Raises:
        UserError: it is not known, or there are several.
    """
    try:
        whole = whole_name(name)
    except ValueError as error:
        raise UserError(f"--gpu {error}") from None
    kind = _kind_of(whole)
    return _device(whole, kind, MEMORY[whole] * MIB, PEAKS[kind] * 1e12)


def present(name: str, memory: int) -> Device:
    """The GPU that torch calls so, with the bytes that torch reports."""
    return _device(name, _kind(_words(name)), memory, peak_flops(name))


def unknown(name: str) -> Device:
    """A GPU of which nothing is known but what people call it."""
    return _device(name, None, None, None)


def _device(name: str, kind: str | None, memory: int | None, flops: float | None) -> Device:
    kind = kind or ""
    bandwidth = BANDWIDTHS.get(name) or BANDWIDTHS.get(kind, 0.0)
    matmul, between = MATMULS.get(kind, MATMUL), FASTER.get(kind, BETWEEN_NODES)
    return Device(name, memory, flops, LINKS.get(kind, PCIE) * 1e9, bandwidth * 1e9, matmul, between * 1e9)


def whole_name(name: str) -> str:
    """The name in the table that is meant, in any case and with any of " -_" between its words.

    Raises:
        ValueError: it is not known, or there are several.
    """
    wanted = _plain(name)
    fitting = [one for one in MEMORY if wanted in (_plain(one), _plain(_kind_of(one)))]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(fitting or MEMORY)
    raise ValueError(f"{name}: {'several are called so' if fitting else 'unknown'}; the possible values: {known}")


def meant(kind: str) -> list[str]:
    """The names in the table that a scheduler's name of a GPU may stand for: "a100" is one of two sizes,
    "nvidia_a100-sxm4-80gb" one GPU, "h100" one of three boards, "1g.10gb" and "v100" nothing that is in the table."""
    words = _words(kind)
    known = None if _PART.search(kind) else _kind(words)
    if known is None:
        return []
    if sizes := {word.removesuffix("b") for word in words if re.fullmatch(r"\d+gb?", word)}:
        return [one for one in MEMORY if _kind_of(one) == known and one.lower().rpartition("-")[2][:-1] in sizes]
    return [one for one in MEMORY if set(known.lower().split()) <= _words(_kind_of(one))]


def _kind_of(whole: str) -> str:
    return whole.rpartition("-")[0]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().lower())
