"""What single operations of transformers' models keep for the backward pass, as bytes on a tape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from distft.plan.tape import Tape, Value

Implementation = Literal["eager", "sdpa", "varlen", "flash_attention_2"]
RmsNorm = Literal["narrow", "wide", "mixed"]
Device = Literal["cpu", "cuda"]
FP32 = 4  # bytes
SHORT = 128  # tokens of a document whose scores are all held


@dataclass(frozen=True)
class Numbers:
    """width: bytes of the numbers that the model computes with; device: whose kernels are run."""

    width: int
    device: Device


@dataclass(frozen=True)
class Update:
    """How a matrix learns: `whole`, by a low-rank adapter of this `rank` with `dropout` on its input, or not at all.

    Attributes:
        magnitude: of an adapter that trains the length of each row of the matrix too (DoRA).
        singular: of AdaLoRA.
        exact: of one that computes in fp32. distft has adapters in the model's numbers; PEFT alone makes them fp32.
    """

    whole: bool = False
    rank: int = 0
    dropout: float = 0.0
    magnitude: bool = False
    singular: bool = False
    exact: bool = False


@dataclass(frozen=True)
class Scores:
    """Attention of `heads` heads over `rows` rows: `queries` tokens see `keys` tokens.

    Attributes:
        groups: heads of queries that share keys and values.
        mask: a mask of [rows, 1, queries, keys] is given.
        dropout: of probabilities.
        bias, bias_learns: a bias [1, heads, queries, keys] is added to scores, and trained.
        soft_cap: scores are capped.
        exact: eager attention takes its softmax in fp32.
        copied: what a fused kernel returns is copied into the order of tokens.
        uneven: a head's values have another size than its keys.
        both_ways: a token sees what comes after it too.
    """

    rows: int
    heads: int
    groups: int
    queries: int
    keys: int
    mask: bool
    dropout: float = 0.0
    bias: bool = False
    bias_learns: bool = False
    soft_cap: bool = False
    exact: bool = True
    copied: bool = False
    uneven: bool = False
    both_ways: bool = False

    @property
    def pairs(self) -> int:
        return self.rows * self.heads * self.queries * self.keys


def dropout(tape: Tape, numbers: Numbers, x: Value, share: float) -> Value:
    """CUDA keeps a byte for each number, the CPU what it has multiplied with."""
    if not share:
        return x
    mask = Value(x.size if numbers.device == "cpu" else x.size // numbers.width)
    return tape.run([x], x.size, [mask])


def linear(tape: Tape, numbers: Numbers, x: Value, columns: tuple[int, int], update: Update) -> Value:
    """A product with a matrix; its input is kept if the matrix learns.

    Args:
        columns: numbers that a token has before and after.
    """
    before, after = columns
    result = tape.run([x], x.size // before * after, [x] if update.whole else [], trains=update.whole)
    return _adapted(tape, numbers, x, result, columns, update) if update.rank else result


def _adapted(tape: Tape, numbers: Numbers, x: Value, result: Value, columns: tuple[int, int], update: Update) -> Value:
    """x W + s (drop(x) A) B: kept are drop(x) and drop(x) A (Hu et al. 2021, arXiv:2106.09685). One in fp32 has its own
    copy of x.

    AdaLoRA (Zhang et al. 2023, arXiv:2303.10512) has A E for A, made anew each time and kept.
    """
    times = FP32 // numbers.width if update.exact else 1
    own = Numbers(numbers.width * times, numbers.device)
    given = tape.run([x], x.size * times) if times > 1 else x
    dropped = dropout(tape, own, given, update.dropout)
    made = [tape.run([], columns[0] * update.rank * own.width, trains=True)] if update.singular else []
    low = tape.run([dropped, *made], dropped.size // columns[0] * update.rank, [dropped, *made], trains=True)
    high = tape.run([low], result.size * times, [low], trains=True)
    if update.magnitude:
        base = tape.run([dropped], high.size) if update.dropout else result
        more = _directed(tape, base, high, Value(columns[1] * own.width))
        tape.lend(_lent(columns, update.rank, own.width, high, copied=times > 1))
    else:
        more = tape.run([high], high.size)
    if update.singular:
        more = tape.run([more], more.size)
    if times == 1:
        return tape.run([result, more], result.size, passes=True)
    whole = tape.run([tape.run([result], more.size), more], more.size, passes=True)
    return tape.run([whole], result.size)


def _directed(tape: Tape, base: Value, high: Value, lengths: Value) -> Value:
    """(m - 1) x W + m s (x A) B, where m is a learned length over that of each row of W + s A B, whose derivative is
    left out: both products are kept, and those lengths, m and m - 1 (Liu et al. 2024, arXiv:2402.09353). With dropout
    x W is computed anew."""
    vectors = [lengths, Value(lengths.size), Value(lengths.size)]
    longer = tape.run([base], high.size, [base, *vectors[:2]], trains=True, work=high.size)
    turned = tape.run([high], high.size, [high, vectors[2]], trains=True, work=high.size)
    return tape.run([longer, tape.run([turned], high.size)], high.size, passes=True)


def _lent(columns: tuple[int, int], rank: int, width: int, high: Value, *, copied: bool) -> int:
    """What forward takes for lengths of rows: A B, by way of an identity matrix, and a copy of W if the adapter has
    other numbers. While these are there, first s A B and its sum with W are made, then both products and their sum."""
    before, after = columns
    held = width * before * (before + rank + after) + (FP32 * before * after if copied else 0)
    return held + max(2 * width * before * after, 3 * high.size)


def layer_norm(tape: Tape, x: Value, tokens: int, learns: bool) -> Value:
    """Its input, and mean and deviation of each token in fp32."""
    return tape.run([x], x.size, [x, Value(2 * FP32 * tokens)], trains=learns)


def rms_norm(tape: Tape, numbers: Numbers, x: Value, tokens: int, learns: bool, kind: RmsNorm) -> Value:
    """Computed in fp32: its input as fp32, and what the weight is multiplied with if it learns.

    Args:
        kind: the weight is multiplied in the model's numbers, or in fp32 ("wide", Gemma); "mixed": the input is
            multiplied as it is, and kept in both widths (T5).
    """
    full = x.size // numbers.width * FP32
    exact = x if numbers.width == FP32 else tape.run([x], full)
    squares = tape.run([exact], full, [exact], work=2 * full)
    root = tape.run([tape.run([squares], FP32 * tokens)], FP32 * tokens, keeps_result=True)
    factor = x if kind == "mixed" else exact
    normed = tape.run([factor, root], full, [factor, root], work=full)
    if kind != "wide" and numbers.width != FP32:
        normed = tape.run([normed], x.size)
    scaled = tape.run([normed], normed.size, [normed] if learns else [], trains=learns)
    return scaled if scaled.size == x.size else tape.run([scaled], x.size)


def rotary(tape: Tape, x: Value) -> Value:
    """x cos + turned(x) sin; cosines and sines are shared by all layers (Su et al. 2021, arXiv:2104.09864)."""
    straight = tape.run([x], x.size)
    turned = tape.run([tape.run([x], x.size, work=2 * x.size)], x.size)
    return tape.run([straight, turned], x.size, passes=True)


def activation(tape: Tape, name: str, x: Value) -> Value:
    """Fused ones keep their input, ReLU its result; those that are written out keep more."""
    if name == "relu":
        return tape.run([x], x.size, keeps_result=True)
    if name in ("gelu_new", "gelu_fast"):  # x/2 (1 + tanh(c (x + 0.044715 x^3)))
        half = tape.run([x], x.size)
        cube = tape.run([x], x.size, [x], work=2 * x.size)
        bent = tape.run([tape.run([x, cube], x.size, passes=True)], x.size)
        bent = tape.run([bent], x.size, keeps_result=True)
        one = tape.run([bent], x.size, passes=True)
        return tape.run([half, one], x.size, [half, one])
    if name == "quick_gelu":  # x sigmoid(1.702 x)
        gate = tape.run([tape.run([x], x.size)], x.size, keeps_result=True)
        return tape.run([x, gate], x.size, [x, gate])
    return tape.run([x], x.size, [x])


def product(tape: Tape, a: Value, b: Value) -> Value:
    """Of two values, each of which gets a gradient from the other."""
    return tape.run([a, b], a.size, [a, b])


def attention(
    tape: Tape, numbers: Numbers, kind: Implementation, q: Value, k: Value, v: Value, result: int, scores: Scores
) -> Value:
    """Scores, softmax and values, by the kernel that torch takes.

    Args:
        result: bytes of the result, [rows, queries, heads, size of a value].
    """
    if kind == "varlen":
        return _by_document(tape, numbers, q, k, v, result, scores)
    fused = kind == "flash_attention_2" or (kind == "sdpa" and not _ruled_out(numbers, scores))
    repeats = kind == "eager" or (kind == "sdpa" and (scores.mask or not fused))
    if 1 < scores.groups < scores.heads and repeats:  # one head can be seen as many without a copy
        k, v = (tape.run([x], x.size * scores.groups) for x in (k, v))
    if fused:
        return _fused(tape, numbers, kind, q, k, v, result, scores)
    if kind == "sdpa":
        return _written_out(tape, numbers, q, k, v, result, scores)
    return _eager(tape, numbers, q, k, v, result, scores)


def _by_document(tape: Tape, numbers: Numbers, q: Value, k: Value, v: Value, result: int, scores: Scores) -> Value:
    """Attention by document of rows that each are one, which is the most that they can take. Where torch's kernel does
    not do it, sdpa or eager attention sees each document, and their results are put together."""
    if numbers.device == "cuda" and numbers.width != FP32 and not scores.soft_cap and not scores.dropout:
        return _fused(tape, numbers, "flash_attention_2", q, k, v, result, scores)
    if _is_dense(numbers, scores):
        return _dense(tape, numbers, q, k, v, result, scores)
    alone = replace(scores, rows=1, heads=scores.rows * scores.heads, copied=True)
    if scores.soft_cap:
        k, v = (tape.run([x], x.size * scores.groups) for x in (k, v))
        return _eager(tape, numbers, q, k, v, result, alone)
    if _ruled_out(numbers, scores):
        return tape.run([_written_out(tape, numbers, q, k, v, result, alone)], result)
    return _fused(tape, numbers, "sdpa", q, k, v, result, scores=replace(scores, copied=True))


def _is_dense(numbers: Numbers, scores: Scores) -> bool:
    """As `model.document_attention` has it."""
    told = scores.bias or scores.mask or scores.soft_cap or scores.uneven or scores.groups > 1
    short = scores.dropout > 0 or scores.queries <= SHORT
    return numbers.device == "cpu" and scores.both_ways and not told and short


def _dense(tape: Tape, numbers: Numbers, q: Value, k: Value, v: Value, result: int, scores: Scores) -> Value:
    """One operation that keeps probabilities and the mask of dropout. Backward has what is left of the probabilities,
    their gradients and those of scores; and copies, where documents of one size are computed at once."""
    weights = Value(numbers.width * scores.pairs)
    kept = [q, k, v, weights, *([Value(weights.size)] if scores.dropout else [])]
    copies = result + max(q.size, k.size) if scores.rows > 1 else 0
    return tape.run([q, k, v], result, kept, work=(3 if scores.dropout else 2) * weights.size + copies)


def _ruled_out(numbers: Numbers, scores: Scores) -> bool:
    """Whether sdpa has no fused kernel for it: the CPU's knows no dropout and no uneven heads, none learns a bias."""
    return scores.bias_learns or (numbers.device == "cpu" and (scores.dropout > 0 or scores.uneven))


