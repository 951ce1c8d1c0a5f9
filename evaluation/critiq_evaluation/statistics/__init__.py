"""How far scores agree with people: correlations, fitted curves, intervals, significance, preferences."""

from critiq_evaluation.statistics.agreement import Agreement, measure
from critiq_evaluation.statistics.fits import FITS, Fit, FitName, fit_curve
from critiq_evaluation.statistics.intervals import Interval, bootstrap, bootstrap_plcc, bootstrap_srcc
from critiq_evaluation.statistics.preferences import PairAccuracy, RankingAccuracy, pair_accuracy, ranking_accuracy
from critiq_evaluation.statistics.significance import Difference, compare_srcc, holm

__all__ = [
    "FITS",
    "Agreement",
    "Difference",
    "Fit",
    "FitName",
    "Interval",
    "PairAccuracy",
    "RankingAccuracy",
    "bootstrap",
    "bootstrap_plcc",
    "bootstrap_srcc",
    "compare_srcc",
    "fit_curve",
    "holm",
    "measure",
    "pair_accuracy",
    "ranking_accuracy",
]
