"""The report of a bank: gathered, and made into one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bankdb.arrays.durable import write_whole
from bankdb.bank import AdapterBank
from bankdb.errors import ConflictError, ParameterError
from bankdb.progress import Progress, SilentProgress
from bankdb.shown import html_summary, text_summary
from compute.approaches.options import PredictionOptions, each_way
from compute.approaches.registry import approaches
from compute.cluster.options import ClusterLike
from compute.prediction.ways import combinations, those_that_fit
from compute.reporting.evaluations import reported_evaluations
from compute.reporting.gather import gather
from compute.reporting.page.page import render
from compute.reporting.records import Report
from compute.reporting.sample import MOST_SHOWN


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ReportPage:
    """A report of a bank.

    Attributes
    ----------
    data
        What it shows: matrices, comparisons, evaluations.
    html
        The page: one file that needs no network.
    """

    data: Report
    html: str

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the page; return the file. Raises ConflictError if one is there and is not to be replaced."""
        target = Path(path)
        check_free(target, overwrite)
        write_whole(target, self.html)
        return target

    def __repr__(self) -> str:
        """Return what it is of, and its size."""
        return text_summary(*self._summary())

    def _repr_html_(self) -> str:
        return html_summary(*self._summary())

    def _summary(self) -> tuple[str, dict[str, object]]:
        data = self.data
        title = f"ReportPage of {len(data.adapters):,} adapters for {data.bank.base_model}"
        return title, {
            "ways compared": len(data.coefficients),
            "evaluations by generation": len(data.evaluations),
            "size": f"{len(self.html.encode()) / 1e6:.1f} MB",
        }


def report(
    bank: AdapterBank,
    out: str | Path | None = None,
    options: PredictionOptions | Sequence[PredictionOptions] | None = None,
    *,
    evaluations: Sequence[str] = (),
    title: str | None = None,
    overwrite: bool = False,
    command: str = "",
    cluster: ClusterLike = None,
    progress: Progress | None = None,
) -> ReportPage:
    """Make a page of what a bank holds and how ways of predicting compare on it.

    Distances and coefficients that are not stored yet are computed.

    Parameters
    ----------
    out
        The HTML file to write; None writes none.
    options
        One way of predicting, or several; default: all metrics and approaches but those that train a network.
    evaluations
        Identities of evaluations in the bank, or files that hold one; the newest in the bank if not given.
    title
        Of the page; made from the base model's name if not given.
    overwrite
        Replace a file that is there.
    command
        The command line that asked for it, to be shown at its end.
    cluster
        Options, a `distributed.Client`, or None: the default client if there is one, else threads.

    Raises
    ------
    ConflictError
        `out` is there and is not to be replaced.
    BankNotFoundError
        The bank is empty, or there is no such evaluation.
    ParameterError
        The bank has a single adapter, no way is given, or an evaluation is of another bank.
    PlanError, ComputeError, BankFormatError
        As `predict_all` has them.
    """
    if out is not None:
        check_free(Path(out), overwrite)
    _ = bank.layout
    shown = progress or SilentProgress()
    every = combinations("all", untrained())
    ways = those_shown(bank, every, shown) if options is None else _checked(each_way(options))
    scored = reported_evaluations(bank, evaluations)
    data = gather(bank, ways, evaluations=scored, cluster=cluster, progress=progress)
    page = ReportPage(data, render(data, title=title, command=command))
    if out is not None:
        page.save(out, overwrite=overwrite)
    return page


def those_shown(
    bank: AdapterBank, ways: Sequence[PredictionOptions], progress: Progress
) -> list[PredictionOptions]:
    """Return the ways of those that nobody asked for by name that a page of the bank shows; the rest is told."""
    fitting = those_that_fit(bank, ways, progress)
    if len(bank) <= MOST_SHOWN:
        return fitting
    kept = [way for way in fitting if way.how.quick]
    if gone := dict.fromkeys(way.approach for way in fitting if not way.how.quick):
        progress.note(
            f"left out of the report of a large bank: {', '.join(gone)}; --approach NAME asks for one"
        )
    return kept


def untrained() -> list[str]:
    """Return the approaches of a report by default: those that train no network, which takes minutes.

    Nor those of negative coefficients, for which its pictures have no colours.
    """
    return [approach.name for approach in approaches() if approach.of_matrices_alone and not approach.signed]


def _checked(ways: Sequence[PredictionOptions]) -> Sequence[PredictionOptions]:
    """Return the ways. Raises ParameterError for one that its pictures and tables cannot tell of."""
    for way in ways:
        if way.how.signed or not way.merge_method.is_linear:
            what = way.approach if way.how.signed else f"merge {way.merge}"
            raise ParameterError(
                f"report: pictures are of coefficients from 0 on, errors of weighted sums, {what} found; leave it out, "
                "and show what an evaluation of it found (`bank evaluate`)"
            )
    return ways


def check_free(path: Path, overwrite: bool) -> None:
    """Raise ConflictError if a file is there and is not to be replaced."""
    if (path.is_file() or path.is_dir()) and not overwrite:
        raise ConflictError(f"{path}: already there; choose another place, or replace it by overwrite")
