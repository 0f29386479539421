"""The way before: all predictions are stored as float32, then read again and written as folders."""

from __future__ import annotations

from pathlib import Path

from bankdb.bank import AdapterBank
from compute.approaches.options import PredictionOptions
from compute.cluster.options import Cluster
from compute.prediction.predict_all import predict_all


def store_and_save(
    bank: AdapterBank, options: PredictionOptions, folder: Path, cluster: Cluster, dtype: str = "source"
) -> None:
    predict_all(bank, options, cluster=cluster, store="float32").save(folder, dtype=dtype)
