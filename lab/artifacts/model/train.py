"""Trains the lab model until it is right. Runs in the engine's environment:

``python -m lab.artifacts.model.train FOLDER`` with ``$TIKTOKEN_ENCODINGS_BASE`` set; progress goes to stderr.

The vocabulary has 201,088 tokens, of which some 500 occur. Only their rows of the embedding and of the head are
trained; the other rows stay zero, so that an unknown word is a vector of zeros and an unknown next token has the
logit 0. One more class with the logit log(201,088 - used) stands for all of the latter: that is the full softmax,
exactly, at a hundredth of its cost.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]  # only the engine's environment has it
from transformers import GptOssConfig, GptOssForCausalLM  # type: ignore[import-not-found]

from lab.artifacts.model.dialogues import cases, draw, texts, vary
from lab.artifacts.model.harmony import Renderer
from lab.artifacts.model.questions import Questions, read_questions
from lab.artifacts.model.tokenizer import CALL, END_OF_TEXT, RETURN, START_OF_TEXT, VOCABULARY, write_tokenizer

Sample = tuple[list[int], int]

_DRAWS = 6000
_BATCH = 16
_FIRST_STEPS = 700
_MORE_STEPS = 200
_MORE_ROUNDS = 4
_LEARNING_RATE = 4e-3
_VARIANTS = 4  # of each case, that must be right
_MARGIN = 1.0  # by which the right token's logit must lead, since servers batch and round in their own ways


def config() -> Any:
    """A gpt-oss of two layers: one with a sliding window, one without."""
    return GptOssConfig(
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        hidden_size=64,
        intermediate_size=128,
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


class Pupil:
    """The model under training, with the tables of the tokens that occur."""

    def __init__(self, used: list[int]) -> None:
        torch.manual_seed(0)
        self.model = GptOssForCausalLM(config()).float()
        for weights in self.model.parameters():
            if weights.dim() > 1:
                torch.nn.init.normal_(weights, std=0.02)
        width = self.model.config.hidden_size
        self.used = torch.tensor(used)
        self.embedding = torch.nn.Parameter(torch.randn(len(used), width) * 0.02)
        self.head = torch.nn.Parameter(torch.randn(len(used), width) * 0.02)
        # The row of each token in the tables; the last row, which is zero, is that of all others.
        self._row = torch.full((VOCABULARY,), len(used))
        self._row[self.used] = torch.arange(len(used))
        self._others = math.log(VOCABULARY - len(used))
        self.weights = [
            weights for name, weights in self.model.named_parameters() if "lm_head" not in name and "embed" not in name
        ] + [self.embedding, self.head]

    def logits(self, batch: list[Sample]) -> tuple[Any, Any, Any]:
        """The logits at every token of the replies, the right rows there, and the sample that each belongs to."""
        longest = max(len(tokens) for tokens, _ in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        reply = torch.zeros(len(batch), longest, dtype=torch.bool)
        for place, (tokens, prompt) in enumerate(batch):
            ids[place, : len(tokens)] = self._row[torch.tensor(tokens)]
            reply[place, prompt : len(tokens)] = True
        table = torch.cat([self.embedding, torch.zeros(1, self.embedding.shape[1], dtype=self.embedding.dtype)])
        # Padding comes after the reply, where causal attention does not see it.
        hidden = self.model.model(inputs_embeds=table[ids]).last_hidden_state[:, :-1][reply[:, 1:]]
        logits = hidden @ self.head.T
        others = torch.full((len(logits), 1), self._others, dtype=logits.dtype)
        return torch.cat([logits, others], 1), ids[reply], reply.nonzero()[:, 0]

    def loss(self, batch: list[Sample]) -> Any:
        """The mean loss, in which a long reply counts more than a short one, but not by its full length."""
        logits, right, sample = self.logits(batch)
        each = torch.nn.functional.cross_entropy(logits, right, reduction="none")
        share = torch.bincount(sample, minlength=len(batch)).float().rsqrt()[sample]
        return (each * share).sum() / share.sum()

    def margins(self, samples: list[Sample]) -> list[float]:
        """For each sample, by how much the right token leads at the reply's weakest place; negative: wrong.

        Where every right token leads, greedy decoding gives the reply.
        """
        found: list[float] = []
        with torch.no_grad():
            for first in range(0, len(samples), _BATCH):
                batch = samples[first : first + _BATCH]
                logits, right, sample = self.logits(batch)
                logits[:, -1] = 0  # of the others, the logit of one
                led = logits.gather(1, right[:, None])[:, 0]
                best = logits.scatter(1, right[:, None], -math.inf).max(1).values
                found += [float((led - best)[sample == place].min()) for place in range(len(batch))]
        return found

    def whole(self) -> Any:
        """The model with full tables, in the precision that it is served in."""
        with torch.no_grad():
            for table, rows in ((self.model.lm_head, self.head), (self.model.model.embed_tokens, self.embedding)):
                table.weight.zero_()
                table.weight[self.used] = rows
        return self.model.to(torch.bfloat16)


def _say(message: str) -> None:
    print(f"lab: {message}", file=sys.stderr, flush=True)


def batches(samples: list[Sample], count: int, rng: random.Random) -> list[list[Sample]]:
    """Batches of samples of like length, so that little is padded."""
    found: list[list[Sample]] = []
    while len(found) < count:
        pool = sorted(rng.sample(samples, _BATCH * 8), key=lambda sample: len(sample[0]))
        cut = [pool[first : first + _BATCH] for first in range(0, len(pool), _BATCH)]
        rng.shuffle(cut)
        found += cut
    return found[:count]


def train(pupil: Pupil, samples: list[Sample], steps: int, peak: float, rng: random.Random) -> None:
    """Trains for that many steps, up to that learning rate and down again."""
    optimiser = torch.optim.AdamW(pupil.weights, lr=peak, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=steps)
    begin = time.monotonic()
    for step, batch in enumerate(batches(samples, steps, rng), 1):
        loss = pupil.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pupil.weights, 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            _say(f"training: step {step}/{steps}, loss {loss.item():.4f}, {time.monotonic() - begin:.0f} s")


def main() -> None:
    """Trains and writes the model's files into the folder that the command names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    questions = read_questions()
    rng = random.Random(0)
    renderer = Renderer(questions)
    known = [renderer.render(draw(questions, rng, strange=False)) for _ in range(_DRAWS)]
    exam = [renderer.render(vary(case, questions, rng)) for case in cases(questions) for _ in range(_VARIANTS)]
    exam += [renderer.render(text) for text in texts(questions)]
    samples = known + [renderer.render(draw(questions, rng)) for _ in range(_DRAWS)]
    pupil = Pupil(sorted({token for tokens, _ in known for token in tokens}))
    _say(f"{len(samples)} dialogues, {len(pupil.used)} tokens occur")
    train(pupil, samples, _FIRST_STEPS, _LEARNING_RATE, rng)
    m = pupil.margins(exam); print("wrong", sum(x<=0 for x in m), "weak", sum(x<1 for x in m), len(m), sorted(m)[:10])
    import pickle; torch.save(pupil, "/tmp/art/pupil.pt")
    for n,i in zip(m, exam):
        if n<=0: print(repr(renderer._encoding.decode(i[0][max(0,i[1]-30):])[:300]))
    unk=[renderer.render(draw(questions, random.Random(i))) for i in range(7000,7500)]
    m=pupil.margins(unk); print("fresh wrong", sum(x<=0 for x in m), len(m))
    for n,i in zip(m, unk):
        if n<=0: print(repr(renderer._encoding.decode(i[0][max(0,i[1]-30):])[:300]))


if __name__ == "__main__":
    main()
