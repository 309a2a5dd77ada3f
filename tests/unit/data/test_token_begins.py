import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from distft.data.byte_level import Tiles
from distft.data.token_begins import TokenBegins, Tokens
from tests.unit.data.chat_templates import TOKENIZERS, byte_level

TEXTS = ["", "a", "two  words é🙂\n\n", " <|x|>  y<|x|>", "</s> ends", "x" * 100]


def made(kind=PreTrainedTokenizerFast, **settings):
    vocab = {piece: i for i, piece in enumerate(["</s>", "<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "wo"])}
    backend = Tokenizer(models.BPE(vocab, [("w", "o")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("</s>", 0), ("<s>", 1)]
    )
    tokenizer = kind(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", pad_token="</s>", **settings)
    tokenizer.add_tokens(AddedToken("<|x|>", special=True, rstrip=True))
    return tokenizer


def called(tokenizer, text):
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(out["input_ids"]), [begin for begin, _ in out["offset_mapping"]]


def plain(tokens: Tokens):
    assert (tokens.ids.dtype, tokens.begins.dtype) == (np.int32, np.int64)
    return tokens.ids.tolist(), tokens.begins.tolist()


@pytest.mark.parametrize("splits", [False, True])
def test_they_are_those_of_a_call(splits):
    tokenizer, other = made(split_special_tokens=splits), made(split_special_tokens=splits)
    begins = TokenBegins(tokenizer)
    for text in TEXTS:
        for state in (
            {"truncation": True, "max_length": 2, "padding": "max_length"},
            {"split_special_tokens": not splits},
        ):
            for ask in (begins.one, lambda text: begins.many([text])[0]):
                tokenizer([text, "wo wo wo"], **state)  # leaves it behind
                assert plain(ask(text)) == called(other, text)


class Lower(PreTrainedTokenizerFast):
    def _encode_plus(self, text, *args, **kwargs):
        return super()._encode_plus(text.lower(), *args, **kwargs)


def test_a_class_that_changes_texts_is_called():
    lower, same = TokenBegins(made(Lower)), TokenBegins(made())
    for ask in ("one", "many"):
        first, second, third = (
            getattr(begins, ask)(text if ask == "one" else [text])
            for begins, text in ((lower, "WO"), (same, "wo"), (same, "WO"))
        )
        first, second, third = (plain(one if ask == "one" else one[0]) for one in (first, second, third))
        assert first == second != third


def normal_form():
    """Like Qwen: NFC first, digits alone, added tokens that are no special ones."""
    found = byte_level()
    found.backend_tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    found.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    found.add_tokens([AddedToken("é!", normalized=True), AddedToken("[x]", lstrip=True, normalized=False)])
    return found


KINDS = {**TOKENIZERS, "NFC": normal_form(), "an added token that takes spaces": made()}
pieces = ["the quick", " fox\n\n", "  ", "a", "é!", "e\u0301", "\u2126", "\u0958", "漢字", "🏳️\u200d🌈", "12345", "</s>"]
pieces += ["<|im_end|>", " [x] ", "<|x|>  ", "\xa0", "\u2003", "'s", "user"]


@pytest.mark.parametrize("name", KINDS)
def test_many_at_once_are_as_one_by_one(name):
    tokenizer = KINDS[name]
    begins = TokenBegins(tokenizer)

    @given(st.lists(st.lists(st.sampled_from(pieces), max_size=9).map("".join), max_size=4))
    @settings(max_examples=150, deadline=None)
    def check(texts):
        assert [plain(one) for one in begins.many(texts)] == [called(tokenizer, text) for text in texts]

    check()


@pytest.mark.parametrize("name", KINDS)
def test_starts_are_found_from_the_last_line_where_a_tokenizer_cuts_there(name):
    fast, slow = TokenBegins(KINDS[name]), TokenBegins(KINDS[name])
    vars(slow)["_tiles"] = None  # as of a tokenizer that is not known
    more = [*pieces, "\n", "\n\n<|user|>\n", " \n x", "the quick brown fox jumps over the lazy dog\n" * 2, "\r\n!"]

    @given(st.lists(st.lists(st.sampled_from(more), max_size=9).map("".join), max_size=4))
    @settings(max_examples=300, deadline=None)
    def check(parts):
        text, starts = "".join(parts), [len("".join(parts[:i])) for i in range(1, len(parts))]
        (found, firsts), (wanted, its_firsts) = (some.at(text, some.one(text), starts) for some in (fast, slow))
        assert (plain(found), firsts) == (plain(wanted), its_firsts)

    check()


def test_lengths_of_tokens_tell_where_they_begin_if_they_are_those_of_the_text():
    backend = normal_form().backend_tokenizer
    tiles = Tiles.of(backend)
    assert tiles.composes
    for text, known in (("the é!12🙂</s>", True), ("e\u0301", False), ("a [x]", False), ("", True)):
        found = backend.encode(text, add_special_tokens=False)
        begins = tiles.begins(text, np.array(found.ids, np.int32))
        assert (begins is not None) is known
        assert not known or begins.tolist() == [begin for begin, _ in found.offsets]


def changed(**parts):
    return Tokenizer.from_str(json.dumps({**json.loads(byte_level().backend_tokenizer.to_str()), **parts}))


def test_only_byte_level_tokenizers_have_tiles():
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    assert Tiles.of(changed()).cuts_lines
    assert not Tiles.of(normal_form().backend_tokenizer).cuts_lines
    for reaching in (AddedToken("[x]", lstrip=True), AddedToken("\n[x]")):
        reached = byte_level()
        reached.add_tokens([reaching])
        assert not Tiles.of(reached.backend_tokenizer).cuts_lines
    assert Tiles.of(changed(pre_tokenizer={**level, "add_prefix_space": True})) is None
    assert Tiles.of(changed(pre_tokenizer=None)) is None
    assert Tiles.of(changed(post_processor={**level, "trim_offsets": True})) is None
    assert Tiles.of(changed(normalizer={"type": "Lowercase"})) is None
    for name in ("trimmed", "sentencepiece"):
        assert Tiles.of(TOKENIZERS[name].backend_tokenizer) is None
    model = json.loads(byte_level().backend_tokenizer.to_str())["model"]
    without = {token: id for token, id in model["vocab"].items() if token != "Ġ"}
    whole = [pair for pair in model["merges"] if "Ġ" not in pair]
    assert Tiles.of(changed(model={**model, "vocab": without, "merges": whole})) is None
