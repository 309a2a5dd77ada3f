"""The CRF against the enumeration of all paths, and the rules of the tagging schemes against regular expressions."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import pytest
import torch

from distft.tasks.token_classification.crf import (
    CRF,
    FORBIDDEN,
    Allowed,
    Scores,
    allowed_transitions,
    constrained,
    decode,
    log_likelihood,
    log_partition,
    marginals,
)

BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
BIOES = ["O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "E-LOC"]
BILOU = ["O", "B-PER", "I-PER", "L-PER", "U-PER", "U-LOC"]
ENTITIES = {  # what a whole sequence is made of, each label in angle brackets
    "BIO": r"<O>|<B-PER>(<I-PER>)*|<B-LOC>(<I-LOC>)*",
    "BIOES": r"<O>|<B-PER>(<I-PER>)*<E-PER>|<S-PER>|<B-LOC><E-LOC>",
    "BILOU": r"<O>|<B-PER>(<I-PER>)*<L-PER>|<U-PER>|<U-LOC>",
}


def permitted(allowed: Allowed, path: list[int]) -> bool:
    steps = all(bool(allowed.transitions[a, b]) for a, b in itertools.pairwise(path))
    return bool(allowed.start[path[0]]) and steps and bool(allowed.end[path[-1]])


@dataclass
class Case:
    """A batch with its parameters, and by row all paths that are allowed, [P, length] (or [0] without a position)."""

    scores: Scores
    allowed: Allowed | None
    emissions: torch.Tensor
    mask: torch.Tensor
    paths: list[torch.Tensor]
    gold: list[int]
    tags: torch.Tensor

    def leaves(self) -> list[torch.Tensor]:
        return [*self.scores, self.emissions]


def draw(generator: torch.Generator, constrain: bool, rows: int = 4) -> Case:
    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def normal(*shape: int) -> torch.Tensor:
        return (2.0 * torch.randn(shape, generator=generator)).requires_grad_()

    tags, steps = integer(1, 4), integer(1, 5)
    lengths = [integer(0, steps) for _ in range(rows)]
    while True:
        shapes = ((tags,), (tags,), (tags, tags))
        allowed = Allowed(*(torch.rand(shape, generator=generator) < 0.75 for shape in shapes)) if constrain else None
        paths = []
        for length in lengths:
            every = itertools.product(range(tags), repeat=length)
            kept = [list(path) for path in every if not path or allowed is None or permitted(allowed, list(path))]
            paths.append(torch.tensor(kept, dtype=torch.int64))
        if all(len(kept) for kept in paths):
            break
    gold = [integer(0, len(kept) - 1) for kept in paths]
    filled = torch.full((rows, steps), -100)
    for row, length in enumerate(lengths):
        filled[row, :length] = paths[row][gold[row]]
    mask = torch.arange(steps) < torch.tensor(lengths)[:, None]
    scores = Scores(normal(tags), normal(tags), normal(tags, tags))
    return Case(scores, allowed, normal(rows, steps, tags), mask, paths, gold, filled)


def enumerated(case: Case, row: int) -> torch.Tensor:
    """fp64 scores of all allowed paths of a row, one by one: [P]."""
    start, end, transitions, emissions = (leaf.double() for leaf in case.leaves())
    paths = case.paths[row]
    total = start[paths[:, 0]] + end[paths[:, -1]]
    for step in range(paths.shape[1]):
        total = total + emissions[row, step, paths[:, step]]
        if step:
            total = total + transitions[paths[:, step - 1], paths[:, step]]
    return total


@pytest.mark.parametrize("constrain", [False, True])
def test_as_the_enumeration_of_all_paths(constrain: bool) -> None:
    """1,000 rows in all."""
    generator = torch.Generator().manual_seed(int(constrain))
    for _ in range(125):
        case = draw(generator, constrain)
        scores = constrained(case.scores, case.allowed)
        likelihood = log_likelihood(scores, case.emissions, case.tags, case.mask)
        partition = log_partition(scores, case.emissions, case.mask)
        confidence = marginals(scores, case.emissions, case.mask)
        decoded = decode(scores, case.emissions, case.mask)
        assert likelihood.dtype == partition.dtype == confidence.dtype == torch.float32

        weights = torch.randn(len(case.paths), generator=generator)
        expected_loss = torch.zeros((), dtype=torch.float64)
        for row, paths in enumerate(case.paths):
            posterior = torch.zeros(case.emissions.shape[1:], dtype=torch.float64)
            expected = expected_partition = torch.zeros((), dtype=torch.float64)
            if paths.numel():
                totals = enumerated(case, row)
                expected_partition = totals.logsumexp(0)
                expected = totals[case.gold[row]] - expected_partition
                for path, weight in zip(paths, totals.softmax(0), strict=True):
                    posterior[torch.arange(len(path)), path] += weight.detach()
                assert decoded[row] == paths[totals.argmax()].tolist()
            else:
                assert decoded[row] == []
            torch.testing.assert_close(partition[row].double(), expected_partition, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(likelihood[row].double(), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(confidence[row].double(), posterior, rtol=0, atol=1e-5)
            expected_loss = expected_loss + weights[row].double() * expected
        if not case.mask.any():
            continue
        loss = (weights * likelihood).sum()
        found = torch.autograd.grad(loss, case.leaves(), retain_graph=True)
        wanted = torch.autograd.grad(expected_loss, case.leaves(), materialize_grads=True)
        for gradient, reference in zip(found, wanted, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)
        [slope] = torch.autograd.grad(partition.sum(), case.emissions)
        torch.testing.assert_close(slope, confidence, rtol=0, atol=1e-5)


def test_a_row_does_not_depend_on_the_others_nor_on_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        case = draw(generator, constrain=True, rows=5)
        scores = constrained(case.scores, case.allowed)
        together = [f(scores, case.emissions, case.mask) for f in (log_partition, marginals)]
        likelihood = log_likelihood(scores, case.emissions, case.tags, case.mask)
        decoded = decode(scores, case.emissions, case.mask)
        for row, length in enumerate(case.mask.sum(1).tolist()):
            part = slice(0, max(length, 1))
            emissions, mask, tags = (t[row : row + 1, part] for t in (case.emissions, case.mask, case.tags))
            torch.testing.assert_close(log_partition(scores, emissions, mask)[0], together[0][row])
            torch.testing.assert_close(marginals(scores, emissions, mask)[0], together[1][row, part])
            torch.testing.assert_close(log_likelihood(scores, emissions, tags, mask)[0], likelihood[row])
            assert decode(scores, emissions, mask)[0] == decoded[row]


def test_padding_counts_for_nothing_even_nan() -> None:
    crf = CRF(3)
    torch.manual_seed(0)
    emissions = torch.randn(3, 4, 3)
    mask = torch.tensor([[True] * 4, [True, False, False, False], [False] * 4])
    emissions[~mask] = float("nan")
    emissions.requires_grad_()
    tags = torch.randint(3, (3, 4)).masked_fill(~mask, -100)
    likelihood = log_likelihood(crf(), emissions, tags, mask)
    likelihood.sum().backward()
    assert likelihood[2] == 0.0
    assert log_partition(crf(), emissions, mask)[2] == 0.0
    assert emissions.grad is not None
    assert not emissions.grad[~mask].any()
    assert emissions.grad[mask].any(1).all()
    assert not marginals(crf(), emissions, mask)[~mask].any()
    assert [len(path) for path in decode(crf(), emissions, mask)] == [4, 1, 0]

    crf.zero_grad()
    log_likelihood(crf(), emissions[2:], tags[2:], mask[2:]).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in crf.parameters())


@pytest.mark.parametrize(("labels", "scheme"), [(BIO, "BIO"), (BIOES, "BIOES"), (BILOU, "BILOU")])
def test_no_emission_makes_a_forbidden_path(labels: list[str], scheme: str) -> None:
    generator = torch.Generator().manual_seed(0)
    size = len(labels)
    scores = Scores(*(50.0 * torch.randn(shape, generator=generator) for shape in [(size,), (size,), (size, size)]))
    emissions = 1e4 * torch.randn(100, 60, size, generator=generator)
    emissions[:50, :, labels.index("I-PER")] += 1e6
    mask = torch.arange(60) < torch.randint(1, 61, (100, 1), generator=generator)
    allowed = allowed_transitions(labels)
    sound = re.compile(f"({ENTITIES[scheme]})+")
    paths = decode(constrained(scores, allowed), emissions, mask)
    assert all(sound.fullmatch("".join(f"<{labels[tag]}>" for tag in path)) for path in paths)
    assert not all(permitted(allowed, path) for path in decode(scores, emissions, mask))
    confidence = marginals(constrained(scores, allowed), emissions, mask)
    torch.testing.assert_close(confidence.sum(2), mask.float())
    assert not confidence[:, 0, ~allowed.start].any()


@pytest.mark.parametrize("steps", [1, 2, 300])
def test_forbidden_gold_is_finite(steps: int) -> None:
    """Every tag is a violation; the gradient is bounded as for any other tags."""
    torch.manual_seed(0)
    emissions = torch.randn(2, steps, len(BIO)).requires_grad_()
    crf = CRF(len(BIO))
    tags = torch.tensor([2, 4] * steps)[:steps].expand(2, steps)  # I-PER I-LOC I-PER ...
    scores = constrained(crf(), allowed_transitions(BIO))
    likelihood = log_likelihood(scores, emissions, tags, torch.ones(2, steps, dtype=torch.bool))
    likelihood.sum().backward()
    assert likelihood.tolist() == [steps * FORBIDDEN] * 2
    assert emissions.grad is not None
    assert (emissions.grad.gather(2, tags[..., None]) > 0.0).all()
    assert emissions.grad.abs().max() <= 1.0
    assert crf.transitions.grad is not None
    assert crf.transitions.grad.isfinite().all()
    assert not crf.transitions.grad[~allowed_transitions(BIO).transitions].any()


def test_where_no_path_is_allowed_all_stays_finite() -> None:
    """L to the power of T is beyond fp32: what a gradient would be if weights of equal paths did not sum to one."""
    torch.manual_seed(0)
    tags, steps = 9, 200
    crf = CRF(tags)
    nothing = Allowed(*(torch.zeros_like(p, dtype=torch.bool) for p in (crf.start, crf.end, crf.transitions)))
    emissions = torch.randn(1, steps, tags).requires_grad_()
    mask = torch.ones(1, steps, dtype=torch.bool)
    gold = torch.randint(tags, (1, steps))
    scores = constrained(crf(), nothing)
    likelihood = log_likelihood(scores, emissions, gold, mask)
    assert likelihood.tolist() == [0.0]  # it has as few violations as any
    likelihood.sum().backward()
    assert emissions.grad is not None
    assert emissions.grad.abs().max() <= 1.0
    torch.testing.assert_close(marginals(scores, emissions, mask), torch.full((1, steps, tags), 1 / tags))
    assert decode(scores, emissions, mask) == [[0] * steps]

    one_way = Allowed(nothing.start.clone(), ~nothing.end, ~nothing.transitions)
    one_way.transitions[:, 0] = False
    [path] = decode(constrained(crf(), one_way), emissions, mask)
    assert 0 not in path[1:]  # the one violation at the start cannot be avoided, others can


@pytest.mark.parametrize("labels", [["a", "b", "c", "d", "e"], BIO])
def test_large_bf16_emissions(labels: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = 200
    allowed = allowed_transitions(labels)
    emissions = (80.0 * (2 * torch.rand(8, steps, len(labels), generator=generator) - 1)).bfloat16()
    emissions[4:] = emissions[4:].sign() * 80.0
    mask = torch.arange(steps) < torch.tensor([200, 150, 1, 77, 200, 199, 3, 50])[:, None]
    tags = torch.zeros(8, steps, dtype=torch.int64)
    for row, path in enumerate(decode(constrained(CRF(len(labels))(), allowed), emissions.roll(1, 0), mask)):
        tags[row, : len(path)] = torch.tensor(path)

    transitions = torch.randn(len(labels), len(labels), generator=generator).bfloat16()
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        leaf = emissions.to(dtype, copy=True).requires_grad_()
        crf = CRF(len(labels)).to(dtype)
        with torch.no_grad():
            crf.transitions.copy_(transitions)
        scores = constrained(crf(), allowed)
        likelihood = log_likelihood(scores, leaf, tags, mask)
        likelihood.mean().backward()
        assert leaf.grad is not None
        assert crf.transitions.grad is not None
        assert leaf.grad.dtype == crf.transitions.grad.dtype == dtype
        confidence = marginals(scores, leaf, mask)
        results.append([likelihood, confidence, leaf.grad, crf.transitions.grad])
    assert all(tensor.isfinite().all() for found in results for tensor in found)
    for low, high in zip(*results, strict=True):
        torch.testing.assert_close(low.float(), high, rtol=2**-7, atol=1e-5)
    assert (results[1][0] <= 0.0).all()

    # fp64, row by row, with torch's own reductions
    start, end, follow = (score.detach().double() for score in scores)
    for row, length in enumerate(mask.sum(1).tolist()):
        sums, gold = start + emissions[row, 0].double(), tags[row].tolist()
        total = start[gold[0]] + emissions[row, 0, gold[0]].double() + end[gold[length - 1]]
        for step in range(1, length):
            sums = (sums[:, None] + follow).logsumexp(0) + emissions[row, step].double()
            total += follow[gold[step - 1], gold[step]] + emissions[row, step, gold[step]].double()
        torch.testing.assert_close(results[1][0][row].double(), total - (sums + end).logsumexp(0), rtol=1e-5, atol=1e-4)


def test_what_all_tags_of_a_position_share_changes_nothing() -> None:
    """Sums over 400 positions reach 400,000, where fp32 has steps of 1/32; the result is near zero and precise."""
    generator = torch.Generator().manual_seed(0)
    emissions = torch.randint(-8, 9, (2, 400, 5), generator=generator).float()  # exact with what is added, too
    mask = torch.ones(2, 400, dtype=torch.bool)
    scores = Scores(*(torch.randn(shape, generator=generator) for shape in [(5,), (5,), (5, 5)]))
    tags = torch.tensor(decode(scores, emissions, mask))
    plain, shared = emissions, emissions + torch.randint(900, 1100, (2, 400, 1), generator=generator)
    assert decode(scores, shared, mask) == tags.tolist()
    likelihoods = [log_likelihood(scores, given, tags, mask) for given in (plain, shared)]
    torch.testing.assert_close(*likelihoods, rtol=0, atol=1e-5)
    torch.testing.assert_close(marginals(scores, shared, mask), marginals(scores, plain, mask), rtol=0, atol=1e-5)
    added = (shared - plain)[..., 0].sum(1)
    torch.testing.assert_close(log_partition(scores, shared, mask), log_partition(scores, plain, mask) + added)


def test_of_equal_paths_the_lowest_tags() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert decode(CRF(3)(), torch.zeros(1, 4, 3), mask) == [[0, 0, 0, 0]]
    no_repeats = Allowed(torch.ones(3) > 0, torch.ones(3) > 0, ~torch.eye(3, dtype=torch.bool))
    assert decode(constrained(CRF(3)(), no_repeats), torch.zeros(1, 4, 3), mask) == [[1, 0, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_module_gives_copies_in_fp32(dtype: torch.dtype) -> None:
    crf = CRF(3).to(dtype)
    assert not any(parameter.any() for parameter in crf.parameters())
    scores = crf()
    assert isinstance(scores, tuple)  # ZeRO-3's hooks look into tuples, lists and dicts only
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.fill_(7.0)  # as a partition would take it away
    assert all(score.dtype == torch.float32 and not score.any() for score in scores)
    ones = torch.ones(1, 2, dtype=torch.bool)
    log_likelihood(scores, torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64), ones).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype and p.grad.any() for p in crf.parameters())
    with torch.no_grad():
        assert not any(score.requires_grad for score in crf())
    assert constrained(scores, None) is scores


@pytest.mark.parametrize(("labels", "scheme"), [(BIO, "BIO"), (BIOES, "BIOES"), (BILOU, "BILOU")])
def test_schemes(labels: list[str], scheme: str) -> None:
    """What is allowed is what a regular expression matches, for all sequences of up to four labels."""
    allowed = allowed_transitions(labels)
    sound = re.compile(f"({ENTITIES[scheme]})+")
    for length in range(1, 5):
        for path in itertools.product(range(len(labels)), repeat=length):
            text = "".join(f"<{labels[tag]}>" for tag in path)
            assert permitted(allowed, list(path)) == bool(sound.fullmatch(text)), text


@pytest.mark.parametrize("labels", [BIO, BIOES])
def test_the_order_of_labels_is_free(labels: list[str]) -> None:
    allowed = allowed_transitions(labels)
    for order in itertools.islice(itertools.permutations(range(len(labels))), 0, None, len(labels)):
        found, index = allowed_transitions([labels[tag] for tag in order]), torch.tensor(order)
        assert torch.equal(found.start, allowed.start[index])
        assert torch.equal(found.end, allowed.end[index])
        assert torch.equal(found.transitions, allowed.transitions[index][:, index])


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(["NOUN", "VERB", "O"], id="parts of speech"),
        pytest.param(["O"], id="nothing"),
        pytest.param(["O", "B-X", "I-X", "NOUN"], id="a label more"),
        pytest.param(["O", "O-X", "E-MAIL", "S-BAHN", "U-BAHN"], id="words with hyphens"),
        pytest.param(["O", "I-X", "I-Y"], id="IO"),
        pytest.param(["O", "I-X", "B-Y", "I-Y"], id="IOB1 without B-X"),
        pytest.param(["O", "B-X", "I-X", "E-X", "L-X"], id="both E and L"),
        pytest.param(["O", "B-X", "B-Y", "I-Y", "E-Y"], id="B-X that nothing ends"),
    ],
)
def test_labels_of_no_scheme(labels: list[str]) -> None:
    allowed = allowed_transitions(labels)
    assert allowed.start.shape == allowed.end.shape == (len(labels),)
    assert allowed.transitions.shape == (len(labels), len(labels))
    assert all(bool(tensor.all()) for tensor in (allowed.start, allowed.end, allowed.transitions))


def test_types_may_be_left_out_or_have_hyphens() -> None:
    bare = allowed_transitions(["B", "I", "O"])
    assert bare.start.tolist() == [True, False, True]
    assert bare.transitions.tolist() == [[True, True, True], [True, True, True], [True, False, True]]
    hyphens = allowed_transitions(["B-a-b", "I-a-b", "B-a", "I-a"])
    assert hyphens.transitions.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 1, 1], [1, 0, 1, 1]]
