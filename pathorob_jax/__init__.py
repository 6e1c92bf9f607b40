"""PathoROB in JAX: does a pathology encoder see biology, or the hospital?

Data goes one way: tileset -> ``extract`` -> embedding store -> ``evaluate`` -> results ->
``report``. Every step reads the previous one's artefact from disk; see ``docs/architecture.md``.
"""

__version__ = "0.1.0"
