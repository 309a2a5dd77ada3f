"""The loss chart of a run (loss.png)."""

from __future__ import annotations

from distft.run.files import complete_file
from distft.run.folder import RunDir


def draw_chart(run: RunDir) -> None:
    """Write loss.png: training and held-out loss by step, and where attempts began."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = list(run.records())
    steps = {record["step"]: record for record in records if "loss" in record}
    evaluations = {record["step"]: record["eval_loss"] for record in records if "eval_loss" in record}
    if not steps and not evaluations:
        return
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(list(steps), [record["loss"] for record in steps.values()], label="training", linewidth=1)
    if evaluations:
        ordered = sorted(evaluations.items())
        axes.plot(*zip(*ordered, strict=True), "o-", label="held out")
    for number in sorted({record["attempt"] for record in steps.values()})[1:]:
        begin = min(step for step, record in steps.items() if record["attempt"] == number)
        axes.axvline(begin - 0.5, linestyle=":", color="grey", label=f"attempt {number} begins")
    axes.set(xlabel="optimizer step", ylabel="loss a target token", title=run.read().name)
    axes.grid(alpha=0.3)
    axes.legend()
    with complete_file(run.chart) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
