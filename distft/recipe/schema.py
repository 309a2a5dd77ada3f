"""Every key of a recipe: its name, type, default and meaning. Nothing else decides a run.

The sections are frozen; `distft.recipe.load` reads YAML into them and reports what does not fit.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distft.recipe.section import Fraction, Positive, Scalar, Section, Text
from distft.recipe.tasks import CausalLM, MultiTask, Overlong, Task, TaskPart


class ModelInit(Section):
    """A small random model of a real architecture, with a tokenizer trained on the data."""

    architecture: str = Field("llama", description="model type known to transformers: llama, qwen2, gpt2, ...")
    vocab_size: Annotated[int, Field(ge=260)] = Field(
        2048, description="size of the byte-level BPE trained on the data"
    )
    config: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="sizes, in the names of that architecture: hidden_size, num_hidden_layers, ...",
    )
    seed: int = Field(0, description="seed of the random weights")


class Model(Section):
    """The base model: `path` or `init`, not both."""

    path: Text | None = Field(None, description="local folder or hub id of a model")
    init: ModelInit | None = Field(None, description="make a small random model instead of loading one")
    revision: str | None = Field(None, description="hub revision of `path`")
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="auto: flash attention on a GPU that has it installed, else sdpa"
    )
    activation_checkpointing: bool = Field(False, description="recompute activations in backward to save memory")
    trust_remote_code: bool = Field(False, description="run code that ships with the model; off unless you trust it")

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.path is None) == (self.init is None):
            raise ValueError("give exactly one of `path` (a folder or hub id) and `init` (a small random model)")
        return self


class Data(Section):
    """What is read, how it becomes rows of tokens, and in which order."""

    train: Text | dict[str, Text] | None = Field(
        None,
        description="file (.jsonl .json .csv .tsv .parquet .txt .conll), folder written by `datasets`, hub id, "
        "or parallel files of lines: {source: a.en, target: a.de}",
    )
    eval: Text | dict[str, Text] | None = Field(None, description="held-out data, in the same forms")
    fields: dict[str, str] = Field(default_factory=dict, description="renames: {our name: the column's name}")
    format: Literal["auto", "conll", "lines"] = Field("auto", description="of text files; auto: by the suffix")
    delimiter: Text | None = Field(None, description="what is between the columns of a text file")
    columns: list[Text] = Field(default_factory=list, description="names of the columns of a file without a header")
    hub_config: str | None = Field(None, description="configuration name of a hub data set")
    train_split: str = Field("train", description="split, where the source has several")
    eval_split: str = Field("validation", description="split, where the source has several")
    template: Text | None = Field(
        None, description="file with a chat template (Jinja) that replaces the tokenizer's own"
    )
    row_tokens: Annotated[int, Field(ge=8)] = Field(1024, description="tokens in a row (speech: milliseconds)")
    packing: bool | None = Field(
        None,
        description="several documents share a row; default: as far as the task keeps them apart within one sequence",
    )
    group_by_length: bool | None = Field(
        None, description="rows of similar lengths share a step; default: where rows are padded"
    )
    overlong: Overlong | None = Field(
        None, description="what happens to a record longer than a row; default: the first that the task can do"
    )
    seed: int = Field(0, description="seed of the order of rows")
    cache: Text | None = Field(None, description="folder of the token cache; default $XDG_CACHE_HOME/distft")


class NoAdapter(Section):
    """Full fine-tuning."""

    type: Literal["none"] = "none"


class Partial(Section):
    """Full fine-tuning of a part of the model; the rest is frozen."""

    type: Literal["partial"]
    train: Annotated[list[Text], Field(min_length=1)] = Field(
        description="names of the parameters to train, with * and ?: [model.layers.11.*, lm_head.*]"
    )


class Layers(Section):
    """What adapters of pairs of thin matrices have in common; the layers are PEFT's."""

    type: Literal["lora", "adalora"]
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="scale; the update is multiplied by alpha / rank")
    dropout: Fraction = Field(0.0, description="dropout on the adapter's input")
    targets: str | list[str] = Field("all-linear", description="`all-linear`, or names of modules")
    modules_to_save: list[Text] = Field(
        default_factory=list, description="names of modules that are trained whole beside it: heads, embeddings"
    )
    start: Text | None = Field(
        None, alias="from", description="folder or hub id of an adapter of the same shape to begin with"
    )
    seed: int = Field(0, description="seed of the adapter's random weights")


