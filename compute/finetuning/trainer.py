"""A base model with a LoRA adapter in it that is trained on answers: PEFT's model, AdamW, nothing of a bank."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import AdapterError, ComputeError, listed
from bankdb.peft.config import render_config
from bankdb.peft.layout import AdapterLayout
from bankdb.progress import quiet_loggers
from compute.combination.delta_shapes import DeltaForm
from compute.generation.labelled import AnswerLoss, LabelledExample, batches_by_length

if TYPE_CHECKING:
    import torch

Vector = NDArray[np.float32]

_BETAS, _CLIP = (0.9, 0.999), 1.0
# Both chosen with the learning rate, by the loss on generated tasks that are in no bank.
_ETA = 3
_WARMUP = 3
OPTIMIZER = {
    "name": "AdamW",
    "betas": list(_BETAS),
    "weight_decay": 0.0,
    "gradient_norm": _CLIP,
    "averaged": {"polynomial_decay": _ETA},
}
"""What provenance tells of it."""
_HELD_OUT_BATCH = 8


@dataclass(frozen=True, slots=True, eq=False)
class TrainingState:
    """All that training goes on from.

    Attributes
    ----------
    step
        Steps done.
    warmup
        Steps of a lower rate that the run begins with: see `warmup_steps`.
    vector
        float32, shape (p,): the last iterate in its layout, from which the next step is taken.
    average
        Likewise: the average of all iterates, which is the adapter; the start before the first step.
    first, second
        Likewise: AdamW's means of gradients and of their squares; zeros before the first step.
    """

    step: int
    warmup: int
    vector: Vector
    average: Vector
    first: Vector
    second: Vector


def averaging_weight(step: int) -> float:
    """Return the weight of the iterate after a step, from 1 on, in the average of all up to there.

    (eta + 1) / (step + eta), with eta = 3: polynomial-decay averaging (Shamir and Zhang 2013, arXiv 1212.1824, eq. 4),
    which takes no number of steps, so that a longer run goes through every shorter one.
    """
    return (_ETA + 1) / (step + _ETA)


def warmup_steps(layout: AdapterLayout, start: Vector) -> int:
    """Return how many steps from a start have a lower rate: 3, or none from one that changes nothing (all B zero).

    AdamW's first steps move every weight by the learning rate, whichever way its gradient points, before it knows
    which of them matter: a start that answers well already loses by that, one that changes nothing cannot.
    """
    factors = (spec for spec in layout.tensors if spec.name.endswith(".lora_B.weight"))
    return _WARMUP if any(np.any(start[spec.columns]) for spec in factors) else 0


def rate_at(step: int, learning_rate: float, warmup: int) -> float:
    """Return the learning rate of a step, from 1 on: it grows evenly over the steps of warm-up, and is full after."""
    return learning_rate * min(1.0, step / (warmup + 1))


class Trainer:
    """A base model whose LoRA adapter is trained in place.

    Steps are taken from iterate to iterate; the adapter is their average, which varies less than the last of them.

    Parameters
    ----------
    model
        The base model, as transformers loads it; it is changed: PEFT puts the adapter in.
    form
        Modules, rank and scaling of the adapter.
    task_type
        As PEFT names it.
    learning_rate
        Of AdamW, after the steps of warm-up; no weight decay, gradients clipped to a norm of 1.

    Raises
    ------
    AdapterError
        The adapter does not fit the model.
    """

    def __init__(self, model: Any, form: DeltaForm, task_type: str | None, learning_rate: float) -> None:
        import torch

        self.layout = form.layout
        self._model = _with_adapter(model, form, task_type)
        named = {
            name.replace(".default.", "."): parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }
        _check_names(named, form)
        self._parameters = [named[spec.name] for spec in self.layout.tensors]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=learning_rate, betas=_BETAS, weight_decay=0.0
        )
        self._rate, self._warmup = learning_rate, 0
        self._loss = AnswerLoss(self._model, self._model.get_base_model().forward)
        self._average = [parameter.detach().clone() for parameter in self._parameters]
        self._steps = 0

    @property
    def steps(self) -> int:
        """Steps done."""
        return self._steps

    def step(self, batch: Sequence[LabelledExample], largest: int | None = None) -> float:
        """Do one step on the mean loss over the answers' tokens of a batch; return that loss, in nats.

        Parameters
        ----------
        largest
            Examples that are read at once: gradients are summed, and memory is that of so many. None is all.

        Raises
        ------
        ComputeError
            The loss or a gradient is not finite; the adapter is as it was.
        """
        import torch

        answers = sum(example.answer for example in batch)
        self._optimizer.zero_grad()
        loss = 0.0
        for part in batches_by_length(batch, largest or len(batch)):
            mean = self._loss.total(part) / answers
            mean.backward()  # type: ignore[no-untyped-call]
            loss += float(mean.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, _CLIP))
        if not np.isfinite([loss, norm]).all():
            raise ComputeError(
                f"step {self._steps + 1}: the loss is {loss:.3g} and the gradient's norm {norm:.3g}, expected numbers; "
                "lower --learning-rate, or give --train-dtype float32"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = rate_at(self._steps + 1, self._rate, self._warmup)
        self._optimizer.step()
        self._steps += 1
        weight = averaging_weight(self._steps)
        for average, parameter in zip(self._average, self._parameters, strict=True):
            average.lerp_(parameter.detach(), weight)
        return loss

    def loss(self, examples: Sequence[LabelledExample]) -> float:
        """Return the adapter's mean loss over the answers' tokens of examples, in nats.

        Raises
        ------
        ComputeError
            It is no finite number.
        """
        with self._averaged():
            found = self._loss.mean(examples, _HELD_OUT_BATCH)
        if not np.isfinite(found):
            raise ComputeError(
                f"the loss on held-out examples is {found} after step {self._steps}, expected a number; lower "
                "--learning-rate, or give --train-dtype float32"
            )
        return found

    def vector(self) -> Vector:
        """Return the adapter, float32 of shape (p,): the average of the iterates, or the start before any."""
        return self._flat(self._average)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Have the average in the model, in place of the last iterate."""
        iterates = [parameter.data for parameter in self._parameters]
        try:
            for parameter, average in zip(self._parameters, self._average, strict=True):
                parameter.data = average
            yield
        finally:
            for parameter, iterate in zip(self._parameters, iterates, strict=True):
                parameter.data = iterate

    def state(self) -> TrainingState:
        """Return all that `restore` needs."""
        import torch

        kept = [self._optimizer.state.get(parameter, {}) for parameter in self._parameters]
        first, second = (
            self._flat(
                [
                    state.get(key, torch.zeros_like(parameter))
                    for state, parameter in zip(kept, self._parameters, strict=True)
                ]
            )
            for key in ("exp_avg", "exp_avg_sq")
        )
        last = self._flat([parameter.detach() for parameter in self._parameters])
        return TrainingState(self._steps, self._warmup, last, self.vector(), first, second)

    def restore(self, state: TrainingState) -> None:
        """Go on from a state of this model, layout and learning rate."""
        import torch

        kept = (state.vector, state.average, state.first, state.second)
        parts = [self.layout.unflatten(values) for values in kept]
        for spec, parameter, average in zip(
            self.layout.tensors, self._parameters, self._average, strict=True
        ):
            last, mean, first, second = (
                torch.from_numpy(np.array(part[spec.name])).to(parameter.device) for part in parts
            )
            parameter.data.copy_(last)
            average.copy_(mean)
            self._optimizer.state[parameter] = (
                {}
                if state.step == 0
                else {
                    "step": torch.tensor(float(state.step)),
                    "exp_avg": first,
                    "exp_avg_sq": second,
                }
            )
        if state.step == 0:
            self._optimizer.state.clear()
        self._steps, self._warmup = state.step, state.warmup

    def begin(self, vector: Vector) -> None:
        """Begin anew from an adapter, at step 0."""
        zeros = np.zeros_like(vector)
        self.restore(TrainingState(0, warmup_steps(self.layout, vector), vector, vector, zeros, zeros))

    def _flat(self, tensors: Sequence[torch.Tensor]) -> Vector:
        named = {
            spec.name: tensor.float().cpu().numpy()
            for spec, tensor in zip(self.layout.tensors, tensors, strict=True)
        }
        return self.layout.flatten(named)


