import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from distft.data.token_begins import with_begins

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


@pytest.mark.parametrize("splits", [False, True])
def test_they_are_those_of_a_call(splits):
    tokenizer, other = made(split_special_tokens=splits), made(split_special_tokens=splits)
    for text in TEXTS:
        for state in (
            {"truncation": True, "max_length": 2, "padding": "max_length"},
            {"split_special_tokens": not splits},
        ):
            tokenizer([text, "wo wo wo"], **state)  # leaves it behind
            assert with_begins(tokenizer, text) == called(other, text)


class Lower(PreTrainedTokenizerFast):
    def _encode_plus(self, text, *args, **kwargs):
        return super()._encode_plus(text.lower(), *args, **kwargs)


def test_a_class_that_changes_texts_is_called():
    assert with_begins(made(Lower), "WO") == with_begins(made(), "wo") != with_begins(made(), "WO")
