"""The runtime part for GPUs on a machine without one: what is called, in which order, and what happens when a call
fails.  Kernels run from their printed text, so layers that share one (`targets.cuda.share`) are run too."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cuda_host import BACKWARDS, FakeDriver, compile_driver, install, needs_gcc
from op_cases import FAMILIES, Cases, samples

from passes.lower.plan_memory import plan_program
from qcompile.errors import DeviceError
from qcompile.ir import Array, Graph
from qcompile.semantics import interp
from targets.cuda import driver, executable
from targets.cuda.backend import CudaBackend
from targets.cuda.executable import CudaExecutable
from targets.cuda.target import CUDA_SM_80

pytestmark = needs_gcc


@pytest.fixture(scope="session")
def driver_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def fake(driver_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    found = install(monkeypatch, driver_path)
    found.device(1, 80)
    found.limit(1 << 34)
    found.fail("", 0)
    yield found
    gc.collect()
    found.forget()


def network(family: str) -> tuple[Graph, dict[str, Array]]:
    cases = Cases()
    FAMILIES[family](cases)
    graph = cases.graph()
    return graph, samples(graph)


def built(family: str, folder: Path) -> tuple[Graph, dict[str, Array], CudaExecutable]:
    graph, inputs = network(family)
    backend = CudaBackend(CUDA_SM_80)
    backend.build(plan_program(graph, CUDA_SM_80), folder)
    return graph, inputs, backend.load(folder, graph)


def differing(graph: Graph, inputs: dict[str, Array], found: list[Array]) -> list[str]:
    expected = interp.run(graph, inputs)
    return [o.name for o, y in zip(graph.outputs, found, strict=True) if not np.array_equal(y, expected[o.name])]


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_interpreter(family: str, fake: FakeDriver, tmp_path: Path) -> None:
    graph, inputs, loaded = built(family, tmp_path)
    assert differing(graph, inputs, loaded.run(list(inputs.values()))) == []


def test_order_of_threads_does_not_matter(fake: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inputs, loaded = built("movement", tmp_path)
    monkeypatch.setenv(BACKWARDS, "1")
    assert differing(graph, inputs, loaded.run(list(inputs.values()))) == []


def test_calls(fake: FakeDriver, tmp_path: Path) -> None:
    """One graph for each batch size, launched as one; everything goes through one stream and is waited for once."""
    graph, inputs, loaded = built("pool", tmp_path)
    launches = len(loaded._launches)
    samples_ = list(inputs.values())
    fake.forget()
    first = loaded.run(samples_)
    calls = fake.log()
    begin, end = calls.index("cuStreamBeginCapture_v2"), calls.index("cuStreamEndCapture")
    assert set(calls[begin + 1 : end]) == {"cuLaunchKernel"} and end - begin - 1 == launches
    assert calls.count("cuStreamSynchronize") == 1 and calls[-2] == "cuStreamSynchronize"
    fake.forget()
    second = loaded.run(samples_)
    again = fake.log()
    inner = ["cuMemcpyHtoDAsync_v2"] * len(graph.inputs) + ["cuGraphLaunch"]
    inner += ["cuMemcpyDtoHAsync_v2"] * len(graph.outputs) + ["cuStreamSynchronize"]
    assert again == ["cuCtxPushCurrent_v2", *inner, "cuCtxPopCurrent_v2"]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_batch_sizes(fake: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of samples gives what single samples give; the memory of few sizes is kept."""
    monkeypatch.setattr(executable, "_MOST_SAMPLES", 6)
    graph, inputs, loaded = built("pool", tmp_path)
    many = [np.concatenate([x, x, x[:1]]) for x in inputs.values()]
    single = [loaded.run([x[i : i + 1] for x in many]) for i in range(len(many[0]))]
    before = fake.live()
    for count in (0, 1, 2, 3, 4, 5, 6, 9):
        found = loaded.run([x[:count] for x in many])
        for port in range(len(graph.outputs)):
            expected = [one[port] for one in single[:count]]
            assert np.array_equal(found[port], np.concatenate(expected) if expected else found[port][:0])
            assert len(found[port]) == count
    memories = len(loaded._sizes)
    assert fake.live() <= before + (executable._KEPT_BATCHES - 1) * (memories + 1)


