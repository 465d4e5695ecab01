"""Devices for tests that compare a GPU with the CPU. The case "cpu" runs everywhere, to test the tests."""

import pytest
import torch

CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
on_cuda = pytest.mark.parametrize("device", [pytest.param("cuda", marks=CUDA)])
