"""Studies: from runs to scaling laws, frontiers and a report. Fits and reports read records, and import no torch."""
