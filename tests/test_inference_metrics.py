"""Scores against numbers worked out by hand, and properties that hold for any input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnet_cli.inference.metrics import (
    ClassScore,
    Predictions,
    calibration_error,
    confused_pairs,
    confusion_matrix,
    join_predictions,
    macro_f1,
    per_class,
    predictions_of,
    softmax,
    topk_accuracy,
    wilson_interval,
)

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 1, 1, 2, 0])
CONFUSION = np.array([[2, 1, 0], [0, 1, 1], [1, 0, 0]])


@st.composite
def scored_rows(draw):
    """Logits (N, C) of a size that no exponential survives, with labels (N,)."""
    rows, classes = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    logits = draw(arrays(np.float64, (rows, classes), elements=st.floats(-1e4, 1e4)))
    labels = draw(arrays(np.int64, rows, elements=st.integers(0, classes - 1)))
    return logits, labels


def test_softmax_of_two_logits_is_the_logistic_function():
    found = softmax(np.array([[0.0, np.log(3.0)], [5.0, 5.0]]))
    np.testing.assert_allclose(found, [[0.25, 0.75], [0.5, 0.5]])


@given(scored_rows())
def test_softmax_rows_sum_to_one_and_ignore_a_shift(scored):
    logits, _ = scored
    probabilities = softmax(logits)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    np.testing.assert_allclose(softmax(logits + 100.0), probabilities, atol=1e-9)


def test_softmax_of_no_rows_has_no_rows():
    assert softmax(np.empty((0, 3))).shape == (0, 3)


def test_predictions_hold_class_rank_and_log_probabilities():
    found = predictions_of(np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]), np.array([1, 0]))
    assert found.classes.tolist() == [0, 2]
    assert found.ranks.tolist() == [1, 1]
    np.testing.assert_allclose(found.probs, [0.5, 0.8])
    np.testing.assert_allclose(found.true_probs, [0.25, 0.1])
    np.testing.assert_allclose(found.true_log_probs, -np.log([4, 10]))


def test_log_probabilities_stay_finite_where_the_probability_underflows():
    found = predictions_of(np.array([[0.0, 5000.0]]), np.array([0]))
    assert found.true_log_probs == pytest.approx([-5000.0])
    assert found.true_probs.tolist() == [0.0]


@given(scored_rows(), st.integers(1, 8))
def test_blocks_of_rows_give_the_bits_of_all_rows(scored, size):
    logits, labels = scored
    starts = range(0, len(labels), size)
    blocks = [predictions_of(logits[at : at + size], labels[at : at + size]) for at in starts]
    joined, whole = join_predictions(blocks), predictions_of(logits, labels)
    for name, values in vars(whole).items():
        assert np.array_equal(getattr(joined, name), values), name


@given(scored_rows())
def test_predictions_agree_with_softmax_and_topk(scored):
    logits, labels = scored
    found, probabilities = predictions_of(logits, labels), softmax(logits)
    assert np.array_equal(found.probs, probabilities.max(axis=1))
    assert np.array_equal(found.true_probs, probabilities[np.arange(len(labels)), labels])
    for k in (1, 2, 3):
        assert (found.ranks < k).mean() == topk_accuracy(logits, labels, k)


def test_topk_counts_the_rank_of_the_true_class():
    logits = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0]])
    labels = np.array([0, 0, 0])
    found = [topk_accuracy(logits, labels, k) for k in (1, 2, 3)]
    assert found == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_topk_gives_ties_to_the_lower_class_index():
    logits = np.zeros((3, 3))
    labels = np.array([0, 1, 2])
    found = [topk_accuracy(logits, labels, k) for k in (1, 2, 3)]
    assert found == pytest.approx([1 / 3, 2 / 3, 1.0])


@given(scored_rows())
def test_topk_grows_with_k_up_to_one_and_starts_at_argmax(scored):
    logits, labels = scored
    classes = logits.shape[1]
    found = [topk_accuracy(logits, labels, k) for k in range(1, classes + 3)]
    assert found == sorted(found)
    assert found[classes - 1 :] == [1.0, 1.0, 1.0]
    assert found[0] == (logits.argmax(axis=1) == labels).mean()


def test_confusion_rows_are_true_classes():
    assert confusion_matrix(LABELS, PREDICTIONS, 3).tolist() == CONFUSION.tolist()


def test_confusion_of_narrow_integers_does_not_overflow():
    last = np.array([199], dtype=np.uint8)
    assert confusion_matrix(last, last, 200)[199, 199] == 1


def test_confusion_of_nothing_is_all_zeros():
    assert confusion_matrix(np.array([]), np.array([]), 2).tolist() == [[0, 0], [0, 0]]


@given(scored_rows())
def test_confusion_diagonal_agrees_with_top1(scored):
    logits, labels = scored
    confusion = confusion_matrix(labels, logits.argmax(axis=1), logits.shape[1])
    assert confusion.sum() == len(labels)
    share = np.trace(confusion) / len(labels)
    assert share == pytest.approx(topk_accuracy(logits, labels, 1))


def test_mistakes_are_counted_by_pair_the_most_frequent_first():
    labels, predictions = np.array([2, 0, 0, 1, 1, 0, 2]), np.array([0, 1, 0, 2, 2, 1, 2])
    assert confused_pairs(labels, predictions, 3) == [(0, 1, 2), (1, 2, 2), (2, 0, 1)]
    assert confused_pairs(labels, labels, 3) == []


@given(scored_rows())
def test_pairs_are_the_confusion_off_its_diagonal(scored):
    logits, labels = scored
    classes = logits.shape[1]
    pairs = confused_pairs(labels, logits.argmax(axis=1), classes)
    confusion = confusion_matrix(labels, logits.argmax(axis=1), classes)
    np.fill_diagonal(confusion, 0)
    assert {(true, given): count for true, given, count in pairs} == {
        (true, given): confusion[true, given] for true, given in np.argwhere(confusion).tolist()
    }


def test_pairs_of_a_million_classes_need_no_matrix():
    last = np.array([999_999])
    assert confused_pairs(last, last - 1, 1_000_000) == [(999_999, 999_998, 1)]


def test_class_scores_by_hand():
    scores = per_class(LABELS, PREDICTIONS, 3)
    first, second, third = scores
    assert first.precision == pytest.approx(2 / 3)
    assert first.recall == pytest.approx(2 / 3)
    assert first.f1 == pytest.approx(2 / 3)
    assert second == ClassScore(precision=0.5, recall=0.5, f1=0.5, support=2)
    assert third == ClassScore(precision=0.0, recall=0.0, f1=0.0, support=1)
    assert macro_f1(scores) == pytest.approx((2 / 3 + 0.5 + 0.0) / 3)


def test_macro_f1_leaves_out_a_class_without_images():
    labels, predictions = np.array([0] * 4 + [1] * 4), np.array([0] * 3 + [2] + [1] * 4)
    scores = per_class(labels, predictions, 3)
    assert scores[2] == ClassScore(0.0, 0.0, 0.0, 0)
    assert macro_f1(scores) == pytest.approx((6 / 7 + 1.0) / 2)


def test_calibration_error_by_hand():
    confidence = np.array([0.9, 0.9, 0.6, 0.7])
    correct = np.array([True, False, True, True])
    # Ten bins: two rows at 0.9 with half of them right, one at 0.6 and one at 0.7, right.
    expected = (2 * 0.4 + 0.4 + 0.3) / 4
    assert calibration_error(confidence, correct, bins=10) == pytest.approx(expected)


def test_a_bin_holds_its_upper_end():
    confidence, correct = np.array([0.5, 0.51]), np.array([True, False])
    # Bins (0, 0.5] and (0.5, 1]: one right at 0.5, one wrong at 0.51, which do not cancel.
    assert calibration_error(confidence, correct, bins=2) == pytest.approx(1.01 / 2)


@given(scored_rows())
def test_calibration_error_lies_in_the_unit_interval(scored):
    logits, labels = scored
    found = predictions_of(logits, labels)
    assert 0.0 <= calibration_error(found.probs, found.classes == labels) <= 1.0


def test_wilson_interval_by_hand():
    # Centre (0.5 + z2/20) / (1 + z2/10) = 0.5; margin by the published formula.
    assert wilson_interval(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 100_000), st.data())
def test_wilson_interval_holds_the_share_and_mirrors(trials, data):
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials)
    assert 0.0 <= low <= successes / trials <= high <= 1.0
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_gets_no_score(bad):
    logits, labels = np.array([[0.0, bad]]), np.array([0])
    for score in (
        lambda: softmax(logits),
        lambda: predictions_of(logits, labels),
        lambda: topk_accuracy(logits, labels, 1),
        lambda: calibration_error(logits[0], logits[0] == 0),
    ):
        with pytest.raises(ValueError, match="not finite"):
            score()


def test_a_mean_over_nothing_is_refused():
    logits, labels = np.empty((0, 2)), np.empty(0, dtype=np.int64)
    for score in (
        lambda: predictions_of(logits, labels),
        lambda: join_predictions([]),
        lambda: topk_accuracy(logits, labels, 1),
        lambda: calibration_error(logits[:, 0], labels),
        lambda: macro_f1(per_class(labels, labels, 2)),
    ):
        with pytest.raises(ValueError, match="at least one"):
            score()


@pytest.mark.parametrize(
    ("score", "complaint"),
    [
        (lambda: topk_accuracy(np.zeros((1, 2)), np.array([0]), 0), "k is 0"),
        (lambda: predictions_of(np.zeros((1, 2)), np.array([2])), "outside"),
        (lambda: predictions_of(np.zeros((1, 2)), np.array([-1])), "outside"),
        (lambda: predictions_of(np.zeros((2, 2)), np.array([0])), "1 labels for 2 rows"),
        (lambda: predictions_of(np.zeros((1, 2)), np.array([0.5])), "integers"),
        (lambda: softmax(np.zeros(3)), "shape"),
        (lambda: confusion_matrix(LABELS, PREDICTIONS[:5], 3), "6 labels but 5"),
        (lambda: calibration_error(np.array([3.0]), np.array([True])), "softmax first"),
        (lambda: calibration_error(np.array([1.0]), np.array([True]), bins=0), "bins is 0"),
        (lambda: calibration_error(np.array([1.0]), np.array([True, False])), "shape"),
        (lambda: confused_pairs(LABELS, PREDICTIONS, 2), "outside"),
        (lambda: Predictions(*[np.zeros(2)] * 3, np.zeros(3)), "shapes"),
        (lambda: Predictions(*[np.zeros(1)] * 3, np.full(1, np.nan)), "not finite"),
        (lambda: wilson_interval(3, 2), "3 successes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(score, complaint):
    with pytest.raises(ValueError, match=complaint):
        score()
