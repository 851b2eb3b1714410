"""Samplers: generators of canvases. Each is a frozen dataclass of settings, called with (denoiser, canvas, key)."""
