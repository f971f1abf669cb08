"""Training on dialogues, round by round.

The dialogues of a round depend only on the seed and the number of the round. So an interrupted training continues with
the same dialogues.
"""

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from training import model as tiny_model
from training.curriculum import dialogues
from training.encoding import DialogueEncoder, Encoded

DIALOGUES_PER_ROUND = 2560
TOKENS_PER_BATCH = 2048  # padding included
MATRIX_RATE, OTHER_RATE = 2.5e-3, 2e-3  # highest learning rates
WEIGHT_DECAY = 0.01
WARM_UP, COOL_DOWN = 0.005, 0.6  # shares of the training
LATE = 0.6  # share of the training after which the hard kinds are drawn more often
# Factor of the learning rate with --start: a lower rate keeps what the weights know already.
CONTINUED_RATE = 0.35
_NOT_LEARNED = -100


@dataclass(slots=True)
class Journal:
    """The plan of a training and its progress."""

    seed: int
    rounds: int
    start: str = ""  # the checkpoint to continue from; empty for none
    done: int = 0
    seconds: float = 0.0
    tokens: int = 0  # padding included
    losses: list[float] = field(default_factory=list)  # nats per learned token, one for each batch


class Trainer:
    """The model, its optimizers and the journal."""

    def __init__(self, journal: Journal, device: torch.device, *, compiled: bool = False) -> None:
        """``compiled`` makes the training a fifth faster on two cores, after a minute of compiling."""
        self.journal = journal
        self.tokenizer, model = tiny_model.begun(journal.seed, journal.start)
        self.model = model.to(device).train()
        # On a CPU the backward pass of torch's fused attention takes longer than the rest of a step.
        self.model.set_attn_implementation("eager")
        self._layers = torch.compile(self.model.model, dynamic=True) if compiled else self.model.model
        self.device = device
        self._encoder = DialogueEncoder(self.tokenizer)
        self._optimizers = _optimizers(self.model)

    def round(self) -> Iterator[float]:
        """Train on the dialogues of the next round. Yields the number of rounds done, with a fraction for this one."""
        began = time.monotonic()
        batches = self._batches(self.journal.done)
        for number, (ids, targets) in enumerate(batches, 1):
            done = self.journal.done + number / len(batches)
            highest = CONTINUED_RATE if self.journal.start else 1.0
            self.journal.losses.append(self._learn(ids, targets, highest * rate(done / self.journal.rounds)))
            self.journal.tokens += ids.numel()
            yield done
        self.journal.done += 1
        self.journal.seconds += time.monotonic() - began

    def save(self, path: Path) -> None:
        """Write to ``path`` everything that a later run needs to continue."""
        optimizers = [optimizer.state_dict() for optimizer in self._optimizers]
        state = {"journal": asdict(self.journal), "model": self.model.state_dict(), "optimizers": optimizers}
        part = path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what ``save`` wrote."""
        self.journal = Journal(**state["journal"])
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _batches(self, number: int) -> list[tuple[Tensor, Tensor]]:
        rng = Random(f"{self.journal.seed}/{number}")  # noqa: S311 (not a secret)
        late = bool(self.journal.start) or number >= LATE * self.journal.rounds
        supply = dialogues(rng, late=late)
        encoded = [self._encoder.encode(next(supply)) for _ in range(DIALOGUES_PER_ROUND)]
        padding = self.model.config.pad_token_id
        batches = [padded(group, padding) for group in by_length(encoded)]
        rng.shuffle(batches)
        return batches

    def _learn(self, ids: Tensor, targets: Tensor, rate: float) -> float:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["highest_lr"] * rate
        ids, targets = ids.to(self.device), targets.to(self.device)
        learned = targets != _NOT_LEARNED
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            # Padding is on the right and attention is causal, so no mask is needed.
            hidden = self._layers(input_ids=ids, use_cache=False).last_hidden_state
            scores = self.model.lm_head(hidden[learned])
        loss = cross_entropy(scores.float(), targets[learned])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        return float(loss.detach())


def rate(share: float) -> float:
    """The learning rate after ``share`` of the training, as a share of the highest: warm-up, constant, cool-down.

    The cool-down is one minus the square root (Hägele et al. 2024, https://arxiv.org/abs/2405.18392): fast at first,
    then slow.
    """
    cooled = min(1.0, max(0.0, share - (1 - COOL_DOWN)) / COOL_DOWN)
    return min(share / WARM_UP, 1 - math.sqrt(cooled))


def by_length(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Groups of dialogues of similar length; each padded group has at most TOKENS_PER_BATCH tokens."""
    group: list[Encoded] = []
    for dialogue in sorted(encoded, key=lambda e: len(e.ids)):
        if group and (len(group) + 1) * len(dialogue.ids) > TOKENS_PER_BATCH:
            yield group
            group = []
        group.append(dialogue)
    if group:
        yield group


def padded(group: Sequence[Encoded], padding: int) -> tuple[Tensor, Tensor]:
    """Token ids and the target after each id, both int64 [dialogues, longest - 1]."""
    longest = max(len(e.ids) for e in group)
    ids = torch.full((len(group), longest), padding)
    targets = torch.full((len(group), longest), _NOT_LEARNED)
    for row, dialogue in enumerate(group):
        length = len(dialogue.ids)
        ids[row, :length] = torch.tensor(dialogue.ids)
        targets[row, :length] = ids[row, :length].where(torch.tensor(dialogue.learned), _NOT_LEARNED)
    return ids[:, :-1], targets[:, 1:]


def _optimizers(model: Any) -> tuple[torch.optim.Optimizer, ...]:
    """Muon (Jordan et al., 2024) for the layers' matrices, AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    is_matrix = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in is_matrix]
    muon = torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["highest_lr"] = group["lr"]
    return muon, adamw
