"""A corpus without a download: sentences with dates, amounts, quantities and times, generated in three languages."""
