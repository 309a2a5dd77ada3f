"""The `adapter` section of a recipe: full or partial fine-tuning, LoRA and its variants, AdaLoRA."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distft.recipe.section import Fraction, Positive, Section, Text


class NoAdapter(Section):
    """Full fine-tuning."""

    type: Literal["none"] = "none"


class Partial(Section):
    """Train some of the parameters; the rest is frozen."""

    type: Literal["partial"]
    train: Annotated[list[Text], Field(min_length=1)] = Field(
        description="names of the parameters to train; * and ? are wildcards: [model.layers.11.*, lm_head.*]"
    )


class Layers(Section):
    """Keys that all low-rank adapters have; the layers are PEFT's."""

    type: Literal["lora", "adalora"]
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="scale: the update is multiplied by alpha / rank")
    dropout: Fraction = Field(0.0, description="dropout on the input of the adapter")
    targets: str | list[str] = Field(
        "all-linear", description="modules that get an adapter: `all-linear`, or names of modules"
    )
    routers: bool = Field(
        False, description="under `all-linear`, also give an adapter to the routers of a mixture of experts"
    )
    modules_to_save: list[Text] = Field(
        default_factory=list, description="modules to train fully beside the adapter: heads, embeddings"
    )
    start: Text | None = Field(
        None, alias="from", description="start from this adapter of the same shape: a folder or hub id"
    )
    seed: int = Field(0, description="seed of the adapter's random weights")


class Lora(Layers):
    """LoRA (Hu et al. 2021, arXiv:2106.09685) and its variants."""

    type: Literal["lora"]
    r: Positive = Field(16, description="rank")
    rslora: bool = Field(
        False, description="multiply by alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv:2312.03732)"
    )
    dora: bool = Field(
        False, description="train magnitude and direction separately (Liu et al. 2024, arXiv:2402.09353)"
    )
    lora_plus: Annotated[float, Field(gt=0)] | None = Field(
        None, description="learning rate of B divided by that of A, often 16 (Hayou et al. 2024, arXiv:2402.12354)"
    )
    quantize: Literal["nf4"] | None = Field(
        None,
        description="nf4: keep the base model in 4 bits with bitsandbytes (QLoRA, arXiv:2305.14314)",
    )


class AdaLora(Layers):
    """AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): ranks move to the weights that need them most."""

    type: Literal["adalora"]
    init_r: Positive = Field(12, description="rank of every weight at the start")
    target_r: Positive = Field(8, description="average rank per weight at the end")
    tinit: Annotated[int, Field(ge=0)] | None = Field(
        None, description="steps before the first rank is removed; default: a tenth of the run"
    )
    tfinal: Annotated[int, Field(ge=0)] | None = Field(
        None, description="steps at the end during which ranks are fixed; default: three tenths of the run"
    )
    delta_t: Positive | None = Field(
        None, description="steps between two allocations; default: a tenth of the steps in between, at most 10"
    )
    beta1: Fraction = Field(0.85, description="smoothing factor of the sensitivity")
    beta2: Fraction = Field(0.85, description="smoothing factor of the uncertainty")
    orthogonal_weight: Annotated[float, Field(ge=0)] = Field(
        0.5, description="weight of the regularizer that keeps the singular vectors orthogonal"
    )

    @model_validator(mode="after")
    def _has_ranks_to_give_up(self) -> AdaLora:
        if self.target_r >= self.init_r:
            raise ValueError(
                f"target_r {self.target_r} leaves AdaLoRA no rank to remove from init_r {self.init_r}; "
                f"give target_r 1 to {self.init_r - 1}, or a larger init_r"
                if self.init_r > 1
                else "init_r 1 leaves AdaLoRA no rank to remove; give a larger init_r"
            )
        return self


Adapter = Annotated[NoAdapter | Partial | Lora | AdaLora, Field(discriminator="type")]