def test_everything_is_given_back(fake: FakeDriver, tmp_path: Path) -> None:
    gc.collect()
    before = fake.live()
    _, inputs, loaded = built("pool", tmp_path)
    loaded.run(list(inputs.values()))
    loaded.measure(1, 3)
    assert fake.live() > before
    del loaded
    gc.collect()
    assert fake.live() == before


def test_several_artifacts_and_threads(fake: FakeDriver, tmp_path: Path) -> None:
    """Threads other than the one that loaded, and several at once, give what one gives."""
    graph, inputs, loaded = built("pool", tmp_path / "a")
    other_graph, other_inputs, other = built("movement", tmp_path / "b")
    wrong: list[object] = []

    def work() -> None:
        for _ in range(3):
            wrong.extend(differing(graph, inputs, loaded.run(list(inputs.values()))))
            wrong.extend(differing(other_graph, other_inputs, other.run(list(other_inputs.values()))))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_full_memory(fake: FakeDriver, tmp_path: Path) -> None:
    graph, inputs, loaded = built("pool", tmp_path)
    fake.limit(1)
    with pytest.raises(DeviceError, match="out of memory") as error:
        loaded.run(list(inputs.values()))
    assert "fewer samples" in str(error.value.hint)
    fake.limit(1 << 34)
    assert differing(graph, inputs, loaded.run(list(inputs.values()))) == []


@pytest.mark.parametrize(
    "call", ["cuModuleLoadData", "cuModuleGetFunction", "cuMemAlloc_v2", "cuStreamCreate", "cuMemcpyHtoDAsync_v2"]
)
def test_failures_of_loading(call: str, fake: FakeDriver, tmp_path: Path) -> None:
    built("pool", tmp_path)
    gc.collect()
    before = fake.live()
    fake.fail(call, 2)
    graph, _ = network("pool")
    with pytest.raises(DeviceError, match=call):
        CudaBackend(CUDA_SM_80).load(tmp_path, graph)
    gc.collect()
    assert fake.live() == before


@pytest.mark.parametrize(
    "call",
    [
        "cuMemAlloc_v2", "cuMemsetD8Async", "cuStreamBeginCapture_v2", "cuLaunchKernel", "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags", "cuMemcpyHtoDAsync_v2", "cuGraphLaunch", "cuMemcpyDtoHAsync_v2",
        "cuStreamSynchronize",
    ],
)  # fmt: skip
def test_failures_of_running(call: str, fake: FakeDriver, tmp_path: Path) -> None:
    """An error is reported with the call's name, and does not spoil the next run."""
    graph, inputs, loaded = built("pool", tmp_path)
    fake.fail(call, 700)
    with pytest.raises(DeviceError, match=f"{call}: an illegal memory access"):
        loaded.run(list(inputs.values()))
    assert differing(graph, inputs, loaded.run(list(inputs.values()))) == []


def test_measures(fake: FakeDriver, tmp_path: Path) -> None:
    _, _, loaded = built("pool", tmp_path)
    whole = loaded.measure(1, 5)
    assert (whole.median, whole.runs) == (0.5e-3, 5)
    graph, _ = network("fused")
    program = plan_program(graph, CUDA_SM_80)
    backend = CudaBackend(CUDA_SM_80)
    works = [(kernel, program) for kernel in program.kernels[:3]]
    fake.forget()
    found = backend.measure(works, 1)
    assert [m.median for m in found] == [0.5e-3 / executable._REPEATS] * 3
    assert fake.log().count("cuLaunchKernel") == 3 * executable._REPEATS


def test_older_device_is_refused(fake: FakeDriver, tmp_path: Path) -> None:
    graph, _, _ = built("pool", tmp_path)
    fake.device(1, 75)
    with pytest.raises(DeviceError, match=r"sm_75, older than what the artifact was built for \(sm_80\)"):
        CudaBackend(CUDA_SM_80).load(tmp_path, graph)


def test_driver_without_device(fake: FakeDriver, tmp_path: Path) -> None:
    fake.device(0, 80)
    with pytest.raises(DeviceError, match="no GPU"):
        driver.device()
