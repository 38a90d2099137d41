"""What an operator asks about queues, workers and single tasks, answered with the cause and not only with numbers.

Everything here only reads, with the operator's Redis user.
"""

# The alerts' thresholds (roles/monitoring/templates/alerts.yml.j2): seconds that a task waits, tasks that wait,
# seconds beyond the hard limit.
OLD, LONG, STUCK_MARGIN = 120, 100, 60
# Seconds for a worker's answer.
TIMEOUT = 2.0
