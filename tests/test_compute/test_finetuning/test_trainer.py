"""Training steps against a bare loop of PyTorch and PEFT, and going on against going through."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bankdb.errors import AdapterError, ComputeError
from bankdb.peft.layout import AdapterLayout, layout_of_rank
from bankdb.peft.weights import load_adapter
from compute.combination.delta_shapes import DeltaForm
from compute.finetuning.trainer import Trainer, averaging_weight, rate_at, untrained
from compute.generation.labelled import LabelledExample
from tests.support.banks.tiny_bank import BASE, TINY

ADAPTER = TINY / "bank" / "adapters" / "records_city"
RATE = 2e-3
BATCHES = [
    [LabelledExample((1, 9, 30, 31, 2), 3), LabelledExample((1, 7, 2), 1)],
    [LabelledExample((1, 50, 60, 70, 80, 90, 100, 2), 2), LabelledExample((1, 44, 5, 6, 7, 2), 5)],
    [LabelledExample((1, 200, 2), 1), LabelledExample((1, 300, 301, 302, 2), 2)],
]


@pytest.fixture(scope="module")
def form() -> DeltaForm:
    found = load_adapter(ADAPTER)
    return DeltaForm(found.layout, found.config.alpha, found.config.use_rslora)


@pytest.fixture(scope="module")
def start() -> np.ndarray:
    return load_adapter(ADAPTER).vector


def base_model(dtype: str = "float32") -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(BASE, dtype=getattr(torch, dtype))


def trainer_of(form: DeltaForm, start: np.ndarray | None = None, rate: float = RATE, **model: Any) -> Trainer:
    made = Trainer(base_model(**model), form, "CAUSAL_LM", rate)
    if start is not None:
        made.begin(start)
    return made


def bare_loop(layout: AdapterLayout) -> tuple[np.ndarray, list[float]]:
    """What anybody would write: PEFT loads the folder, labels of -100 leave the prompts out."""
    import torch
    from peft import PeftModel

    model = PeftModel.from_pretrained(base_model(), ADAPTER, is_trainable=True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    losses = []
    for number, batch in enumerate(BATCHES, 1):
        width = max(len(example.ids) for example in batch)
        # Padded on the right, with an id that is masked.
        pad = [width - len(example.ids) for example in batch]
        ids = torch.tensor([[*one.ids, *[0] * more] for one, more in zip(batch, pad, strict=True)])
        mask = torch.tensor([[1] * len(one.ids) + [0] * more for one, more in zip(batch, pad, strict=True)])
        labels = torch.full_like(ids, -100)
        for row, example in enumerate(batch):
            stop = len(example.ids)
            labels[row, stop - example.answer : stop] = ids[row, stop - example.answer : stop]
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        # A quarter of the rate, then two, then three.
        optimizer.param_groups[0]["lr"] = RATE * number / 4
        optimizer.step()
        losses.append(float(loss.detach()))
    named = {
        name.replace(".default.", "."): parameter.detach().float().numpy()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return layout.flatten(named), losses


@pytest.mark.torch
def test_steps_are_those_of_a_bare_loop(form: DeltaForm, start: np.ndarray) -> None:
    expected, losses = bare_loop(form.layout)
    trainer = trainer_of(form, start)
    assert [trainer.step(batch) for batch in BATCHES] == pytest.approx(losses, rel=1e-4)
    moved = np.abs(expected - start).max()
    assert moved > 1e-3
    # AdamW divides by the size of a gradient: where that is nothing but rounding, a weight may go either way.
    difference = np.abs(trainer.state().vector - expected)
    assert np.quantile(difference, 0.99) < 0.02 * moved
    assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(expected - start)


@pytest.mark.torch
def test_going_on_is_going_through(form: DeltaForm, start: np.ndarray) -> None:
    through = trainer_of(form, start)
    states = [through.state()]
    for batch in BATCHES:
        through.step(batch)
        states.append(through.state())
    for step, state in enumerate(states):
        # Another trainer, as another process has it, and one that was elsewhere before.
        for other in (trainer_of(form), through):
            other.restore(state)
            assert other.steps == step
            for batch in BATCHES[step:]:
                other.step(batch)
            last = other.state()
            for name in ("vector", "average", "first", "second"):
                assert getattr(last, name).tobytes() == getattr(states[-1], name).tobytes()


@pytest.mark.torch
def test_the_adapter_is_an_average_of_iterates(form: DeltaForm, start: np.ndarray) -> None:
    """Polynomial decay with eta = 3 weighs iterate k by (k + 2) (k + 1) k: the recursion, unrolled."""
    trainer, other = trainer_of(form, start), trainer_of(form)
    assert trainer.vector().tobytes() == start.astype(np.float32).tobytes()
    iterates: list[np.ndarray] = []
    for batch in [*BATCHES, *BATCHES]:
        trainer.step(batch)
        iterates.append(trainer.state().vector.astype(np.float64))
        numbers = np.arange(1, len(iterates) + 1, dtype=np.float64)
        weights = (numbers + 2) * (numbers + 1) * numbers
        expected = np.tensordot(weights / weights.sum(), iterates, axes=1)
        np.testing.assert_allclose(trainer.vector(), expected, rtol=1e-5, atol=1e-7)
        # The loss that is looked back on is that of what is written, and steps go on from where they were.
        other.begin(trainer.vector())
        assert trainer.loss(batch) == other.loss(batch)
        assert trainer.state().vector.tobytes() == iterates[-1].astype(np.float32).tobytes()


@pytest.mark.torch
def test_only_a_start_that_changes_answers_is_warmed_up(form: DeltaForm, start: np.ndarray) -> None:
    """AdamW's first step moves each weight by the rate itself, which is therefore read off."""
    for vector, expected in ((start, RATE / 4), (untrained(form.layout, 0), RATE)):
        trainer = trainer_of(form, vector)
        trainer.step(BATCHES[0])
        moved = np.abs(trainer.vector() - vector)
        assert np.quantile(moved[moved > 0], 0.9) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("warmup", "expected"), [(3, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]), (0, [2.0] * 6)])
