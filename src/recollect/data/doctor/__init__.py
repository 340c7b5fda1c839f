"""The dataset doctor: finds what is wrong with a dataset, says what to do, and mends a copy."""

from recollect.data.doctor.examination import Report, examine, statistics
from recollect.data.doctor.fix import fix_dataset
from recollect.data.doctor.page import write_page

__all__ = ["Report", "examine", "fix_dataset", "statistics", "write_page"]
