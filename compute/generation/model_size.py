"""How large a base model is, by the headers of its files alone, and what its use takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bankdb.errors import BankError, one_line
from compute.generation.base_model import config_of, weight_files

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Values that the backward pass reads, for each that goes into or comes out of a linear layer; and for each logit.
_KEPT_VALUES, _KEPT_LOGITS = 1.6, 4
# Linear layers of a layer of the usual models: of them, keys and values are two.
_OF_A_LAYER = 7


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The base model's weights, by the headers of its files.

    Attributes
    ----------
    parameters
        Their number.
    linear
        Shapes of weights that are matrices, and how often each occurs; the embedding is not among them.
    vocabulary
        Rows of the embedding.
    cache
        Numbers that are kept of each token that was read: keys and values of all layers.
    """

    parameters: int
    linear: tuple[tuple[tuple[int, int], int], ...]
    vocabulary: int
    cache: int

    def example_bytes(self, tokens: int, answer: int, dtype: str) -> int:
        """Return the bytes, roughly, that training on an example of so many tokens keeps until the backward pass."""
        width = sum((rows + columns) * count for (rows, columns), count in self.linear)
        kept = _KEPT_VALUES * tokens * width * BYTES[dtype]
        return int(kept + _KEPT_LOGITS * 4 * answer * self.vocabulary)

    def answer_bytes(self, tokens: int, rows: int, dtype: str) -> int:
        """Return the bytes, roughly, of a batch that is answered: so many tokens of each row, the answer's included.

        Keys and values, a copy of the largest layer's and what that layer computes, and a row's logits twice.
        """
        widest = max(max(shape) for shape, _ in self.linear)
        values = tokens * (self.cache + 4 * widest) * BYTES[dtype]
        return rows * (values + 8 * self.vocabulary)


def model_size(folder: Path) -> ModelSize:
    """Return the size of a base model from the headers of its files.

    Raises
    ------
    BankError
        A file is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    shapes: list[tuple[int, ...]] = []
    for name in weight_files(folder):
        try:
            with safe_open(folder / name, framework="np") as file:
                shapes += [tuple(file.get_slice(key).get_shape()) for key in file.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise BankError(
                f"{folder / name}: expected weights in safetensors, found something else ({one_line(error)}); copy "
                "the model again"
            ) from error
    matrices = Counter((shape[0], shape[1]) for shape in shapes if len(shape) == 2)
    if not matrices:
        raise BankError(
            f"{folder}: expected a language model, found no matrices among its weights; pass --model"
        )
    vocabulary = max(max(shape) for shape in matrices)
    linear = {shape: count for shape, count in matrices.items() if vocabulary not in shape} or matrices
    parameters = sum(_product(shape) for shape in shapes)
    cache = _cache(folder) or sum(min(shape) * count for shape, count in linear.items()) * 2 // _OF_A_LAYER
    return ModelSize(parameters, tuple(sorted(linear.items())), vocabulary, cache)


def _cache(folder: Path) -> int | None:
    """Return the numbers of keys and values of a token, by the model's configuration; None where it does not tell."""
    config = config_of(folder)

    def first(*names: str) -> int | None:
        found = (config.get(name) for name in names)
        return next((one for one in found if type(one) is int and one > 0), None)

    layers, heads = first("num_hidden_layers", "n_layer"), first("num_attention_heads", "n_head")
    width, kept = first("hidden_size", "n_embd"), first("num_key_value_heads")
    if layers is None or heads is None or width is None:
        return None
    return 2 * layers * (kept or heads) * (first("head_dim") or width // heads)


def _product(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