def untrained(layout: Any, seed: int) -> Vector:
    """Return an adapter that changes nothing: B of zeros, A as PEFT draws it (Kaiming uniform of slope sqrt 5).

    That is uniform within 1 / sqrt(d_in), drawn by NumPy, so that it needs no model.
    """
    generator = np.random.default_rng([seed, 2])
    vector = np.zeros(layout.size, dtype=np.float32)
    for spec in layout.tensors:
        if spec.name.endswith(".lora_A.weight"):
            bound = 1 / np.sqrt(spec.shape[1])
            vector[spec.columns] = generator.uniform(-bound, bound, spec.size)
    return vector


def _with_adapter(model: Any, form: DeltaForm, task_type: str | None) -> Any:
    from peft import LoraConfig, get_peft_model

    text = render_config("base", form.layout, (form.alpha, form.use_rslora), task_type)
    settings = {key: value for key, value in json.loads(text).items() if key != "peft_type"}
    settings |= {"inference_mode": False, "base_model_name_or_path": None}
    with quiet_loggers("peft"), warnings.catch_warnings():
        # PEFT calls what newer versions of transformers name otherwise.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return get_peft_model(model, LoraConfig(**settings))
        except ValueError as error:
            raise AdapterError(
                f"the bank's modules {listed(form.layout.target_modules)} cannot be adapted in this base model "
                f"({error}); pass the bank's base model with --model"
            ) from error


def _check_names(named: dict[str, Any], form: DeltaForm) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
    expected = {spec.name: spec.shape for spec in form.layout.tensors}
    if shapes != expected:
        differing = sorted(
            name for name in shapes.keys() | expected if shapes.get(name) != expected.get(name)
        )
        first = differing[0]
        raise AdapterError(
            f"{listed(differing, 3)}: expected {expected.get(first, 'no such factor')} by the bank's adapters, found "
            f"{shapes.get(first, 'no such factor')} in the base model; pass the bank's base model with --model"
        )
