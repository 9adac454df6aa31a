"""What of the documentation is made from the code when it is built.

A page says ``<!-- generated: NAME -->`` on a line of its own, and ``docs/conf.py`` puts there what stands under that
name in :data:`PARTS`. Where the code has something that the text beside it does not describe, or the other way round,
the build fails: they cannot disagree.
"""

from docs_build.benchmark import inside, summary
from docs_build.diagram import svg
from docs_build.reference import PARTS as TABLES

PARTS = {**TABLES, "life of a connection": svg, "benchmark": summary, "inside": inside}