def _fused(
    tape: Tape, numbers: Numbers, kind: Implementation, q: Value, k: Value, v: Value, result: int, scores: Scores
) -> Value:
    """Queries, keys, values, the result, and the logarithm of each softmax's sum (Dao 2023, arXiv:2307.08691). sdpa
    makes its own copy of a mask in every layer."""
    sums = Value(FP32 * scores.rows * scores.heads * scores.queries)
    kept = [q, k, v, sums]
    if kind == "sdpa" and (scores.mask or scores.bias):
        heads = scores.heads if scores.bias else 1
        kept.append(Value(numbers.width * scores.rows * heads * scores.queries * scores.keys))
    seen = tape.run([q, k, v], result, kept, keeps_result=True)
    return tape.run([seen], result) if scores.copied else seen


def _written_out(tape: Tape, numbers: Numbers, q: Value, k: Value, v: Value, result: int, scores: Scores) -> Value:
    """sdpa without a fused kernel: as eager, in fp32, with queries and keys scaled before their product."""
    times = FP32 // numbers.width
    wide = [tape.run([x], x.size * times) if times > 1 else x for x in (q, k, v)]
    if times == 1 and scores.rows > 1:
        wide[2] = tape.run([v], v.size)
    a, b = (tape.run([x], x.size) for x in wide[:2])
    chances = tape.run([a, b], FP32 * scores.pairs, [a, b])
    chances = tape.run([chances], chances.size, keeps_result=True)
    chances = dropout(tape, Numbers(FP32, numbers.device), chances, scores.dropout)
    seen = tape.run([chances, wide[2]], result * times, [chances, wide[2]])
    return tape.run([seen], result) if times > 1 else seen


def _eager(tape: Tape, numbers: Numbers, q: Value, k: Value, v: Value, result: int, scores: Scores) -> Value:
    """Scores are kept as probabilities, in fp32 and in the model's numbers (Korthikanti et al. 2022, arXiv:2205.05198,
    have 5 a s / h, with the latter and a mask of dropout). A product over several rows copies what it is given."""
    size, upcast = numbers.width * scores.pairs, scores.exact and numbers.width != FP32
    if scores.rows > 1:
        times = scores.groups if scores.groups == scores.heads else 1
        q, k, v = tape.run([q], q.size), tape.run([k], k.size * times), tape.run([v], v.size * times)
    found = tape.run([tape.run([q, k], size, [q, k])], size)
    if scores.soft_cap:
        found = tape.run([tape.run([tape.run([found], size)], size, keeps_result=True)], size)
    raw = found
    if upcast:
        found = tape.run([found], FP32 * scores.pairs)
    found = tape.run([found], found.size, keeps_result=True)
    if upcast:
        found = tape.run([found], size)
    tape.hold([raw])
    found = dropout(tape, numbers, found, scores.dropout)
    seen = tape.run([found, v], result, [found, v])
    return tape.run([seen], result)  # transposed and copied
