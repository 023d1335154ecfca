"""What happens when a rank dies: who notices it, and what the job does about it."""