class Lora(Layers):
    """LoRA (Hu et al. 2021, arXiv:2106.09685) and what is made of it by a switch."""

    type: Literal["lora"]
    r: Positive = Field(16, description="rank")
    rslora: bool = Field(False, description="multiply by alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)")
    dora: bool = Field(False, description="train magnitudes apart from directions (Liu et al. 2024, arXiv:2402.09353)")
    lora_plus: Annotated[float, Field(gt=0)] | None = Field(
        None, description="learning rate of B over that of A, often 16 (Hayou et al. 2024, arXiv:2402.12354)"
    )
    quantize: Literal["nf4"] | None = Field(
        None,
        description="nf4: hold the base in 4 bits, by bitsandbytes (QLoRA, arXiv:2305.14314)",
    )


class AdaLora(Layers):
    """AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): ranks move to the weights where they matter most."""

    type: Literal["adalora"]
    init_r: Positive = Field(12, description="rank of every weight in the beginning")
    target_r: Positive = Field(8, description="rank a weight has in the end, on average")
    tinit: Annotated[int, Field(ge=0)] | None = Field(
        None, description="steps before ranks are taken away; default: a tenth of the run"
    )
    tfinal: Annotated[int, Field(ge=0)] | None = Field(
        None, description="steps at the end in which ranks stay as they are; default: three tenths of the run"
    )
    delta_t: Positive | None = Field(
        None, description="steps between two allocations; default: a tenth of the steps between, at most 10"
    )
    beta1: Fraction = Field(0.85, description="smoothing of the sensitivity of each entry")
    beta2: Fraction = Field(0.85, description="smoothing of its uncertainty")
    orthogonal_weight: Annotated[float, Field(ge=0)] = Field(
        0.5, description="weight of the term that keeps the singular vectors orthogonal"
    )

    @model_validator(mode="after")
    def _has_ranks_to_give_up(self) -> AdaLora:
        if self.target_r >= self.init_r:
            raise ValueError(
                f"target_r {self.target_r} leaves AdaLoRA no rank of init_r {self.init_r} to take away; "
                f"give target_r 1 to {self.init_r - 1}, or a larger init_r"
                if self.init_r > 1
                else "init_r 1 leaves AdaLoRA no rank to take away; give a larger init_r"
            )
        return self


Adapter = Annotated[NoAdapter | Partial | Lora | AdaLora, Field(discriminator="type")]


class Train(Section):
    """How long, how fast, in which batches. Batches count rows."""

    steps: Positive | None = Field(None, description="optimizer steps; or give `epochs`")
    epochs: Annotated[float, Field(gt=0)] | None = Field(None, description="passes over the data; or give `steps`")
    lr: Annotated[float, Field(gt=0)] = Field(2e-4, description="peak learning rate")
    head_lr: Annotated[float, Field(gt=0)] | None = Field(
        None, description="peak learning rate of what the task puts on the model: its head, a CRF; default: `lr`"
    )
    global_batch: Annotated[int, Field(gt=0, le=1_000_000)] = Field(
        16, description="rows an optimizer step, over all ranks"
    )
    micro_batch: Positive = Field(4, description="rows one rank feeds the model at once")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="learning rate after warm-up")
    warmup: Annotated[int, Field(ge=0)] = Field(0, description="steps of linear warm-up")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW weight decay")
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = Field([0.9, 0.999], description="AdamW betas")
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="AdamW epsilon")
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0 switches clipping off")
    eval_every: Positive | None = Field(None, description="steps between evaluations; default: at the end only")
    best: Text | None = Field(None, description="score of the held-out data whose best checkpoint is kept and exported")
    patience: Positive | None = Field(
        None, description="evaluations in a row that `best` may fail to improve before the run ends"
    )
    seed: int = Field(0, description="seed of dropout")
    non_finite: Literal["stop", "skip", "rollback"] = Field(
        "stop",
        description="a step with a NaN or infinite loss or gradient: stop, pass the batch over, or go back first",
    )
    non_finite_budget: Positive = Field(3, description="how often a run may skip or roll back before it stops")

    @model_validator(mode="after")
    def _length_and_batches_fit(self) -> Train:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of `steps` and `epochs`")
        if self.patience is not None and (self.best is None or self.eval_every is None):
            raise ValueError("patience needs `best`, the score to look at, and `eval_every`")
        if self.global_batch % self.micro_batch:
            near = max(self.micro_batch, round(self.global_batch / self.micro_batch) * self.micro_batch)
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}; "
                f"nearest that fits: global_batch {near}"
            )
        if self.steps is not None and self.warmup >= self.steps:
            raise ValueError(
                f"warmup {self.warmup} leaves no step of {self.steps} for the schedule; "
                f"give warmup 0 to {self.steps - 1}, or more steps"
            )
        return self


