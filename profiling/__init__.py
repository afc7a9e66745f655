"""What a network does and costs: exact counts, energy, and the report that sets them side by side."""

from spikeport.profiling.counting import count_operations
from spikeport.profiling.counts import LayerCounts, ModelCounts
from spikeport.profiling.report import Report, report

__all__ = ["LayerCounts", "ModelCounts", "Report", "count_operations", "report"]
