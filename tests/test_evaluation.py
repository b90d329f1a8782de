"""Testing a network: counts, averaged views, and modes left as they were."""

import numpy as np
import pytest

from minidl import Tensor, data, evaluation, nn, ops


class Fixed(nn.Module):
    """Scores that are the image's own first pixels."""

    def forward(self, x):
        return x.flatten(1)[:, :3]


def test_count_correct():
    scores = np.array([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.0, 0.1, 0.9]])
    labels = np.array([1, 2, 2])
    assert evaluation.count_correct(scores, labels) == 2
    assert evaluation.count_correct(scores, labels, 2) == 3
    assert evaluation.count_correct(scores, np.array([2, 1, 0]), 2) == 0
    assert evaluation.count_correct(scores, labels, 5) == 3


def test_evaluate_averages_over_samples():
    draw = np.random.default_rng(0)
    images = draw.random((7, 1, 2, 2), np.float32)
    labels = draw.integers(0, 3, 7)
    model = Fixed().train()
    loader = data.DataLoader(data.ArrayDataset(images, labels), 3)
    result = evaluation.evaluate(model, loader, lambda m, y, t: ops.cross_entropy(y, t))
    scores = images.reshape(7, -1)[:, :3]
    expected = ops.cross_entropy(Tensor(scores), labels).item()
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.samples == 7 and result.top5 == 7
    assert result.correct == (scores.argmax(axis=1) == labels).sum()
    assert model.training


def test_views_average_probabilities_not_scores():
    """One confident view outweighs two unsure ones, as it would not on averaged logits."""
    views = np.zeros((1, 3, 1, 2, 2), np.float32)
    views[0, :, 0] = [[[0, 5], [0, 0]], [[1.7, 0], [0, 0]], [[3.4, 0], [0, 0]]]
    softmax = np.exp(views.reshape(3, 4)[:, :3])
    chances = (softmax / softmax.sum(axis=1, keepdims=True)).mean(axis=0)
    model = Fixed().train()
    result = evaluation.evaluate_views(model, [(views, np.array([1]))])
    assert result.loss == pytest.approx(-np.log(chances[1]), rel=1e-5)
    assert result.correct == int(chances.argmax() == 1)
    assert model.training


def test_the_mode_returns_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    with pytest.raises(ValueError):
        evaluation.probabilities(model, np.zeros((1, 3), np.float32))
    assert model.training and model[1].training


def test_every_module_returns_to_its_own_mode():
    """A part that was frozen in evaluation mode stays so."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    model[0].eval()
    evaluation.probabilities(model, np.zeros((1, 2), np.float32))
    assert [m.training for m in (model, model[0], model[1])] == [True, False, True]
