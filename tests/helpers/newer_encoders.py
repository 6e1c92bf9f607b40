"""Encoders that the shared facts do not hold, or hold in part; the sources are in their entries.

Name, input, patch, width, depth, heads, MLP, its kind, registers; length of the embedding, pooling.
"""

ENCODERS = [
    ("digepath", 224, 16, 1024, 24, 16, 4096, "gelu", 0, 1024, "cls"),
    ("crisp", 224, 14, 1280, 32, 16, 3416, "swiglu", 4, 2560, "clsmean"),
    ("crown", 224, 16, 1024, 24, 16, 2736, "swiglu", 0, 1024, "cls"),
    ("prost40m", 224, 14, 384, 12, 6, 1536, "gelu", 0, 384, "cls"),
    ("reddino_small", 224, 14, 384, 12, 6, 1536, "gelu", 0, 384, "cls"),
    ("reddino_base", 224, 14, 768, 12, 12, 3072, "gelu", 0, 768, "cls"),
    ("reddino_large", 224, 14, 1024, 24, 16, 4096, "gelu", 0, 1024, "cls"),
    ("dinobloom_small", 224, 14, 384, 12, 6, 1536, "gelu", 0, 384, "cls"),
    ("dinobloom_base", 224, 14, 768, 12, 12, 3072, "gelu", 0, 768, "cls"),
    ("dinobloom_large", 224, 14, 1024, 24, 16, 4096, "gelu", 0, 1024, "cls"),
    ("dinobloom_giant", 224, 14, 1536, 40, 24, 4096, "swiglu", 0, 1536, "cls"),
    ("quiltnet_b16", 224, 16, 768, 12, 12, 3072, "quick_gelu", 0, 512, "head"),
    ("quiltnet_b16_pmb", 224, 16, 768, 12, 12, 3072, "gelu", 0, 512, "head"),
    ("omiclip", 224, 14, 1024, 24, 16, 4096, "gelu", 0, 768, "head"),
    ("isight", 336, 14, 1024, 24, 16, 4096, "quick_gelu", 0, 1024, "head"),
    ("pathoduet_he", 224, 16, 768, 12, 12, 3072, "gelu", 1, 768, "head"),
    ("pathoduet_ihc", 224, 16, 768, 12, 12, 3072, "gelu", 1, 768, "head"),
]
NAMES = {name for name, *_ in ENCODERS}
