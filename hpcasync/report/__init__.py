"""What runs came to, side by side: tables, plots and a timeline, from the records in their run directories."""
