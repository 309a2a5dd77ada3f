"""The recipe schema: every key with its type, default and description. Nothing else decides a run.

The sections are frozen; `distft.recipe.load` reads YAML into them and reports what does not fit.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distft.recipe.adapters import Adapter, NoAdapter
from distft.recipe.batch import AUTO, Checkpointing, RowsAtOnce
from distft.recipe.checkpoint import Checkpoint
from distft.recipe.section import Day, Encoding, Fraction, Place, Positive, Scalar, Section, Text
from distft.recipe.sources import DataSource, Format, Spec, completed
from distft.recipe.tasks import AnyTask, CausalLM, MultiTask, Overlong, SubTask, TaskPart


class ModelInit(Section):
    """A small random model of a real architecture, with a tokenizer trained on the data."""

    architecture: str = Field("llama", description="model type known to transformers: llama, qwen2, gpt2, ...")
    vocab_size: Annotated[int, Field(ge=260)] = Field(
        2048, description="vocabulary size of the byte-level BPE trained on the data"
    )
    config: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="sizes, named as in that architecture: hidden_size, num_hidden_layers, ...",
    )
    seed: int = Field(0, description="seed of the random weights")


class Model(Section):
    """The base model: `path` or `init`, not both."""

    path: Place | None = Field(None, description="local folder or hub id of a model")
    init: ModelInit | None = Field(None, description="make a small random model instead of loading one")
    revision: str | None = Field(None, description="hub revision of `path`, to be kept like data.revision")
    attention: Literal["auto", "varlen", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto",
        description="attention implementation; auto: the best that the model's class supports of flash attention (if "
        "installed, on a GPU, in bf16), varlen (document by document, without mask or padding; for causal-lm, dpo, "
        "seq2seq-lm and encoders), sdpa, and eager",
    )
    activation_checkpointing: Checkpointing = Field(
        "off",
        description="recompute layers in the backward pass to save memory; full (or true): each, selective: every "
        "second, off (or false): none, auto: settled before the first step with train.micro_batch",
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that ships with the model; only for models you trust"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.path is None) == (self.init is None):
            raise ValueError("give exactly one of `path` (a folder or hub id) and `init` (a small random model)")
        return self


class Data(Section):
    """What data to read, how to make rows of tokens of it, and in which order."""

    train: Spec | None = Field(
        None,
        description="training data: a file (.jsonl .json .csv .tsv .parquet .txt .conll, also with .gz or .zst), a "
        "folder of such files, a pattern (chats/*.jsonl), a folder written by `datasets`, a hub id, parallel files of "
        "lines ({source: a.en, target: a.de}), or a list of these or of sources with keys of their own",
    )
    eval: Spec | None = Field(None, description="held-out data, in the same forms")
    fields: dict[str, str] = Field(
        default_factory=dict, description="names of the columns: {name in distft: name of the column}"
    )
    format: Format = Field("auto", description="format of text files; auto: by the suffix")
    delimiter: Text | None = Field(None, description="separator between the columns of a text file")
    columns: list[Text] = Field(
        default_factory=list,
        description="names of the columns, if the file has no header; of CoNLL columns the first ones, _: unused",
    )
    encoding: Encoding | None = Field(
        None, description="encoding of text files (gb18030, latin-1, ...); default: by a byte-order mark, else UTF-8"
    )
    detect: bool = Field(
        True,
        description="look into text files for what other keys leave open: quotes around cells, semicolons in a .csv, "
        "comments and counted words in CoNLL columns",
    )
    bad_records: Literal["refuse", "skip"] = Field(
        "refuse",
        description="what to do with records that cannot be read or used; skip: leave them out, and list them in "
        "bad-records.jsonl of the run folder",
    )
    bad_budget: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="share of the records of a data set that may be left out as bad; more are refused"
    )
    hub_config: str | None = Field(None, description="name of a configuration of a data set on the hub")
    revision: Text | None = Field(
        None, description="hub revision of the data: a branch, tag or commit; the run keeps the commit it begins with"
    )
    train_split: str = Field("train", description="split to train on, if the source has several")
    eval_split: str = Field("validation", description="split to evaluate on, if the source has several")
    template: Text | None = Field(
        None, description="file with a chat template (Jinja) to use instead of the tokenizer's own"
    )
    today: Day | None = Field(
        None, description="the day that chat templates see as today (2026-01-31); default: the day the run begins"
    )
    row_tokens: Annotated[int, Field(ge=8)] = Field(1024, description="tokens of a row (speech: milliseconds)")
    packing: bool | None = Field(
        None,
        description="pack several documents into one row; default: on when the model keeps them apart, which is tried",
    )
    group_by_length: Literal["step"] | bool | None = Field(
        "step",
        description="where rows are not packed, which of them stand together by length: step: those of each step, "
        "among its micro-batches; true: rows of similar lengths share a step; false: none; null: as earlier versions",
    )
    balance: bool = Field(True, description="sort the packed rows of a step by cost, so that ranks take equally long")
    overlong: Overlong | None = Field(
        None, description="what to do with a record longer than a row; default: the first that the task supports"
    )
    duplicates: Literal["keep", "drop"] = Field("keep", description="equal training documents; drop: keep one of them")
    seed: int = Field(0, description="seed of the order of rows")
    streaming: bool = Field(False, description="begin to train at once, and encode records while training runs")
    cache: Text | None = Field(None, description="folder of the token cache; default: $XDG_CACHE_HOME/distft")


class Train(Section):
    """Length, learning rate and batches. Batches are counted in rows."""

    steps: Positive | None = Field(None, description="number of optimizer steps; or give `epochs`")
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="number of passes over the data; or give `steps`"
    )
    lr: Annotated[float, Field(gt=0)] = Field(2e-4, description="peak learning rate")
    head_lr: Annotated[float, Field(gt=0)] | None = Field(
        None, description="peak learning rate of the task's own layers (head, CRF); default: `lr`"
    )
    global_batch: Annotated[int, Field(gt=0, le=1_000_000)] = Field(
        16, description="rows per optimizer step, over all ranks"
    )
    micro_batch: RowsAtOnce = Field(
        4,
        description="rows per forward pass of one rank; auto: settled before the first step, as many as are fast by "
        "the plan and fit into the smallest device",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="shape of the learning rate after warm-up"
    )
    warmup: Annotated[int, Field(ge=0)] = Field(0, description="number of steps of linear warm-up")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="weight decay of AdamW")
    decay: Literal["matrices", "all"] = Field(
        "matrices", description="what weight decay acts on; matrices: not on biases and norms"
    )
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.999], description="betas of AdamW"
    )
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="epsilon of AdamW")
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="maximum gradient norm; 0: no clipping")
    router_loss: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="causal-lm: weight of the load-balancing loss of a mixture of experts; default: the model's own "
        "`router_aux_loss_coef` where routers are trained, else 0",
    )
    eval_every: Positive | None = Field(None, description="steps between evaluations; default: only at the end")
    best: Text | None = Field(
        None, description="score on held-out data; the checkpoint that is best by it is kept and exported"
    )
    patience: Positive | None = Field(
        None, description="end the run after this many evaluations in a row without a better `best`"
    )
    seed: int = Field(0, description="seed of dropout")
    non_finite: Literal["stop", "skip", "rollback"] = Field(
        "stop",
        description="on a NaN or infinite loss or gradient: stop, skip the batch, or first go back to a checkpoint",
    )
    non_finite_budget: Positive = Field(3, description="how many times a run may skip or roll back before it stops")

    @model_validator(mode="after")
    def _length_and_batches_fit(self) -> Train:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of `steps` and `epochs`")
        if self.patience is not None and (self.best is None or self.eval_every is None):
            raise ValueError("patience needs `best` (the score to watch) and `eval_every`")
        if self.micro_batch != AUTO and self.global_batch % self.micro_batch:
            near = max(self.micro_batch, round(self.global_batch / self.micro_batch) * self.micro_batch)
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}; "
                f"nearest that fits: global_batch {near}"
            )
        if self.steps is not None and self.warmup >= self.steps:
            raise ValueError(
                f"warmup {self.warmup} leaves none of the {self.steps} steps for the schedule; "
                f"give warmup 0 to {self.steps - 1}, or more steps"
            )
        return self

    @property
    def micro_rows(self) -> int:
        """`micro_batch`, once it is settled."""
        assert self.micro_batch != AUTO, "train.micro_batch is not settled yet"
        return self.micro_batch


class AdamW(Section):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101). Its settings are keys of `train`."""

    type: Literal["adamw"] = "adamw"


