"""What the tests of the compiled Loihi neurons share."""

from collections.abc import Iterator

import pytest

from spikeport.targets.loihi import neurons

LEVELS = ("portable", "avx2", "avx512")


@pytest.fixture(params=[*LEVELS, "torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each instruction set of the compiled loops, and torch."""
    if request.param == "torch":
        monkeypatch.setenv("SPIKEPORT_KERNELS", "reference")
        yield
        return
    library = neurons.library()
    assert library is not None, "the C++ extension is not built: pip install -e ."
    use = library.spikeport_loihi_use
    if not use(LEVELS.index(request.param)):
        pytest.skip(f"this processor has no {request.param}")
    yield
    assert any(use(level) for level in (2, 1, 0))