def test_the_rate_grows_evenly_and_then_stays(warmup: int, expected: list[float]) -> None:
    assert [rate_at(step, 2.0, warmup) for step in range(1, 7)] == expected


@pytest.mark.parametrize("step", [1, 2, 5, 100])
def test_an_average_begins_with_the_first_iterate_alone(step: int) -> None:
    assert averaging_weight(1) == 1.0
    assert 0 < averaging_weight(step) == pytest.approx(4 / (step + 3))


@pytest.mark.torch
def test_a_step_in_parts_is_the_step_but_for_rounding(form: DeltaForm, start: np.ndarray) -> None:
    whole, parts = trainer_of(form, start), trainer_of(form, start)
    for batch in BATCHES:
        assert parts.step(batch, 1) == pytest.approx(whole.step(batch), rel=1e-5)
    np.testing.assert_allclose(parts.vector(), whole.vector(), atol=1e-4)
    assert parts.vector().tobytes() != start.tobytes()


@pytest.mark.torch
def test_one_that_changes_nothing_has_the_base_models_loss(form: DeltaForm, start: np.ndarray) -> None:
    from compute.generation.labelled import AnswerLoss

    examples = [example for batch in BATCHES for example in batch]
    vector = untrained(form.layout, 3)
    assert trainer_of(form, vector).loss(examples) == pytest.approx(
        AnswerLoss(base_model()).mean(examples), rel=1e-6
    )
    assert trainer_of(form, start).loss(examples) != pytest.approx(
        AnswerLoss(base_model()).mean(examples), rel=1e-3
    )
    assert vector.tobytes() == untrained(form.layout, 3).tobytes()
    assert vector.tobytes() != untrained(form.layout, 4).tobytes()


@pytest.mark.torch
def test_what_changes_nothing_is_drawn_as_peft_draws_it(form: DeltaForm) -> None:
    """Kaiming uniform of slope sqrt 5: the same bounds and spread, in each module's own width."""
    made, drawn = trainer_of(form).vector(), untrained(form.layout, 0)
    for spec in form.layout.tensors:
        ours, peft = drawn[spec.columns], made[spec.columns]
        assert np.abs(ours).max() == pytest.approx(np.abs(peft).max(), rel=0.05, abs=1e-9)
        assert ours.std() == pytest.approx(peft.std(), rel=0.1, abs=1e-9)


@pytest.mark.torch
def test_another_rank_is_trained_too(form: DeltaForm) -> None:
    other = DeltaForm(layout_of_rank(form.layout, 3), 5.0, True)
    trainer = trainer_of(other, untrained(other.layout, 0))
    before = trainer.loss(BATCHES[0])
    for _ in range(5):
        trainer.step(BATCHES[0])
    assert trainer.loss(BATCHES[0]) < before
    assert trainer.vector().shape == (other.layout.size,)


@pytest.mark.torch
def test_in_bfloat16_the_adapter_stays_float32(form: DeltaForm, start: np.ndarray) -> None:
    trainer = trainer_of(form, start, dtype="bfloat16")
    assert trainer.vector().tobytes() == start.astype(np.float32).tobytes()
    trainer.step(BATCHES[0])
    stepped = trainer.vector()
    assert stepped.tobytes() != start.tobytes()
    # Values that bfloat16 has not: what a step adds is not rounded away.
    assert np.mean(stepped.astype(ml_dtypes.bfloat16).astype(np.float32) != stepped) > 0.9


@pytest.mark.torch
@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_a_loss_that_is_no_number_is_refused(form: DeltaForm, start: np.ndarray, spoilt: float) -> None:
    wrong = start.copy()
    wrong[5] = spoilt
    trainer = trainer_of(form, wrong)
    with pytest.raises(
        ComputeError, match=r"step 1: the loss is .*lower --learning-rate, or .*--train-dtype"
    ):
        trainer.step(BATCHES[0])
    assert trainer.steps == 0
    np.testing.assert_array_equal(trainer.vector(), wrong)
    with pytest.raises(ComputeError, match="the loss on held-out examples is nan after step 0"):
        trainer.loss(BATCHES[0])


@pytest.mark.torch
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("q_proj", "query", "cannot be adapted in this base model|expected .* by the bank's adapters"),
        ("layers.3.", "layers.9.", r"expected no such factor|found no such factor"),
    ],
)
def test_modules_that_the_model_has_not(form: DeltaForm, old: str, new: str, message: str) -> None:
    shapes = {spec.name.replace(old, new): spec.shape for spec in form.layout.tensors}
    targets = {name.replace(old, new) for name in form.layout.target_modules}
    layout = AdapterLayout.from_shapes(shapes, form.layout.rank, targets)
    with pytest.raises(AdapterError, match=message):
        trainer_of(dataclasses.replace(form, layout=layout))


@pytest.mark.torch
def test_a_model_of_other_shapes(form: DeltaForm) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    small = LlamaConfig(
        vocab_size=768,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    with pytest.raises(AdapterError, match=r"expected \(8, 96\) by the bank's adapters.*--model"):
        Trainer(AutoModelForCausalLM.from_config(small), form, "CAUSAL_LM", RATE)
