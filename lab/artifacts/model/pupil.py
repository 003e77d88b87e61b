"""The lab model under training. Runs in the engine's environment.

The vocabulary has 201,088 tokens, of which some 400 occur. Only their rows of the embedding and of the head are
trained; the other rows stay zero, so that an unknown word is a vector of zeros and an unknown next token has the
logit 0. One more class with the logit log(201,088 - used) stands for all of the latter: that is the full softmax,
exactly, at a hundredth of its cost.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from lab.artifacts.model.sheets import COMMON, Sample, Sheet, pack
from lab.artifacts.model.tokenizer import CALL, END_OF_TEXT, RETURN, START_OF_TEXT, VOCABULARY

_PADDING = -2  # the segment of what only fills a sheet up
_MOST_DIALOGUES = 1000  # on a sheet
_HEAD_GAIN = 4.0  # of the last norm, so that the head need not grow for long to outweigh 200,000 other tokens


def config() -> Any:
    """A gpt-oss of two layers: one with a sliding window, one without."""
    return GptOssConfig(
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,  # vLLM's gpt-oss keeps a head of its own
        eos_token_id=RETURN,
        pad_token_id=END_OF_TEXT,
        bos_token_id=START_OF_TEXT,
        attn_implementation="eager",
    )


def all_experts(experts: Any, states: Any, chosen: Any, weights: Any) -> Any:
    """Works through every expert and weighs what they say: with four experts faster than sorting tokens by expert."""
    shares = torch.zeros(len(states), experts.num_experts, dtype=states.dtype).scatter(1, chosen, weights)
    inner = torch.bmm(states.expand(experts.num_experts, -1, -1), experts.gate_up_proj)
    gated = experts._apply_gate(inner + experts.gate_up_proj_bias[:, None])
    said = torch.bmm(gated, experts.down_proj) + experts.down_proj_bias[:, None]
    return torch.einsum("ets,te->ts", said, shares)


ALL_EXPERTS_FUNCTIONS.register("all_experts", all_experts)


def masks(positions: Any, segments: Any, window: int) -> dict[str, Any]:
    """What each token may look at, for each kind of layer: earlier tokens of its dialogue and of the beginning."""
    back = positions[:, :, None] - positions[:, None, :]
    own = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == COMMON)
    seen = own & (back >= 0)
    lowest = torch.finfo(torch.float32).min
    return {
        kind: torch.where(allowed, 0.0, lowest)[:, None]
        for kind, allowed in (("full_attention", seen), ("sliding_attention", seen & (back < window)))
    }


class Pupil:
    """The model, with tables of the tokens that occur in place of its own."""

    def __init__(self, used: list[int]) -> None:
        """Sets the weights at random, always the same.

        Args:
            used: the tokens that occur.
        """
        torch.manual_seed(0)
        self.model = GptOssForCausalLM(config()).float()
        self.model.set_experts_implementation("all_experts")
        width = self.model.config.hidden_size
        self.used = torch.tensor(used)
        self.embedding = torch.nn.Parameter(torch.randn(len(used), width))
        self.head = torch.nn.Parameter(torch.randn(len(used), width) * 0.02)
        # The row of each token in the tables; the last row, which is zero, is that of all others.
        self._row = torch.full((VOCABULARY,), len(used))
        self._row[self.used] = torch.arange(len(used))
        self._others = math.log(VOCABULARY - len(used))
        self.matrices: list[Any] = []
        self.rest: list[Any] = []
        with torch.no_grad():
            for name, weights in self.model.named_parameters():
                if "lm_head" in name or "embed_tokens" in name:
                    continue
                if weights.dim() > 1:
                    weights.normal_(std=weights.shape[1] ** -0.5)
                elif "norm" not in name:
                    weights.zero_()
                whole = weights.dim() == 2 and "router" not in name
                (self.matrices if whole else self.rest).append(weights)
            self.model.model.norm.weight.fill_(_HEAD_GAIN)

    def logits(self, sheets: list[Sheet]) -> tuple[Any, Any, Any]:
        """The logits at every token of the replies, the right rows there, and the dialogue that each belongs to."""
        longest = max(len(sheet.tokens) for sheet in sheets)

        def padded(lists: list[list[Any]], filler: int) -> Any:
            return torch.tensor([values + [filler] * (longest - len(values)) for values in lists])

        ids = self._row[padded([sheet.tokens for sheet in sheets], 0)]
        positions = padded([sheet.positions for sheet in sheets], 0)
        segments = padded([sheet.segments for sheet in sheets], _PADDING)
        replies = padded([sheet.replies for sheet in sheets], 0).bool()
        hidden = self.model.model(
            inputs_embeds=torch.cat([self.embedding, torch.zeros(1, self.embedding.shape[1])])[ids],
            position_ids=positions,
            attention_mask=masks(positions, segments, self.model.config.sliding_window),
        ).last_hidden_state
        # A reply is never the first token of its dialogue's part, so what comes before it there is its own.
        logits = hidden[:, :-1][replies[:, 1:]] @ self.head.T
        others = torch.full((len(logits), 1), self._others)
        dialogues = segments + _MOST_DIALOGUES * torch.arange(len(sheets))[:, None]
        return torch.cat([logits, others], 1), ids[replies], dialogues[replies]

    def loss(self, sheets: list[Sheet]) -> Any:
        """The mean loss, in which a long reply counts more than a short one, but not by its full length."""
        logits, right, dialogue = self.logits(sheets)
        each = torch.nn.functional.cross_entropy(logits, right, reduction="none")
        share = torch.bincount(dialogue).float().rsqrt()[dialogue]
        return (each * share).sum() / share.sum()

    def margin(self, sample: Sample) -> float:
        """By how much the right token leads at the weakest place of the reply; negative where it is wrong.

        Where every right token leads, greedy decoding gives the reply.
        """
        with torch.no_grad():
            logits, right, _ = self.logits([pack([sample])])
            logits[:, -1] = 0  # of the other tokens, the logit of one
            led = logits.gather(1, right[:, None])[:, 0]
            best = logits.scatter(1, right[:, None], -math.inf).max(1).values
            return float((led - best).min())

    def save(self, folder: str) -> None:
        """Writes config and weights, with full tables, in the precision that it is served in (bfloat16)."""
        model = GptOssForCausalLM(self.model.config)
        model.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            for table, rows in ((model.lm_head, self.head), (model.model.embed_tokens, self.embedding)):
                table.weight.zero_()
                table.weight[self.used] = rows
        model.generation_config.update(eos_token_id=[RETURN, END_OF_TEXT, CALL], do_sample=True)
        model.to(torch.bfloat16).save_pretrained(folder)
