"""Results on disk become one page, tables and figures that people read.

Enters: a results root. Leaves: a folder with ``index.html``, CSV tables and PNG figures. The only
part of the library that imports matplotlib and jinja2.
"""

from pathorob_jax.report.write import write_report

__all__ = ["write_report"]
