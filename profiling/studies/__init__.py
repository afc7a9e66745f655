"""Studies: many trainings as one table. Each finds its trials, trains those that are missing, and writes the table."""

from spikeport.profiling.studies.ablation import SCHEDULES, ablation_study
from spikeport.profiling.studies.compare import compare_study
from spikeport.profiling.studies.paper import paper_table, run_quick
from spikeport.profiling.studies.results import write_results
from spikeport.profiling.studies.running import run_study
from spikeport.profiling.studies.search import Search, Space, run_search
from spikeport.profiling.studies.seeds import seeds_study
from spikeport.profiling.studies.study import Study
from spikeport.profiling.studies.twins import side_by_side

__all__ = [
    "SCHEDULES",
    "Search",
    "Space",
    "Study",
    "ablation_study",
    "compare_study",
    "paper_table",
    "run_quick",
    "run_search",
    "run_study",
    "seeds_study",
    "side_by_side",
    "write_results",
]