class Engine(Section):
    """How a step is computed. Two attempts of a run may differ in all but `dtype`, `grad_dtype` and `loss_chunk`."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        2,
        description="0: everything replicated; 1: optimizer state sharded; 2: gradients too; 3: weights too; one rank "
        "in fp32 runs 1 and 2 as 0",
    )
    dtype: Literal["bf16", "fp32"] = Field(
        "bf16", description="dtype of weights and activations; master weights are fp32"
    )
    grad_dtype: Literal["bf16", "fp32"] = Field(
        "fp32", description="dtype in which gradients are added up over micro-batches and ranks, if dtype is bf16"
    )
    reduce: Literal["auto", "step", "micro_batch"] = Field(
        "auto",
        description="stages 2 and 3: whether ranks add up gradients once per step, with whole gradients on each rank "
        "until then, or after each micro-batch; auto: once per step with an adapter",
    )
    loss_chunk: Annotated[int, Field(ge=0)] = Field(
        1024,
        description="language models: most targets whose logits are in memory at once, where the model's head allows "
        "it, which is tried; 0: those of all targets",
    )
    deterministic: bool = Field(
        False, description="use only kernels that give the same bits each time; slower, and not every model has them"
    )
    offload_optimizer: bool = Field(False, description="keep the optimizer state in host memory (stages 1-3)")
    offload_params: bool = Field(False, description="keep the weights in host memory (stage 3)")
    timeout: Positive = Field(1800, description="seconds a collective may take before the attempt is ended")

    @model_validator(mode="after")
    def _offload_fits_stage(self) -> Engine:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        if self.offload_params and self.zero_stage != 3:
            raise ValueError("offload_params needs zero_stage 3")
        if self.reduce == "step" and self.offload_optimizer:
            raise ValueError("reduce: step keeps whole gradients on the device; it does not go with offload_optimizer")
        return self


class Track(Section):
    wandb: Literal["off", "offline", "online"] = Field(
        "off", description="send metrics to W&B; metrics.jsonl is always written"
    )
    project: str = Field("distft", description="W&B project")
    entity: str | None = Field(None, description="W&B team or user")
    tensorboard: bool = Field(
        False, description="also write TensorBoard event files, into tensorboard/ of the run folder"
    )
    others: list[Text] = Field(
        default_factory=list, description="trackers of other packages, by the names of their entry points"
    )
    samples: bool = Field(False, description="record in logs/ which samples each rank used in each step")


class Recipe(Section):
    """One run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")] | None = Field(
        None, description="name of the run; default: the name of the recipe file; the run folder is runs/NAME"
    )
    task: AnyTask = Field(default_factory=CausalLM)
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
        bad_budget = data.bad_budget if data.bad_records == "skip" else None
        if not isinstance(task, MultiTask):
            return (TaskPart(None, task, ("data",), *_read_by(data, data), data.fields, data.detect, bad_budget),)
        return tuple(
            TaskPart(
                name,
                part.task,
                ("task", "tasks", name),
                *_read_by(part, data),
                part.fields,
                data.detect,
                bad_budget,
                part.weight,
                task.temperature,
            )
            for name, part in sorted(task.tasks.items())
        )


def _read_by(own: Data | SubTask, data: Data) -> tuple[tuple[DataSource, ...], tuple[DataSource, ...]]:
    """The sources to train and to evaluate on, with what they leave to the sections around them."""
    same = ("fields", "format", "delimiter", "columns", "encoding")
    around: dict[str, Any] = {key: getattr(own, key) for key in same}
    around |= {"hub_config": data.hub_config, "revision": data.revision, "template": data.template}
    return (
        tuple(completed(own.train, {**around, "split": data.train_split})),
        tuple(completed(own.eval, {**around, "split": data.eval_split})),
    )
