"""Metrics by name: the four of arXiv 2507.01806, C.1.2, and tf-idf, which is none of the paper's."""

from __future__ import annotations

import math
from typing import cast

from bankdb.errors import ParameterError
from compute.metrics.base import Metric
from compute.metrics.divergences import JensenShannon, KullbackLeibler
from compute.metrics.mmd import KERNEL_NAMES, GaussianKernel, Kernel, MaximumMeanDiscrepancy, MultiscaleKernel
from compute.metrics.tfidf import TfIdf
from compute.metrics.wasserstein import Wasserstein
from compute.types import COMPATIBLE, Compatible, FloatArray

METRIC_NAMES = ("wasserstein", "kullback-leibler", "jensen-shannon", "mmd")
"""The paper's four."""
FURTHER_METRIC_NAMES = ("tf-idf",)
_SHORT_NAMES = {"wd": "wasserstein", "kl": "kullback-leibler", "js": "jensen-shannon"}


def canonical_metric_name(name: str) -> str:
    """Full name of a metric given in full or short form, in any case.

    Raises
    ------
    ParameterError
        For a name that is not known.
    """
    lower = name.strip().lower()
    canonical = _SHORT_NAMES.get(lower, lower)
    if canonical not in (*METRIC_NAMES, *FURTHER_METRIC_NAMES):
        known = ", ".join((*METRIC_NAMES, *FURTHER_METRIC_NAMES))
        raise ParameterError(
            f"metric: expected one of {known} (or wd, kl, js), found {name!r}; use one of them"
        )
    return canonical


def get_metric(
    name: str,
    *,
    kernel: str = "multiscale",
    sigma: float | None = None,
    compatible: str = "correct",
    frequencies: FloatArray | None = None,
) -> Metric:
    """Metric of that name.

    Parameters
    ----------
    name
        One of `METRIC_NAMES` or a short form, or `tf-idf`.
    kernel
        For `mmd` alone: `multiscale` or `gaussian`.
    sigma
        For the Gaussian kernel of `mmd` alone: its bandwidth in token ids (see `median_sigma`).
    compatible
        `correct`, or `published` for the bins and the smoothing of the paper's code. It changes the two
        divergences; `wasserstein` is the same in both, and so are `tf-idf`, and `mmd`, whose sampling is not
        reproduced.
    frequencies
        For `tf-idf` alone: see `inverse_document_frequencies`.

    Raises
    ------
    ParameterError
        For unknown names, a bandwidth that is missing or not above zero, and one that no kernel uses.
    """
    canonical = canonical_metric_name(name)
    if compatible not in COMPATIBLE:
        raise ParameterError(
            f"compatible: expected correct or published, found {compatible!r}; use one of them"
        )
    if canonical == "wasserstein":
        return Wasserstein()
    if canonical == "kullback-leibler":
        return KullbackLeibler(cast(Compatible, compatible))
    if canonical == "jensen-shannon":
        return JensenShannon(cast(Compatible, compatible))
    if canonical == "tf-idf":
        if frequencies is None:
            raise ParameterError(
                "tf-idf: expected inverse document frequencies, found none; compute them from the bank's counts"
            )
        return TfIdf(frequencies)
    return MaximumMeanDiscrepancy(_get_kernel(kernel, sigma))


def _get_kernel(kernel: str, sigma: float | None) -> Kernel:
    if kernel not in KERNEL_NAMES:
        raise ParameterError(
            f"kernel: expected {' or '.join(KERNEL_NAMES)}, found {kernel!r}; use one of them"
        )
    if kernel == "multiscale":
        if sigma is not None:
            raise ParameterError(
                f"sigma: expected none for the multiscale kernel, found {sigma}; leave it out or use gaussian"
            )
        return MultiscaleKernel()
    if sigma is None or not math.isfinite(sigma) or sigma <= 0:
        raise ParameterError(
            f"sigma: expected a number above 0 for the gaussian kernel, found {sigma}; give it, or use the median"
        )
    return GaussianKernel(float(sigma))
