"""The same questions to llama.cpp, eager PyTorch and EdgeVLM, in one run on one machine."""
