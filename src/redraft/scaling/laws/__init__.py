"""The fits: IsoFLOP minima, L(N, D), compute multipliers, repeated data, and how far each can be trusted."""
