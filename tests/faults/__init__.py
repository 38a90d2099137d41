"""Random faults of installed hosts, and how they are judged (make faults)."""
