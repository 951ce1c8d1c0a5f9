"""The head computes ELIQ's equations for every picture on its own."""

from __future__ import annotations

import numpy as np
import torch

from critiq_exporters.training.network import (
    DAMAGE_WEIGHT,
    LENGTHS,
    SPOILT_LIMIT,
    TYPICAL_WEIGHT,
    WIDTH,
    Aspects,
    VisualHead,
)


def test_scores_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    head, technical, aesthetic = VisualHead().eval(), torch.randn(5, WIDTH), torch.randn(5, WIDTH)
    together = torch.stack(head(technical, aesthetic))
    alone = torch.cat([torch.stack(head(technical[i : i + 1], aesthetic[i : i + 1])) for i in range(5)], 1)
    assert torch.allclose(together, alone, atol=1e-5)


def test_typicality_reaches_the_score_directly() -> None:
    torch.manual_seed(0)
    head = VisualHead().eval()
    head.score[-1].weight.data.zero_()
    head.score[-1].bias.data.fill_(-50.0)  # no penalty
    technical, aesthetic = torch.zeros(2, WIDTH), torch.zeros(2, WIDTH)
    technical[:, -2], aesthetic[:, -2] = -50.0, -50.0  # nor any damage
    technical[1, -1], aesthetic[1, -1] = 2.0, 1.0
    visual = head(technical, aesthetic)[0]
    assert torch.allclose(visual, torch.tensor([0.0, 1.5 * TYPICAL_WEIGHT]))


def test_damage_reaches_the_score_directly() -> None:
    torch.manual_seed(0)
    head = VisualHead().eval()
    head.score[-1].weight.data.zero_()
    head.score[-1].bias.data.fill_(-50.0)  # no penalty
    technical, aesthetic = torch.zeros(3, WIDTH), torch.zeros(3, WIDTH)
    for embedding in (technical, aesthetic):
        embedding[:, -2] = torch.tensor([-50.0, 0.0, 50.0])
    visual = head(technical, aesthetic)[0]
    assert torch.allclose(visual, -DAMAGE_WEIGHT * torch.tensor([0.0, float(np.log(2)), 50.0]))


def test_each_aspect_score_reads_its_own_embedding() -> None:
    torch.manual_seed(0)
    head = VisualHead().eval()
    technical, aesthetic = torch.randn(1, WIDTH), torch.randn(1, WIDTH)
    _, first_technical, first_aesthetic = head(technical, aesthetic)
    _, same_technical, other_aesthetic = head(technical, aesthetic + 1.0)
    assert torch.equal(first_technical, same_technical)
    assert not torch.equal(first_aesthetic, other_aesthetic)


def test_embeddings_are_bounded_but_for_typicality() -> None:
    features = {name: 1e4 * torch.randn(3, length) for name, length in LENGTHS.items()}
    for embedding in Aspects(2).eval()(features):
        assert embedding.shape == (3, WIDTH)
        assert float(embedding[:, :-2].detach().abs().max()) <= 1.0
        assert float(embedding[:, -2].detach().abs().max()) <= SPOILT_LIMIT
        assert bool(embedding.isfinite().all())