class AdamW(Section):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101). Its settings are keys of `train`."""

    type: Literal["adamw"] = "adamw"


class Engine(Section):
    """What DeepSpeed does with it. May change between two attempts of one run, all but `dtype`."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="0 replicates; 1 shards optimizer state, 2 gradients, 3 weights"
    )
    dtype: Literal["bf16", "fp32"] = Field("bf16", description="of weights and activations; masters are fp32")
    offload_optimizer: bool = Field(False, description="optimizer state in host memory (stages 1-3)")
    offload_params: bool = Field(False, description="weights in host memory (stage 3)")
    timeout: Positive = Field(1800, description="seconds a collective may take before the attempt is given up")

    @model_validator(mode="after")
    def _offload_fits_stage(self) -> Engine:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        if self.offload_params and self.zero_stage != 3:
            raise ValueError("offload_params needs zero_stage 3")
        return self


class Checkpoint(Section):
    every: Positive = Field(100, description="steps between checkpoints")
    keep: Positive = Field(2, description="newest checkpoints kept")


class Track(Section):
    wandb: Literal["off", "offline", "online"] = Field("off", description="metrics.jsonl is always written")
    project: str = Field("distft", description="W&B project")
    entity: str | None = Field(None, description="W&B team or user")
    tensorboard: bool = Field(
        False, description="also write TensorBoard event files, into tensorboard/ of the run folder"
    )
    others: list[Text] = Field(
        default_factory=list, description="trackers of other packages, by the names of their entry points"
    )
    samples: bool = Field(False, description="record in logs/ which samples each rank fed the model in each step")


class Recipe(Section):
    """One run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")] | None = Field(
        None, description="name of the run; default: the file's name; the run folder is runs/NAME"
    )
    task: Task = Field(default_factory=CausalLM)
    model: Model
    data: Data = Field(default_factory=Data)
    adapter: Adapter = Field(default_factory=NoAdapter)
    train: Train
    optimizer: AdamW = Field(default_factory=AdamW)
    engine: Engine = Field(default_factory=Engine)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    track: Track = Field(default_factory=Track)

    def parts(self) -> tuple[TaskPart, ...]:
        """The tasks of this run with their data, by name; a run of one task has one part, without a name."""
        data, task = self.data, self.task
        hub = (data.hub_config, data.train_split, data.eval_split)
        if not isinstance(task, MultiTask):
            own = (data.train, data.eval, data.fields, data.format, data.delimiter, data.columns)
            return (TaskPart(None, task, ("data",), *own, *hub),)
        return tuple(
            TaskPart(
                name,
                part.task,
                ("task", "tasks", name),
                part.train,
                part.eval,
                part.fields,
                part.format,
                part.delimiter,
                part.columns,
                *hub,
                part.weight,
                task.temperature,
            )
            for name, part in sorted(task.tasks.items())
        )
