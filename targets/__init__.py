"""Where an exported network runs: Loihi (simulated) and ONNX Runtime."""

from spikeport.targets.base import Target, find_target, target_names
from spikeport.targets.compiling import (
    COMPATIBILITY_FILE,
    NET_FILE,
    PROGRAM_FILE,
    check,
    compile,
    compile_model,
    default_folder,
)
from spikeport.targets.loihi.against_float import require_own
from spikeport.targets.loihi.qat import prepare_qat
from spikeport.targets.record import SpikeRecord, differences
from spikeport.targets.simulating import simulate

__all__ = [
    "COMPATIBILITY_FILE",
    "NET_FILE",
    "PROGRAM_FILE",
    "SpikeRecord",
    "Target",
    "check",
    "compile",
    "compile_model",
    "default_folder",
    "differences",
    "find_target",
    "prepare_qat",
    "require_own",
    "simulate",
    "target_names",
]
