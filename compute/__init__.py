"""What is computed from a bank: distances, coefficients, predicted and trained adapters, evaluations, reports, plans.

One function a verb. Each takes a bank from `bankdb.open`, and one way of predicting (`PredictionOptions`) or a list of
them, and gives a result, or a list of results, which shows itself in a few lines and saves itself. Importing this loads
nothing else: each name is looked up when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compute.approaches.options import PredictionOptions as PredictionOptions
    from compute.assessment.assess import AssessmentOptions as AssessmentOptions
    from compute.assessment.assess import assess as assess
    from compute.assessment.records import Assessment as Assessment
    from compute.cluster.options import ClusterOptions as ClusterOptions
    from compute.curves.curve import CurveOptions as CurveOptions
    from compute.curves.curve import learning_curves as learning_curves
    from compute.curves.records import LearningCurves as LearningCurves
    from compute.evaluation.bank_sizes import SizeCurve as SizeCurve
    from compute.evaluation.evaluate import EvaluationOptions as EvaluationOptions
    from compute.evaluation.evaluate import evaluate as evaluate
    from compute.evaluation.records import Evaluation as Evaluation
    from compute.evaluation.weight_space import WeightSpaceTable as WeightSpaceTable
    from compute.evaluation.weight_space import bank_size_curves as bank_size_curves
    from compute.finetuning.finetune import finetune as finetune
    from compute.finetuning.finetuned import Finetuned as Finetuned
    from compute.finetuning.options import FinetuneOptions as FinetuneOptions
    from compute.forecasting.forecast import Forecast as Forecast
    from compute.forecasting.forecast import forecast as forecast
    from compute.forecasting.rates import Rates as Rates
    from compute.forecasting.shape import BankShape as BankShape
    from compute.generation.machine import Machine as Machine
    from compute.generation.text import generate as generate
    from compute.labels.answer_labels import LabelOptions as LabelOptions
    from compute.pairwise.matrix import DistanceMatrix as DistanceMatrix
    from compute.prediction.coefficients import Coefficients as Coefficients
    from compute.prediction.coefficients import coefficients as coefficients
    from compute.prediction.export import DeltaExport as DeltaExport
    from compute.prediction.export import export_delta as export_delta
    from compute.prediction.folders.by_run import export_prediction as export_prediction
    from compute.prediction.matrices import distances as distances
    from compute.prediction.predict import predict as predict
    from compute.prediction.predict_all import PredictedBank as PredictedBank
    from compute.prediction.predict_all import predict_all as predict_all
    from compute.prediction.prediction import Prediction as Prediction
    from compute.prediction.ways import combinations as combinations
    from compute.reporting.report import ReportPage as ReportPage
    from compute.reporting.report import report as report
    from compute.upkeep.ingest import ingest as ingest
    from compute.upkeep.verify import verify as verify

# Where each name is, in the order in which they are listed.
_PLACES = {
    "distances": "compute.prediction.matrices",
    "coefficients": "compute.prediction.coefficients",
    "predict": "compute.prediction.predict",
    "predict_all": "compute.prediction.predict_all",
    "export_prediction": "compute.prediction.folders.by_run",
    "export_delta": "compute.prediction.export",
    "finetune": "compute.finetuning.finetune",
    "evaluate": "compute.evaluation.evaluate",
    "learning_curves": "compute.curves.curve",
    "assess": "compute.assessment.assess",
    "generate": "compute.generation.text",
    "bank_size_curves": "compute.evaluation.weight_space",
    "report": "compute.reporting.report",
    "ingest": "compute.upkeep.ingest",
    "verify": "compute.upkeep.verify",
    "forecast": "compute.forecasting.forecast",
    "combinations": "compute.prediction.ways",
    "PredictionOptions": "compute.approaches.options",
    "ClusterOptions": "compute.cluster.options",
    "FinetuneOptions": "compute.finetuning.options",
    "LabelOptions": "compute.labels.answer_labels",
    "EvaluationOptions": "compute.evaluation.evaluate",
    "CurveOptions": "compute.curves.curve",
    "AssessmentOptions": "compute.assessment.assess",
    "Machine": "compute.generation.machine",
    "BankShape": "compute.forecasting.shape",
    "Rates": "compute.forecasting.rates",
    "DistanceMatrix": "compute.pairwise.matrix",
    "Coefficients": "compute.prediction.coefficients",
    "Prediction": "compute.prediction.prediction",
    "PredictedBank": "compute.prediction.predict_all",
    "DeltaExport": "compute.prediction.export",
    "Finetuned": "compute.finetuning.finetuned",
    "Evaluation": "compute.evaluation.records",
    "LearningCurves": "compute.curves.records",
    "Assessment": "compute.assessment.records",
    "WeightSpaceTable": "compute.evaluation.weight_space",
    "SizeCurve": "compute.evaluation.bank_sizes",
    "ReportPage": "compute.reporting.report",
    "Forecast": "compute.forecasting.forecast",
}

__all__ = [*_PLACES]


def __getattr__(name: str) -> object:
    """Look a public name up in its module."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
