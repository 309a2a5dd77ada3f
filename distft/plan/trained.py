"""What a recipe trains: weights of the model itself, and those that an adapter adds, named as PEFT does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from distft.plan.architecture import Architecture, Weight
from distft.plan.operations import Update
from distft.plan.weights import Weights
from distft.recipe.adapters import AdaLora, Adapter, Layers, Lora, NoAdapter, Partial
from distft.recipe.schema import Recipe
from distft.recipe.tasks import MultiTask, TaskSection

PREFIX = "base_model.model."  # what PEFT puts before a parameter's name
NAME = "default"  # of the one adapter
CONVERTED = frozenset({"mixtral", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"})
EXPERTS = {"gate": "gate.weight", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}


@dataclass(frozen=True)
class Trained:
    """Attributes:
    own: weights of the model that are trained where they are.
    added: new ones, all of them trained: of an adapter, and copies of modules that are trained whole, whose originals
        stay in the model.
    """

    own: Weights
    added: Weights

    @property
    def parameters(self) -> int:
        return sum(weight.size for weight in (*self.own, *self.added))


def trained(architecture: Architecture, recipe: Recipe) -> Trained:
    """What the recipe trains and adds. What the model has no module for is left out: `attach` refuses it."""
    weights, adapter = tuple(architecture.named()), recipe.adapter
    if isinstance(adapter, NoAdapter):
        return Trained(tuple(weight for weight in weights if not weight.frozen), ())
    if isinstance(adapter, Partial):
        return Trained(tuple(named_by(architecture, weights, adapter.train)), ())
    heads = head_modules(architecture, weights, recipe.task) if recipe.task.HAS_HEAD else set()
    saved, others = whole((*weights, *tied_outputs(architecture)), [*adapter.modules_to_save, *heads])
    return Trained((), (*saved, *added(architecture, others, adapter, heads)))


def updates(found: Trained, adapter: Adapter) -> Callable[[str, Weight], Update]:
    """How a weight of the model learns, by its full name and itself."""
    own, ranks = {weight.name for weight in found.own}, {}
    for weight in found.added:
        module, low, _ = weight.name.removeprefix(PREFIX).partition(".lora_A")
        if low:
            ranks[module] = min(weight.shape)
    dropout = adapter.dropout if isinstance(adapter, Layers) else 0.0
    magnitude, singular = isinstance(adapter, Lora) and adapter.dora, isinstance(adapter, AdaLora)

    def update(name: str, weight: Weight) -> Update:
        rank = ranks.get(name.rpartition(".")[0], 0)
        if name in own:
            return Update(whole=True)
        return Update(False, rank, dropout, magnitude, singular) if rank else Update()

    return update


def named_by(architecture: Architecture, weights: Weights, patterns: Sequence[str]) -> Iterator[Weight]:
    """The weights that a pattern names; of a tied one either name will do."""
    tied = embedding_of(architecture) if architecture.tied else None
    for weight in weights:
        outputs = [f"{name}.weight" for name in architecture.outputs] if weight == tied else []
        if any(fnmatchcase(name, pattern) for name in (weight.name, *outputs) for pattern in patterns):
            yield weight


def tied_outputs(architecture: Architecture) -> Weights:
    """The matrices that make logits, by their own names, if they are the embedding: PEFT makes copies of them, or puts
    layers beside them, as if they were not."""
    if not architecture.tied:
        return ()
    shape = embedding_of(architecture).shape
    return tuple(Weight(f"{name}.weight", shape) for name in architecture.outputs)


def embedding_of(architecture: Architecture) -> Weight:
    """The table of tokens whose rows are the columns of the logits."""
    tables = [one for stack in architecture.stacks for one in stack.other if one.kind == "embedding"]
    return max(tables, key=lambda one: (one.shape[0] == architecture.vocabulary, one.shape[0]))


def head_modules(architecture: Architecture, weights: Weights, task: TaskSection) -> set[str]:
    """What a task has put on the transformer proper, and poolers: with an adapter these modules are trained whole."""
    several = isinstance(task, MultiTask)
    found = {module for weight in weights if (module := pooler(weight.name))}
    for weight in architecture.head:
        if pooler(weight.name) is None:
            parts = weight.name.split(".")
            found.add(".".join(parts[: 3 if several else 1]))
    return found


def pooler(name: str) -> str | None:
    """The pooler that a weight belongs to."""
    before, found, _ = name.partition(".pooler.")
    return f"{before}.pooler" if found else None


def whole(weights: Weights, modules: Sequence[str]) -> tuple[Weights, Weights]:
    """Copies of modules that are trained whole, and all weights that belong to none of them. PEFT asks whether a name
    ends with what the recipe says: "norm" are all layer norms."""
    saved, others = [], []
    for weight in weights:
        module = next((one for one in above(weight.name) if one.endswith(tuple(modules))), None)
        if module is None:
            others.append(weight)
        else:
            rest = weight.name.removeprefix(f"{module}.")
            saved.append(replace(weight, name=f"{PREFIX}{module}.modules_to_save.{NAME}.{rest}"))
    return tuple(saved), tuple(others)


def above(name: str) -> Iterator[str]:
    """The modules that a weight is in, the largest first."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def matches(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def added(architecture: Architecture, weights: Weights, adapter: Layers, heads: set[str]) -> Iterator[Weight]:
    """The weights of an adapter on all layers that it is for."""
    routers, everything = routers_of(architecture), adapter.targets == "all-linear"
    listed = [adapter.targets] if isinstance(adapter.targets, str) else adapter.targets
    converted = architecture.model_type in CONVERTED and isinstance(adapter, Lora)
    into_experts = converted and (everything or bool({name.rsplit(".", 1)[-1] for name in listed} & EXPERTS.keys()))
    for weight in weights:
        module, _, last = weight.name.rpartition(".")
        if everything:
            wanted = is_layer(weight) and not is_output(architecture, weight, heads)
            wanted = wanted and (adapter.routers or weight.name not in routers)
        else:
            fits = last == "weight" and weight.kind != "vector" and weight.layout != "bare"
            wanted = fits and matches(module, listed)
        if into_experts:
            yield from converted_weights(weight, adapter, listed, everything, weight.name in routers, wanted)
        elif wanted:
            yield from low_rank(weight, module, adapter)


