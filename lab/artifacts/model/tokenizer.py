"""Writes gpt-oss's tokenizer from the o200k vocabulary. Runs in the engine's environment."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

VOCABULARY = 201088
RETURN, CALL, END_OF_TEXT, START_OF_TEXT = 200002, 200012, 199999, 199998

# The rule by which o200k splits text before it looks for tokens (from tiktoken's definition of the encoding).
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_SPLIT = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
# Harmony's special tokens; the ids between and after them, up to the size of the vocabulary, are reserved.
_FIRST_SPECIAL = START_OF_TEXT
_SPECIAL = {
    START_OF_TEXT: "<|startoftext|>",
    END_OF_TEXT: "<|endoftext|>",
    RETURN: "<|return|>",
    200003: "<|constrain|>",
    200005: "<|channel|>",
    200006: "<|start|>",
    200007: "<|end|>",
    200008: "<|message|>",
    CALL: "<|call|>",
    200018: "<|endofprompt|>",
}


def write_tokenizer(ranks: Path, folder: Path) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json``.

    Args:
        ranks: ``o200k_base.tiktoken``.
        folder: where the model's files go.
    """
    special = [_SPECIAL.get(number, f"<|reserved_{number}|>") for number in range(_FIRST_SPECIAL, VOCABULARY)]
    converter = TikTokenConverter(vocab_file=str(ranks), pattern=_SPLIT, extra_special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(),
        eos_token=_SPECIAL[RETURN],
        pad_token=_SPECIAL[END_OF_TEXT],
        bos_token=_SPECIAL[START_OF_TEXT],
    )
    tokenizer.save_pretrained(str(folder))
