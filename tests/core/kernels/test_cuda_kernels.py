"""The CUDA kernels and their launches, executed on the CPU: the source of the GPU kernels compiled by g++ (see
emulation/emulator.h), the launches as they would be queued, against the CPU kernels and the reference.

What only a GPU can show is not shown here: NVRTC's code at work, streams, speed.
"""

import ctypes
import itertools
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest
import torch

from spikeport.core import kernels
from spikeport.core.kernels import cpu, cuda_compile, norm_ops, ops
from spikeport.core.kernels.cuda_launches import lif_launches, moments_launches, norm_launches
from spikeport.core.kernels.parameters import Norm

EMULATION = Path(__file__).with_name("emulation")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Emulator:
    """Collects launches while ``recording``; compiles all their kernels at once, then executes launches."""

    def __init__(self, folder):
        self.folder, self.expressions, self.library = folder, {}, None

    def need(self, launches):
        for launch in launches:
            name = f"k{zlib.crc32(launch.expression.encode()):08x}"
            self.expressions[launch.source, launch.expression] = name

    def build(self):
        for source in ("lif.cu", "norm_lif.cu"):
            wrappers = [
                f'extern "C" int {name}(unsigned x, unsigned y, unsigned block, int count, void** values) {{\n'
                f"    if (emulator::count({expression}) != count) return 1;\n"
                f"    emulator::launch({expression}, x, y, block, values);\n    return 0;\n}}\n"
                for (own, expression), name in self.expressions.items()
                if own == source
            ]
            text = f'#include "emulator.h"\n#include "{source}"\n' + "".join(wrappers)
            (self.folder / f"{source}.cpp").write_text(text)
        flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-w"]
        paths = [f"-I{EMULATION}", f"-I{cuda_compile.FOLDER}"]
        self.library = {}
        jobs = {}
        for source in ("lif.cu", "norm_lif.cu"):
            target = self.folder / f"{source}.so"
            jobs[source] = subprocess.Popen(["g++", *flags, *paths, str(self.folder / f"{source}.cpp"), "-o", target])
        for source, job in jobs.items():
            assert job.wait(timeout=120) == 0
            self.library[source] = ctypes.CDLL(str(self.folder / f"{source}.so"))

    def execute(self, launches):
        for launch in launches:
            values = [ctypes.c_longlong(a) if isinstance(a, int) else a for a in launch.arguments]
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
            function = getattr(self.library[launch.source], self.expressions[launch.source, launch.expression])
            assert function(*launch.grid, launch.block, len(values), pointers) == 0


def lif_cases():
    """(code, x, setting, tensors) that together need every branch of the kernels of lif.cu."""
    torch.manual_seed(0)
    # 520 neurons: vectors of 16 bytes, more than a block; 7: no vectors; 20 steps: not unrolled
    for steps, shape in itertools.product((1, 4, 20), ((520,), (7,))):
        for dtype, constant, full in ((torch.float32, False, True), (torch.bfloat16, True, False)):
            yield from _cases(steps, shape, dtype, constant, full, surrogate=0)
    for dtype, surrogate in ((torch.float16, 3), (torch.float64, 2), (torch.float32, 1), (torch.float32, 4)):
        yield from _cases(3, (64,), dtype, False, True, surrogate)
        yield from _cases(16, (24,), dtype, False, False, surrogate)


def _cases(steps, shape, dtype, constant, full, surrogate):
    state = torch.float64 if dtype == torch.float64 else torch.float32
    neuron = kernels.Neuron(1.7, 0.9, -0.1, alpha=1.5).constants
    setting = kernels.Setting(steps, constant, neuron, surrogate, detach_reset=steps == 3)
    sequence = (steps, *shape)
    given = shape if constant else sequence
    x = (torch.randn(given) * 2 + 0.5).to(dtype)
    draw = lambda size, kind: torch.randn(size).to(kind)  # noqa: E731
    forward = {"spikes": torch.empty(sequence, dtype=dtype)}
    backward = {"grad_spikes": draw(sequence, dtype), "grad_x": torch.empty(given, dtype=dtype)}
    if full:
        forward |= {"state": draw(shape, state), "membrane": torch.empty(shape, dtype=state)}
        backward |= {"state": forward["state"], "grad_membrane": draw(shape, state)}
        backward |= {"grad_state": torch.empty(shape, dtype=state)}
    second = backward | {"grad2_x": draw(given, dtype), "grad2_spikes": torch.empty(sequence, dtype=dtype)}
    second |= {"grad2_membrane": torch.empty(shape, dtype=state)}
    if full:
        second |= {"grad2_state": draw(shape, state)}
    yield from ((0, x, setting, forward), (1, x, setting, backward), (2, x, setting, second))
    if full:
        yield 1, x, setting, backward | {"grad_spikes": None}


NORM_SHAPES = ((2, 3, 4, 5), (2, 8, 4, 4), (3, 64, 3, 3), (2, 160, 2, 2))
POOLED_SHAPES = ((2, 8, 4, 6), (3, 1, 6, 4), (2, 22, 2, 2), (2, 160, 2, 2))


