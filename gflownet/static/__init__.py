"""Static shapes for the GPU: tables of states and capture in a CUDA graph."""