def converted_weights(
    weight: Weight, adapter: Layers, listed: Sequence[str], everything: bool, routes: bool, wanted: bool
) -> Iterator[Weight]:
    """Some mixtures had a module for each expert. PEFT takes the names of those for the experts' tensors, which get a
    rank for each expert (two where gate and up are in one), and for nothing else that has such a name."""
    assert isinstance(adapter, Lora)
    module, _, last = weight.name.rpartition(".")
    leaf = module.rsplit(".", 1)[-1]
    names = {name.rsplit(".", 1)[-1] for name in listed}
    chosen = set(EXPERTS.values()) if everything else {EXPERTS[name] for name in names & EXPERTS.keys()}
    if weight.experts:
        if last in chosen:
            count, outputs, inputs = weight.shape
            rank = adapter.r * count * (2 if last == "gate_up_proj" else 1)
            inner = f"{module}.base_layer" if last == "gate_up_proj" and "down_proj" in chosen else module
            yield from pair(inner, rank, outputs, inputs)
    elif routes:
        if "gate.weight" in chosen and (adapter.routers or not everything):
            yield from pair(module, adapter.r, *weight.shape)
    elif wanted and leaf not in EXPERTS:
        yield from low_rank(weight, module, adapter)


def is_layer(weight: Weight) -> bool:
    """Whether it is the matrix of a linear layer."""
    return weight.kind == "matrix" and weight.layout != "bare"


def is_output(architecture: Architecture, weight: Weight, heads: set[str]) -> bool:
    """Whether a matrix makes the logits over tokens, which `all-linear` leaves out."""
    return not heads and weight.name.rpartition(".")[0] in architecture.outputs


def routers_of(architecture: Architecture) -> set[str]:
    """Matrices that choose experts: they stand beside these, and have a row for each."""
    found: set[str] = set()
    for stack in architecture.stacks:
        for layers in stack.layers:
            if count := layers.feed_forward.experts:
                homes = {one.name.rsplit(".", 2)[0] for one in layers.weights if one.experts}
                found |= {
                    one.name
                    for one in layers.named()
                    if not one.experts and one.kind == "matrix" and one.shape[0] == count
                    if any(one.name.rsplit(".", 2)[0].endswith(f".{home}") for home in homes)
                }
    return found


def low_rank(weight: Weight, module: str, adapter: Layers) -> Iterator[Weight]:
    """The weights that PEFT puts beside one: its update is B times A."""
    if weight.kind == "embedding":
        rank, (rows, width) = rank_of(adapter), weight.shape
        yield Weight(f"{PREFIX}{module}.lora_embedding_A.{NAME}", (rank, rows), "embedding")
        yield Weight(f"{PREFIX}{module}.lora_embedding_B.{NAME}", (width, rank))
        magnitude: tuple[int, ...] = (width,)
    elif weight.kind == "convolution":
        rank, (outputs, inputs, *kernel) = rank_of(adapter), weight.shape
        ones = (1,) * len(kernel)
        yield Weight(f"{PREFIX}{module}.lora_A.{NAME}.weight", (rank, inputs, *kernel), "convolution")
        yield Weight(f"{PREFIX}{module}.lora_B.{NAME}.weight", (outputs, rank, *ones), "convolution")
        magnitude = (1, outputs, *ones)
    else:
        outputs, inputs = reversed(weight.shape) if weight.layout == "transposed" else weight.shape
        if isinstance(adapter, AdaLora):
            yield from singular(module, adapter.init_r, outputs, inputs)
            return
        yield from pair(module, rank_of(adapter), outputs, inputs)
        magnitude = (outputs,)
    if isinstance(adapter, Lora) and adapter.dora:
        yield Weight(f"{PREFIX}{module}.lora_magnitude_vector.{NAME}.weight", magnitude, "vector")


def pair(module: str, rank: int, outputs: int, inputs: int) -> Weights:
    return (
        Weight(f"{PREFIX}{module}.lora_A.{NAME}.weight", (rank, inputs)),
        Weight(f"{PREFIX}{module}.lora_B.{NAME}.weight", (outputs, rank)),
    )


def singular(module: str, rank: int, outputs: int, inputs: int) -> Weights:
    """AdaLoRA: a matrix on each side of a diagonal."""
    return (
        Weight(f"{PREFIX}{module}.lora_A.{NAME}", (rank, inputs)),
        Weight(f"{PREFIX}{module}.lora_B.{NAME}", (outputs, rank)),
        Weight(f"{PREFIX}{module}.lora_E.{NAME}", (rank, 1), "vector"),
    )


def rank_of(adapter: Layers) -> int:
    assert isinstance(adapter, Lora | AdaLora)
    return adapter.r if isinstance(adapter, Lora) else adapter.init_r