def norm_cases():
    """(x, setting, batch statistics, pooled) that together need every branch of the kernels of norm_lif.cu."""
    torch.manual_seed(1)
    layouts = [(shape, last, False) for shape in NORM_SHAPES for last in (False, True)]
    for shape, last, pooled in layouts + [(shape, True, True) for shape in POOLED_SHAPES]:
        for steps, constant, dtype, batch in (
            (4, False, torch.float32, True),
            (3, True, torch.float32, False),
            (2, False, torch.bfloat16, True),
        ):
            x = (torch.randn(*(() if constant else (steps,)), *shape) * 3 + 4).to(dtype)
            if last:
                dimension = x.dim() - 3
                x = x.movedim(dimension, -1).contiguous().movedim(-1, dimension)
            yield x, kernels.Neuron(detach_reset=batch).setting(steps, constant), batch, pooled


def norm_tensors(x, setting, pooled):
    """x, channels, inner, pair, and all tensors of the three passes."""
    x, layout = norm_ops.with_dense_steps(x, setting.constant)
    channels, inner = norm_ops._channels(layout)
    pair = 2 * layout.shape[3] * channels if pooled else 0
    new = lambda: torch.randn(channels)  # noqa: E731
    tensors = {"weight": new(), "bias": new(), "mean": new() + 4, "variance": new().square() + 8}
    tensors |= {"grad_weight": new(), "grad_bias": new(), "grad_x": torch.empty_like(x)}
    sequence = norm_ops._spikes(layout, norm_ops.Options(1e-5, True, pooled)).over(setting.steps)
    tensors["spikes"] = sequence.new(x.dtype, x.device)
    tensors["grad_spikes"] = sequence.arrange(torch.randn(sequence.shape), x.dtype)
    return x, channels, 1 if pooled else inner, pair, tensors


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    assert shutil.which("g++"), "g++ is needed, as for the package's extension"
    emulator = Emulator(tmp_path_factory.mktemp("emulation"))
    for code, x, setting, tensors in lif_cases():
        emulator.need(lif_launches(code, x, setting, tensors))
    for x, setting, batch, pooled in norm_cases():
        x, channels, inner, pair, tensors = norm_tensors(x, setting, pooled)
        emulator.need(moments_launches(x, setting, Norm(channels, inner), tensors["mean"], tensors["variance"]))
        for code in (0, 1):
            emulator.need(norm_launches(code, x, setting, Norm(channels, inner, 1e-5, batch, pair), tensors))
    emulator.build()
    return emulator


def test_lif_is_the_cpu_kernels(emulator, kernel):
    for code, x, setting, tensors in lif_cases():
        expected = {name: None if t is None else t.clone() for name, t in tensors.items()}
        cpu.lif(code, x, setting, **expected)
        emulator.execute(lif_launches(code, x, setting, tensors))
        for name, tensor in tensors.items():
            if tensor is not None:
                # The same operations in the same order: the same bits.
                torch.testing.assert_close(
                    tensor, expected[name], rtol=0, atol=0, msg=f"{name}, pass {code}, {setting}"
                )


def test_norm_lif_is_the_cpu_kernels(emulator, kernel, distance):
    for x, setting, batch, pooled in norm_cases():
        x, channels, inner, pair, tensors = norm_tensors(x, setting, pooled)
        expected = {name: t.clone(memory_format=torch.preserve_format) for name, t in tensors.items()}
        for kind, own in (("emulated", tensors), ("cpu", expected)):
            for moment in ("mean", "variance"):
                own[moment] = own[moment].clone()
            if kind == "cpu":
                cpu.norm_moments(x, setting, Norm(channels, inner), own["mean"], own["variance"])
                for code in (ops.FORWARD, ops.BACKWARD):
                    cpu.norm(code, x, setting, Norm(channels, inner, 1e-5, batch, pair), **own)
            else:
                emulator.execute(moments_launches(x, setting, Norm(channels, inner), own["mean"], own["variance"]))
                for code in (ops.FORWARD, ops.BACKWARD):
                    emulator.execute(norm_launches(code, x, setting, Norm(channels, inner, 1e-5, batch, pair), own))
        for name in ("mean", "variance", "spikes", "grad_x", "grad_weight", "grad_bias"):
            limit = 1e-2 if x.dtype == torch.bfloat16 and name == "grad_x" else 1e-5
            assert distance(tensors[name].double(), expected[name].double()) <= limit, (name, setting, x.shape)


def test_a_launch_reads_16_bytes_where_it_may():
    setting = kernels.Neuron().setting(4, False)

    def width(x, **tensors):
        (launch,) = lif_launches(0, x, setting, {"spikes": torch.empty_like(x), **tensors})
        return int(launch.expression.split(", ")[1])

    assert width(torch.zeros(4, 64)) == 4
    assert width(torch.zeros(4, 64, dtype=torch.bfloat16)) == 8
    assert width(torch.zeros(4, 66)) == 2  # not a multiple
    assert width(torch.zeros(4 * 64 + 1)[1:].view(4, 64)) == 1  # an odd address
    assert width(torch.zeros(4, 72)[:, 2:66]) == 2  # rows that are not aligned
    assert width(torch.zeros(4, 64, dtype=torch.bfloat16), state=torch.zeros(66)[2:]) == 2


def test_every_neuron_has_a_thread():
    for neurons in (1, 255, 256, 257, 1024, 4096, 4100):
        setting = kernels.Neuron().setting(2, False)
        x = torch.zeros(2, neurons)
        (launch,) = lif_launches(0, x, setting, {"spikes": torch.empty_like(x)})
        width = int(launch.expression.split(", ")[1])
        assert 0 <= launch.grid[0] * launch.block * width - neurons < launch.block * width
