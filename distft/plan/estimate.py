"""From a recipe to its prediction: the model's shapes, what the engine holds, activations, and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

from distft.plan import duration
from distft.plan.activations import Activations, activations
from distft.plan.architecture import Architecture, Weight
from distft.plan.changes import lowest_stage
from distft.plan.devices import Device
from distft.plan.loss import Batch, Computing, head_weight
from distft.plan.operations import Numbers, Update
from distft.plan.prediction import Moment, Prediction
from distft.plan.shapes import architecture_of
from distft.plan.states import Sharding, States, reduction_bytes, state_bytes, update_bytes
from distft.plan.trained import PREFIX, Trained, trained
from distft.recipe.adapters import AdaLora, Layers, NoAdapter
from distft.recipe.schema import Recipe
from distft.recipe.tasks import CTC, DPO, CausalLM, MaskedLM, Seq2SeqLM, SpeechSeq2Seq

T = TypeVar("T")


class Once(Protocol):
    """Finds something for parts of a recipe, once."""

    def __call__(self, find: Callable[[], T], *of: object) -> T: ...


MIB = 1 << 20
PROCESS = 345 * MIB  # of a rank on a CPU: what imports take
LIBRARIES = 61 * MIB  # that training and saving touch first
CONTEXT = 700 * MIB  # of a GPU: CUDA's context with the kernels of torch, cuBLAS's work space
COLLECTIVES = 500 * MIB  # NCCL's buffers for the channels of one communicator
LOST = 0.03  # share of activations that the allocator cannot use, with growing segments
NF4 = 0.5 + 4 / 64 + 0.0005  # bytes per element: 4 bits, a scale in fp32 for 64 of them (arXiv:2305.14314 has them
# quantised again; distft leaves that off)
SOUND_PLACE = 20  # milliseconds of speech that become one place of wav2vec2's layers
WHISPER_PLACES = 1500


class Estimator:
    """Predicts recipes that differ in some keys; what they have in common is reckoned once."""

    def __init__(self, per_node: int, device: Device | None, memory: int | None = None) -> None:
        """`per_node`: ranks of a node; `memory`: bytes of host memory of a node, for ranks on a CPU, if known."""
        self._per_node, self._device, self._memory = per_node, device, memory
        self._known: dict[str, Any] = {}

    def predict(self, recipe: Recipe, nodes: int) -> Prediction:
        """Raises UserError if the model is not here, or nothing can be said of it."""
        return _Estimate(recipe, nodes * self._per_node, self._per_node, self._device, self.once).prediction(
            self._memory
        )

    def once(self, find: Callable[[], T], *of: object) -> T:
        """What `find` finds for these parts of a recipe."""
        key = repr((find.__qualname__, *of))
        if key not in self._known:
            self._known[key] = find()
        found: T = self._known[key]
        return found


@dataclass(frozen=True, eq=False)
class _Estimate:
    recipe: Recipe
    world: int
    per_node: int
    device: Device | None
    once: Once

    @cached_property
    def model(self) -> Architecture:
        of = self.recipe.model.model_copy(update={"activation_checkpointing": False})
        return self.once(lambda: architecture_of(self.recipe), "model", of, self.recipe.task)

    @cached_property
    def trained(self) -> Trained:
        return self.once(lambda: trained(self.model, self.recipe), "trained", self.recipe.adapter)

    @cached_property
    def sizes(self) -> tuple[list[int], list[int]]:
        """Elements of each trained, and of each frozen weight."""
        return self.once(self._sizes, self.recipe.adapter)

    def _sizes(self) -> tuple[list[int], list[int]]:
        learned = {id(weight) for weight in self.trained.own}
        names = {weight.name for weight in self.trained.own}
        frozen = [w.size for w in self.model.named() if id(w) not in learned and w.name not in names]
        return [weight.size for weight in (*self.trained.own, *self.trained.added)], frozen

    @cached_property
    def stage(self) -> int:
        return max(self.recipe.engine.zero_stage, lowest_stage(self.recipe))

    @cached_property
    def sharding(self) -> Sharding:
        engine, train = self.recipe.engine, self.recipe.train
        return Sharding(
            world=self.world,
            stage=self.stage,
            dtype=engine.dtype,
            grad_dtype=engine.grad_dtype if engine.dtype == "bf16" else "fp32",
            accumulates=train.global_batch > train.micro_batch * self.world,
            offload=engine.offload_optimizer,
            moments=4 if isinstance(self.recipe.adapter, AdaLora) else 2,
        )

    @cached_property
    def shape(self) -> duration.Shape:
        """Of one micro-batch, as full as it can be."""
        recipe = self.recipe
        rows, tokens = recipe.train.micro_batch, recipe.data.row_tokens
        if self.model.positions is not None:
            tokens = min(tokens, self.model.positions) if not isinstance(recipe.task, CTC | SpeechSeq2Seq) else tokens
        written = tokens if isinstance(recipe.task, Seq2SeqLM) else 0
        if isinstance(recipe.task, SpeechSeq2Seq):
            tokens, written = WHISPER_PLACES, self.model.positions or 448
        elif isinstance(recipe.task, CTC):
            tokens = max(1, tokens // SOUND_PLACE)
        elif isinstance(recipe.task, DPO):
            rows *= 2
        return duration.Shape(rows, tokens, written, rows * (written or tokens))

    @cached_property
    def activations(self) -> Activations:
        of = self.recipe.model, self.recipe.adapter, self.recipe.engine.dtype, self.recipe.data.packing, self.shape
        return self.once(self._activations, *of, self._chunk)

    @property
    def _chunk(self) -> int:
        """Most targets whose logits are made at once; 0: those of all, as with an adapter's copy of the head."""
        task, head = self.recipe.task, head_weight(self.model)
        if head is None or not isinstance(task, CausalLM | MaskedLM | DPO):
            return 0
        modules = tuple(f"{PREFIX}{one}." for one in (head.name.rpartition(".")[0], *self.model.outputs))
        adapted = any(one.name.startswith(modules) for one in self.trained.added)
        weighed = isinstance(task, DPO) and self.update(head.name, head).whole
        return 0 if adapted or weighed else self.recipe.engine.loss_chunk

    def _activations(self) -> Activations:
        shape, numbers = self.shape, Numbers(self.sharding.weight_bytes, "cpu" if self.device is None else "cuda")
        mask = isinstance(self.recipe.task, CausalLM) and self.recipe.data.packing is not False
        batch = Batch(shape.rows, shape.tokens, shape.written, shape.targets, shape.targets, mask)
        attention = "sdpa" if self.recipe.model.attention == "auto" else self.recipe.model.attention
        again = self.recipe.model.activation_checkpointing
        gathered = not isinstance(self.recipe.task, Seq2SeqLM)
        return activations(self.model, batch, Computing(numbers, attention, self.update, again, gathered, self._chunk))

    @cached_property
    def _ranks(self) -> dict[str, int]:
        """Rank of the adapter of each module that has one."""
        found = {}
        for weight in self.trained.added:
            module, low, _ = weight.name.removeprefix(PREFIX).partition(".lora_A")
            if low:
                found[module] = min(weight.shape)
        return found

    @cached_property
    def _own(self) -> frozenset[str]:
        return frozenset(weight.name for weight in self.trained.own)

    def update(self, name: str, weight: Weight) -> Update:
        if name in self._own:
            return Update(whole=True)
        dropout = self.recipe.adapter.dropout if isinstance(self.recipe.adapter, Layers) else 0.0
        return Update(rank=self._ranks.get(name.rpartition(".")[0], 0), dropout=dropout)

    # Moments of a run

    def states(self, at: str) -> States:
        learned, frozen = self.sizes
        return state_bytes(learned, frozen, self.sharding, "rest" if at == "rest" else "accumulating")

    def base(self) -> dict[str, int]:
        """What is there from the start to the end."""
        kept, terms = self.states("rest"), {}
        weights = kept.weights
        if getattr(self.recipe.adapter, "quantize", None) is not None:
            layers = (one for stack in self.model.stacks for many in stack.layers for one in many.named())
            whole = sum(weight.size for weight in layers if weight.kind == "matrix")
            weights -= int(whole * (self.sharding.weight_bytes - NF4))
        if self.device is not None:
            terms["CUDA"] = CONTEXT + (COLLECTIVES if self.world > 1 else 0)
        terms["weights"] = 0 if self.recipe.engine.offload_params else weights
        if not self.sharding.offload:
            terms |= {"fp32 masters": kept.masters, "moments": kept.moments}
        terms["gradients"] = kept.gradients
        terms["buckets"] = kept.buckets
        if self.recipe.engine.offload_params or self.stage == 3:
            terms["gathered weights"] = self.gathered()
        return {name: size for name, size in terms.items() if size}

    def gathered(self) -> int:
        """Whole weights of stage 3: those of the largest layer, those that are fetched before, and the largest one."""
        layers = [sum(one.size for one in many.weights) for stack in self.model.stacks for many in stack.layers]
        whole = self.model.parameters
        prefetched = min(50_000_000, whole // 100)
        largest = max((weight.size for weight in self.model.named()), default=0)
        return self.sharding.weight_bytes * (max([*layers, largest]) + prefetched)

    def start(self) -> dict[str, int]:
        """On a CPU, while the model is loaded: its file is mapped, in fp32 if distft made it, and what is copied out.

        Weights in bf16 stand beside the file, which trained ones in fp32 do from stage 1 on; under stage 3 shards.
        """
        learned, frozen = map(sum, self.sizes)
        copied = learned if self.sharding.stage in (1, 2) else 0
        if self.sharding.dtype == "bf16":
            copied = learned + frozen
        loaded = self.states("rest").weights if self.stage == 3 else self.sharding.weight_bytes * copied
        return {"process": PROCESS, "file of weights": 4 * (learned + frozen), "weights": loaded}

    def moments(self) -> Iterator[Moment]:
        base, learned = self.base(), self.sizes[0]
        yield Moment("start", base if self.device else self.start())
        if self.device is None:  # made at the first save, and kept for the next ones
            base |= {"process": PROCESS + LIBRARIES, "copies for checkpoints": self.copies}
        held = self.states("accumulating")
        accumulated = max(0, held.gradients - self.states("rest").gradients) if self.sharding.accumulates else 0
        reduced = reduction_bytes(learned, self.sharding)
        for moment in self.activations.moments:
            if moment.name == "optimizer":
                continue
            terms = {**base, "activations": moment.size}
            gradients = int(reduced * moment.backward) if moment.backward else accumulated
            yield Moment(moment.name, self._with(terms, "gradients", gradients))
        yield Moment("update", self._with(base, "gradients", update_bytes(learned, self.sharding)))
        yield Moment("evaluation", {**base, "activations": self.activations.terms["one layer"] + self.logits})

    @property
    def logits(self) -> int:
        return self.activations.terms["logits and loss"]

    def _with(self, terms: dict[str, int], name: str, more: int) -> dict[str, int]:
        terms = {**terms, name: terms.get(name, 0) + more}
        if self.device is not None:
            terms["lost by allocator"] = int(LOST * terms.get("activations", 0))
        return {name: size for name, size in terms.items() if size}

    @property
    def copies(self) -> int:
        """Masters and moments of one rank, as they are copied to be written."""
        return 4 * (1 + self.sharding.moments) * sum(self.sizes[0]) // self.world

    # The whole

    def prediction(self, memory: int | None) -> Prediction:
        learned = self.sizes[0]
        room = self.device.memory if self.device else memory // self.per_node if memory else None
        seconds = None
        if self.device is not None:
            again = self.recipe.model.activation_checkpointing
            adapters = {"added": sum(weight.size for weight in self.trained.added)}
            whole = isinstance(self.recipe.adapter, NoAdapter)
            work = duration.flops(self.model, adapters, whole, self.shape, again)
            seconds = duration.step_seconds(
                self.recipe, work, self.model.parameters, sum(learned), self.device, self.world, self.per_node
            )
        kept = self.states("rest")
        offloaded = kept.masters + kept.moments + kept.offload if self.sharding.offload else 0
        host = self.copies + offloaded + (kept.weights if self.recipe.engine.offload_params else 0)
        shape = self.shape
        return Prediction(
            world=self.world,
            per_node=self.per_node,
            device=self.device,
            moments=tuple(self.moments()),
            host=host,
            room=room,
            step_seconds=seconds,
            step_tokens=self.recipe.train.global_batch * (shape.tokens + shape.written),
            checkpoint=4 * (1 + self.sharding.moments) * sum(learned),
            doubts=tuple(self.doubts()),
        )

    def doubts(self) -> Iterator[str]:
        if not self.model.exact:
            yield f"the model type {self.model.model_type} is not known here: its layers were guessed from its weights"
        if self.device is None:
            yield "on a CPU, memory that the C library does not return comes on top: 5 % to 70 %"
        if len(self.recipe.parts()) > 1:
            yield "of several tasks, activations are those of the first"
