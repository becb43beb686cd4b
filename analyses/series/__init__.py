"""Series: any analysis over the checkpoints of a model, and when its heads emerge.

A package and no analysis of its own, so the registry does not list it.
"""

from headscope.analyses.series import timeline_folder
from headscope.analyses.series.emergence import emergence
from headscope.analyses.series.order import order
from headscope.analyses.series.timeline import timeline

__all__ = ["emergence", "order", "timeline", "timeline_folder"]
