"""The server of `fault_driver`, whose commands begin with torch and PEFT imported too."""

from __future__ import annotations

from tests.support.faults.fault_driver import PRELOADED, FaultServer, run_command
from tests.support.faults.fork_server import serve

# Nothing of these has started threads before it computes.
TRAINING = (
    "compute.finetuning.finetune",
    "peft",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)


class TrainingServer(FaultServer):
    """The server's other end, for tests."""

    script = __file__


if __name__ == "__main__":
    serve((*PRELOADED, *TRAINING), run_command)
