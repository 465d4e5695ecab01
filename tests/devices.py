"""Devices for tests that hold a GPU to the CPU's numbers. The case "cpu" runs everywhere, so that the test itself is tested."""

import pytest
import torch

CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
on_cuda = pytest.mark.parametrize("device", [pytest.param("cuda", marks=CUDA)])
