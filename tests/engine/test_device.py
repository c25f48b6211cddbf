"""Which backend a device stands for, on machines of every kind."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from roseinfer.core.errors import DeviceError
from roseinfer.engine import device as device_module
from roseinfer.engine.device import choose_backend, has_driver

INTERPRETED = {"TRITON_INTERPRET": "1"}

Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """`machine(...)` is what there is from now on."""

    def set_up(*, has_driver: bool = False, modules: tuple[str, ...] = (), has_cuda_build: bool = True) -> None:
        (tmp_path / "torch" / "lib").mkdir(parents=True)
        library = tmp_path / "torch" / device_module.CUDA_LIBRARY
        specs = {name: ModuleSpec(name, None, origin=str(tmp_path / name / "__init__.py")) for name in modules}
        if has_cuda_build:
            library.touch()
        monkeypatch.setattr(importlib.util, "find_spec", specs.get)
        monkeypatch.setattr(device_module, "DRIVER_FILES", (tmp_path / "none", tmp_path) if has_driver else ())

    return set_up


def test_the_cpu_needs_nothing(machine: Machine) -> None:
    machine()
    assert choose_backend("cpu", {}) == choose_backend("auto", {}) == "native"


def test_a_whole_gpu_machine_is_used(machine: Machine) -> None:
    machine(has_driver=True, modules=("torch", "triton"))
    assert choose_backend("auto", {}) == choose_backend("cuda", {}) == "cuda"
    assert choose_backend("auto", {"CUDA_VISIBLE_DEVICES": "1"}) == "cuda"
    assert choose_backend("cpu", {}) == "native"


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ((), "torch and triton are not installed; pip install 'roseinfer[cuda]', or use --device cpu"),
        (("torch",), "triton is not installed; pip install 'roseinfer[cuda]', or use --device cpu"),
    ],
)
@pytest.mark.parametrize("environ", [{}, INTERPRETED], ids=["compiled", "interpreted"])
def test_modules_that_are_not_installed(
    machine: Machine, modules: tuple[str, ...], said: str, environ: dict[str, str]
) -> None:
    machine(has_driver=True, modules=modules)
    assert choose_backend("auto", environ) == "native"
    with pytest.raises(DeviceError) as caught:
        choose_backend("cuda", environ)
    assert str(caught.value) == f"device cuda: {said}"


def test_a_machine_without_a_driver(machine: Machine) -> None:
    machine(modules=("torch", "triton"))
    assert choose_backend("auto", {}) == "native"
    with pytest.raises(DeviceError, match="there is no NVIDIA driver; install one, or use --device cpu"):
        choose_backend("cuda", {})


def test_a_torch_for_cpus(machine: Machine) -> None:
    machine(has_driver=True, modules=("torch", "triton"), has_cuda_build=False)
    assert choose_backend("auto", {}) == "native"
    with pytest.raises(DeviceError, match="was built without CUDA; install another, or use --device cpu"):
        choose_backend("cuda", {})


@pytest.mark.parametrize("visible", ["", "-1", " -1 ", "-1,0"])
def test_gpus_that_are_hidden(machine: Machine, visible: str) -> None:
    machine(has_driver=True, modules=("torch", "triton"))
    environ = {"CUDA_VISIBLE_DEVICES": visible}
    assert choose_backend("auto", environ) == "native"
    with pytest.raises(DeviceError, match="hides all GPUs; unset it, or use --device cpu"):
        choose_backend("cuda", environ)


def test_the_interpreter_needs_no_gpu_and_has_to_be_asked_for(machine: Machine) -> None:
    machine(modules=("torch", "triton"), has_cuda_build=False)
    assert choose_backend("cuda", {**INTERPRETED, "CUDA_VISIBLE_DEVICES": ""}) == "cuda"
    assert choose_backend("auto", INTERPRETED) == "native"


def test_a_driver_does_not_make_the_interpreter_the_default(machine: Machine) -> None:
    machine(has_driver=True, modules=("torch", "triton"))
    assert choose_backend("auto", INTERPRETED) == "native"
    assert choose_backend("auto", {"TRITON_INTERPRET": "0"}) == "cuda"


@pytest.mark.skipif(has_driver(), reason="there is a GPU driver")
def test_choosing_costs_nothing_here() -> None:
    """The fastest of several, as the machine may be busy."""

    def seconds() -> float:
        start = time.perf_counter()
        assert choose_backend("auto", {}) == "native"
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 1e-3


def test_choosing_imports_nothing_heavy() -> None:
    code = """
import sys
from roseinfer.core.errors import DeviceError
from roseinfer.engine.device import choose_backend
for device in ("auto", "cuda"):
    try:
        choose_backend(device)
    except DeviceError:
        pass
print(sorted({"torch", "triton", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
