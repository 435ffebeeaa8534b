"""LLaVA-Mini and TinyGPT-V in small, trained here: proof that export and quantization keep what was learned."""
