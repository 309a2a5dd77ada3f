"""`distft ranks`: the rank that AdaLoRA gave each weight, as a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from distft.errors import UserError
from distft.recipe.adapters import AdaLora
from distft.recipe.load import load_resolved
from distft.run.files import complete_file
from distft.run.folder import RunDir

PICTURE = "ranks.png"
FEW_LAYERS = 24  # more are shown in several tables
Cells = dict[str, dict[int, int]]  # rank by kind of weight and layer


@dataclass(frozen=True)
class RankTable:
    """After the allocation of `step`."""

    step: int
    initial: int  # of each weight
    cells: Cells
    layers: list[int]

    @property
    def total(self) -> int:
        return sum(rank for row in self.cells.values() for rank in row.values())

    @property
    def possible(self) -> int:
        return self.initial * sum(map(len, self.cells.values()))


def read_ranks(run: RunDir) -> RankTable:
    """The newest ranks of a run.

    Raises:
        UserError: it has none, because it trains something else or has not come to its first allocation.
    """
    run.read()
    adapter = load_resolved(run.config).adapter
    if not isinstance(adapter, AdaLora):
        raise UserError(f"{run.path} has fixed ranks: its recipe has adapter.type {adapter.type}, not adalora")
    newest = [record for record in run.records() if "ranks" in record]
    if not newest:
        raise UserError(f"{run.path} has no rank allocation yet; the first one comes soon after step adapter.tinit")
    cells: Cells = {}
    given = newest[-1]["ranks"]
    whole = len({place(name) for name in given}) < len(given)  # an encoder and a decoder
    for name, rank in given.items():
        kind, layer = place(name, whole)
        cells.setdefault(kind, {})[layer] = rank
    layers = sorted({layer for row in cells.values() for layer in row})
    return RankTable(newest[-1]["step"], adapter.init_r, cells, layers)


def place(module: str, whole: bool = False) -> tuple[str, int]:
    """("self_attn.q_proj", 3) of "base_model.model.model.layers.3.self_attn.q_proj"; layer 0 where none is numbered.

    Args:
        whole: with what comes before the number.
    """
    parts = module.split(".")
    at = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    if at is None:
        return module.removeprefix("base_model.model."), 0
    before = ".".join(parts[:at]).removeprefix("base_model.model.") if whole else ""
    return ".".join(filter(None, [before, *parts[at + 1 :]])), int(parts[at])


def show_ranks(ranks: RankTable) -> None:
    console = Console()
    for begin in range(0, len(ranks.layers), FEW_LAYERS):
        layers = ranks.layers[begin : begin + FEW_LAYERS]
        table = Table(title=f"rank after step {ranks.step}, by layer; {ranks.initial} at the start")
        table.add_column("weight", no_wrap=True)
        for layer in layers:
            table.add_column(str(layer), justify="right")
        table.add_column("sum", justify="right")
        for kind, row in ranks.cells.items():
            shown = [str(row.get(layer, "")) for layer in layers]
            table.add_row(kind, *shown, str(sum(row.get(layer, 0) for layer in layers)))
        console.print(table)
    console.print(f"{ranks.total} of {ranks.possible} ranks are left")


def draw_ranks(run: RunDir, ranks: RankTable) -> str:
    """Write the heat map, weights by layers. Returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grid = [[row.get(layer, float("nan")) for layer in ranks.layers] for row in ranks.cells.values()]
    size = (2.5 + 0.4 * max(6, len(ranks.layers)), 1.5 + 0.4 * len(ranks.cells))
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    image = axes.imshow(grid, vmin=0, vmax=ranks.initial, aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(ranks.cells)), list(ranks.cells))
    axes.set_xticks(range(len(ranks.layers)), [str(layer) for layer in ranks.layers])
    axes.set(xlabel="layer", title=f"{run.read().name}: rank after step {ranks.step}")
    figure.colorbar(image, ax=axes)
    path = run.path / PICTURE
    with complete_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
    return str(path)
